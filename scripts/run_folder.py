"""The one folder of a run: where it is, what lies in it, and the loggers and records that fill it."""

import csv
import io
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.plugins.io import TorchCheckpointIO

from datamodules.base import PROJECT
from datamodules.errors import DataError


class RunFolder:
    """A run's folder: config.yaml, metrics.csv, checkpoints/, figures/, submission.csv, scores.json, log.txt."""

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
        write_whole(self.scores, json.dumps(self.read_scores() | new, indent=2) + "\n")


LOGGED = ("lightning.pytorch", "lightning.fabric", "leeml", "py.warnings")  # loggers that log.txt records


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is reported where it loses something."""


def open_log(run: RunFolder) -> None:
    """Send what the libraries and we log to log.txt, with the time."""
    handler = _LogFile(run.log, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in LOGGED:
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("leeml").setLevel(logging.INFO)
    logging.captureWarnings(True)


def close_log() -> None:
    """Stop what `open_log` began."""
    for name in LOGGED:
        for handler in [h for h in logging.getLogger(name).handlers if isinstance(h, _LogFile)]:
            logging.captureWarnings(False)
            logging.getLogger(name).removeHandler(handler)
            handler.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    with _whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):  # names the file that was wanted, not the one beside it
            error.filename, error.filename2 = str(path), None
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as data only, never as code.

    Raises:
        DataError: not there, cut short, holding more than data, or not one of ours.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; check --ckpt_path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        if "Unsupported" in str(error) or "WeightsUnpickler" in str(error) or "weights_only" in str(error).lower():
            raise DataError(
                f"{path}: holds code besides weights and was not loaded; only open checkpoints of leeml"
            ) from None
        raise DataError(f"{path}: the checkpoint is damaged or cut short; use another one of the run") from None
    if not isinstance(checkpoint, dict) or not {"homework", "config", "facts", "state_dict"} <= checkpoint.keys():
        raise DataError(f"{path}: not a checkpoint of leeml; expected one that leeml fit wrote")
    return checkpoint


class _Metrics(ExperimentWriter):
    """metrics.csv of a run, old rows kept (Lightning's own removes an older file).

    The file stays as it is until the first new row; then the rows from that step on give way, because a resumed run
    repeats them. A row that a crash cut short is dropped.
    """

    _begun = False

    def _check_log_dir_exists(self) -> None:
        """Nothing to clear away."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Take one row."""
        if not self._begun and step is not None:
            self._begun = True
            if os.path.isfile(self.metrics_file_path):
                self._write([row for row in self._rows() if int(row["step"]) < step])
        super().log_metrics(metrics_dict, step)

    def save(self) -> None:
        """Append the new rows."""
        try:
            super().save()
        except OSError as error:
            error.filename = error.filename or self.metrics_file_path
            raise

    def _rows(self) -> list[dict[str, str]]:
        lines = Path(self.metrics_file_path).read_text().splitlines(keepends=True)
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        self.metrics_keys = list(rows.fieldnames or [])
        return list(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        rows = self._rows()
        self.metrics_keys = fieldnames
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.metrics_keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(Path(self.metrics_file_path), text.getvalue())


class RunCSVLogger(CSVLogger):
    """metrics.csv right in the run folder; a resumed run goes on with it."""

    def __init__(self, run: Path) -> None:
        super().__init__(run.parent, name=run.name, version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> _Metrics:
        """Writer of the file."""
        if not isinstance(self._experiment, _Metrics):
            self._experiment = _Metrics(self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: config.yaml holds them, and more."""


class RunCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them.

    Lightning's own writes to the system's temporary folder first, and moves from there: between two disks that is a
    copy, and a crash leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint that appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        memory = io.BytesIO()  # torch's own file writer turns a full disk into a RuntimeError
        torch.save(checkpoint, memory)
        with _whole(path) as scratch:
            scratch.write_bytes(memory.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that still knows the best score when the run's folder has been moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over, with the paths of this folder, if the best checkpoint lies in it."""
        folder, best = Path(self.dirpath or ""), state_dict["best_model_path"]
        if best and (folder / Path(best).name).is_file():
            here = {k: v and str(folder / Path(v).name) for k, v in state_dict.items() if k.endswith("_path")}
            models = {str(folder / Path(k).name): v for k, v in state_dict["best_k_models"].items()}
            state_dict = state_dict | here | {"best_k_models": models, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Keeps checkpoints/last.ckpt, where --resume goes on: after the first epoch, every few seconds, and at the end.

    It comes after all other callbacks, so that it holds what they know of the epoch, such as the best score.
    (ModelCheckpoint's `save_last` writes it only when the score has improved.)

    Args:
        run: The run's folder.
        seconds: An epoch's end writes it only when so much time has passed.
    """

    def __init__(self, run: RunFolder, seconds: float = 10.0) -> None:
        self.path, self.seconds = run.checkpoints / "last.ckpt", seconds
        self._saved = -math.inf
        self._step = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time (the first rank's clock counts), and the final state."""
        due = trainer.strategy.broadcast(time.monotonic() - self._saved > self.seconds)
        if due or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state if the run ended in another way (too late for averaged weights to go on from)."""
        if trainer.global_step != self._step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved, self._step = time.monotonic(), trainer.global_step


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
            write_whole(self.run.config, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint alone is enough to predict."""
        checkpoint["config"] = self.config
