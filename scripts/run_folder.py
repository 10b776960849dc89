"""The one folder of a run: where it is, what lies in it, and the loggers and records that fill it."""

import csv
import json
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from datamodules.base import PROJECT
from datamodules.errors import DataError


class RunFolder:
    """Paths inside a run's folder: config.yaml, metrics.csv, checkpoints/, figures/, submission.csv, scores.json, log."""

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
            raise DataError(f"{path}: no such checkpoint in this run (found: {have})")
        return path

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
        scratch = self.scores.with_suffix(".part")
        scratch.write_text(json.dumps(self.read_scores() | new, indent=2) + "\n")
        scratch.replace(self.scores)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as data only, never as code.

    Raises:
        DataError: not there, cut short, holding more than data, or not one of ours.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        if "Unsupported" in str(error) or "WeightsUnpickler" in str(error) or "weights_only" in str(error).lower():
            raise DataError(
                f"{path}: holds code besides weights and was not loaded; only open checkpoints of leeml"
            ) from None
        raise DataError(f"{path}: the checkpoint is damaged or cut short; use another one of the run") from None
    if not isinstance(checkpoint, dict) or "homework" not in checkpoint or "config" not in checkpoint:
        raise DataError(f"{path}: not a checkpoint of leeml")
    return checkpoint


class RunCSVLogger(CSVLogger):
    """metrics.csv right in the run folder; a resumed run keeps the rows from before the step it goes on from.

    (Lightning's own removes an older file.)
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run.parent, name=run.name, version="")
        self._file = run / "metrics.csv"
        self._earlier: list[dict[str, Any]] = []
        if self._file.is_file():
            with open(self._file, newline="") as file:
                self._earlier = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        """Log, after putting back what stood in the file before the first step of this process."""
        if self._earlier and step is not None:
            self.experiment.metrics.extend(row for row in self._earlier if int(row["step"]) < step)
            self._earlier = []
        super().log_metrics(metrics, step)


class RunRecord(Callback):
    """Writes config.yaml when training really begins, and puts it into every checkpoint.

    Args:
        run: The run's folder.
        config: The resolved configuration of `fit`.
    """

    def __init__(self, run: RunFolder, config: dict[str, Any]) -> None:
        self.run, self.config = run, config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the resolved configuration."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.run.config.write_text(yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint alone is enough to predict."""
        checkpoint["config"] = self.config


def log_to_file(run: RunFolder) -> None:
    """Send what the libraries and we log to log.txt, with the time."""
    handler = logging.FileHandler(run.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("lightning.pytorch", "lightning.fabric", "leeml", "py.warnings"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("leeml").setLevel(logging.INFO)
    logging.captureWarnings(True)
