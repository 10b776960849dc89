"""What a run records: config.yaml, metrics.csv and log.txt."""

import csv
import io
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from callbacks.files import whole, write_text
from scripts.run import resume
from scripts.run.folder import RunFolder
from scripts.run.origin import write_begin, write_end

LOGGED = ("lightning.pytorch", "lightning.fabric", "leeml", "py.warnings")  # loggers that log.txt records


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is reported where it loses something."""


class _Log(MemoryHandler):
    """Holds records back until `begin`."""

    def __init__(self, file: _LogFile) -> None:
        super().__init__(capacity=10_000, flushOnClose=False)
        self._file = file

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return self.target is not None

    def begin(self) -> None:
        """Write from now on, and what was held back."""
        self.setTarget(self._file)
        self.flush()

    def close(self) -> None:
        super().close()
        self._file.close()


def open_log(run: RunFolder) -> None:
    """Send what the libraries and we log to log.txt, with the time; nothing is written before `begin_log`."""
    file = _LogFile(run.log, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler = _Log(file)
    for name in LOGGED:
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("leeml").setLevel(logging.INFO)
    logging.captureWarnings(True)


def begin_log() -> None:
    """Write what was logged since `open_log`, and go on."""
    for handler in logging.getLogger("leeml").handlers:
        if isinstance(handler, _Log):
            handler.begin()


def close_log() -> None:
    """Stop what `open_log` began."""
    for name in LOGGED:
        for handler in [h for h in logging.getLogger(name).handlers if isinstance(h, _Log)]:
            logging.captureWarnings(False)
            logging.getLogger(name).removeHandler(handler)
            handler.close()


class _Metrics(ExperimentWriter):
    """metrics.csv of a run, old rows kept (Lightning's own removes an older file).

    Nothing is written before `begin`, when a step was trained. Of the old rows those give way that a resumed run
    repeats: those from its first new row's step on, or all but the first `keep`. A row that a crash cut short is
    dropped.
    """

    keep: int | None = None
    """Rows that the checkpoint had counted, where the step does not tell."""
    _begun = _cut = False
    _first: int | None = None

    def _check_log_dir_exists(self) -> None:
        """Nothing to clear away."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Take one row of metrics at a step."""
        if self._first is None:
            self._first = step
        super().log_metrics(metrics_dict, step)

    def begin(self) -> None:
        """Write from now on."""
        self._begun = True
        if self.keep is not None and os.path.isfile(self.metrics_file_path):
            self._write(self._rows()[: self.keep])
            self._cut = True

    def count(self) -> int:
        """Rows so far, also of those before a stop."""
        self.save()
        return len(self._rows()) if os.path.isfile(self.metrics_file_path) else 0

    def save(self) -> None:
        """Append the new rows."""
        if not self._begun:
            return
        try:
            if not self._cut and self._first is not None:
                self._cut = True
                if os.path.isfile(self.metrics_file_path):
                    self._write([row for row in self._rows() if int(row["step"]) < self._first])
            self._append()
        except OSError as error:
            error.filename = error.filename or self.metrics_file_path
            raise

    def _append(self) -> None:
        """As Lightning's, with one kind of line end."""
        if not self.metrics:
            return
        there = os.path.isfile(self.metrics_file_path)
        if self._record_new_keys() and there:
            self._rewrite_with_new_header(self.metrics_keys)
        with open(self.metrics_file_path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.metrics_keys, lineterminator="\n")
            if not there:
                writer.writeheader()
            writer.writerows(self.metrics)
        self.metrics = []

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
        write_text(Path(self.metrics_file_path), text.getvalue())


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


class RunRecord(Callback):
    """Writes config.yaml when training really begins, and puts it into every checkpoint.

    A run that is resumed begins when its first batch has gone well: until then its folder stays as it was.

    Args:
        run: The run's folder.
        config: The resolved configuration of `fit`.
        resumed: The checkpoint that the run goes on from; None for a new run.
        typed_configs: The --config files that `fit` was given.
    """

    def __init__(
        self, run: RunFolder, config: dict[str, Any], resumed: Path | None = None, typed_configs: Sequence[str] = ()
    ) -> None:
        self.run, self.config, self.resumed, self.typed_configs = run, config, resumed, typed_configs
        self.changes: resume.Changes = []
        """What flags change in the optimizer's state; the command sets it before the fit."""
        self._rows: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put in what the data have settled, and begin a new run."""
        if settled := getattr(trainer.datamodule, "settled", None):  # type: ignore[attr-defined]
            self.config["data"]["init_args"] |= settled
        if self.resumed is None:
            self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where a resumed run cannot be exact."""
        loaders = CombinedLoader(trainer.train_dataloader, "sequential").flattened
        exact = all(hasattr(loader, "load_state_dict") for loader in loaders)
        if self.resumed is not None and not exact and trainer.is_global_zero:
            print(
                "leeml: note: the training loader cannot know where the run stopped (it has no load_state_dict), so "
                "rows may come in another order than without the stop; datamodules.samplers.ResumableLoader goes on "
                "exactly",
                file=sys.stderr,
            )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Begin to record a resumed one."""
        if not self.run.trained:
            self._begin(trainer)
            self.run.trained = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, where the checkpoint was taken between the last batch and the end of its epoch."""
        self.on_train_batch_end(trainer)

    def _begin(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        last = self.run.checkpoints / "last.ckpt"
        if self.resumed is not None and self.resumed != last:  # from here on, that is where a resumed run goes on
            with whole(last) as scratch:
                shutil.copyfile(self.resumed, scratch)
        write_begin(self.run.path, self.typed_configs)
        write_text(self.run.config, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        begin_log()
        for logger in _own(trainer):
            logger.experiment.keep = self._rows
            logger.experiment.begin()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the run came to its end."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_end(self.run.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint alone is enough to predict; rows of a step that goes on after it are counted."""
        checkpoint["config"] = self.config
        checkpoint.setdefault("homework", "custom")  # a HomeworkModule writes its own over them
        checkpoint.setdefault("facts", {})
        if trainer.validating:  # what is still to be logged has the step of what was
            checkpoint["metrics_rows"] = next((logger.experiment.count() for logger in _own(trainer)), None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember how many rows there were, and put in what flags have changed."""
        self._rows = checkpoint.get("metrics_rows")
        resume.apply(checkpoint, self.changes, trainer)


def _own(trainer: Trainer) -> list[RunCSVLogger]:
    found = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
    return found if trainer.is_global_zero else []
