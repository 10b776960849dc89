"""The one folder of a run: where it is and what lies in it."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from callbacks.files import write_text
from datamodules.base import PROJECT
from datamodules.errors import DataError


class RunFolder:
    """A run's folder: config.yaml, metrics.csv, checkpoints/, figures/, scores.json, log.txt, what else it wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.scores = path / "scores.json"
        self.log = path / "log.txt"

    @classmethod
    def new(cls, homework: str, level: str) -> "RunFolder":
        """runs/<homework>/<level>/<time> in the project; a second run in the same second gets a number."""
        base = PROJECT / "runs" / homework / level / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        path, number = base, 1
        while path.exists():
            number += 1
            path = base.with_name(f"{base.name}_{number}")
        return cls(path)

    def checkpoint(self, name: str) -> Path:
        """checkpoints/<name>.ckpt, which must be there."""
        path = self.checkpoints / f"{name}.ckpt"
        if not path.is_file():
            have = ", ".join(sorted(p.name for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise DataError(
                f"{path}: no such checkpoint in this run (found: {have}); choose one with --ckpt_path, or train again"
            )
        return path

    def resumable(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.checkpoints / "last.ckpt").is_file()

    def taken(self) -> bool:
        """Whether there is something to lose: a checkpoint or metrics."""
        return (self.path / "metrics.csv").is_file() or any(self.checkpoints.glob("*.ckpt"))

    def create(self) -> None:
        """Make the folder, or say why it cannot be written to."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError("no right to write")
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else error
            raise DataError(
                f"{self.path}: cannot write a run here ({reason}); choose another folder with --run_dir"
            ) from None

    def read_scores(self) -> dict[str, Any]:
        """What was scored so far."""
        return json.loads(self.scores.read_text()) if self.scores.is_file() else {}

    def add_scores(self, new: dict[str, Any]) -> None:
        """Put scores beside the earlier ones."""
        write_text(self.scores, json.dumps(self.read_scores() | new, indent=2) + "\n")
