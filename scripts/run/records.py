"""What a run records: config.yaml, metrics.csv and log.txt."""

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from callbacks.files import write_text
from scripts.run.folder import RunFolder

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

    Args:
        run: The run's folder.
        config: The resolved configuration of `fit`.
    """

    def __init__(self, run: RunFolder, config: dict[str, Any]) -> None:
        self.run, self.config = run, config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the resolved configuration."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_text(self.run.config, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint alone is enough to predict."""
        checkpoint["config"] = self.config
