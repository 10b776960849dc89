"""What a module says of a few examples after each validation: a file of the run, and a table in loggers."""

import csv
import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.files import write_text


@runtime_checkable
class ShowsSamples(Protocol):
    """A module that has examples of what it said last."""

    def samples(self) -> tuple[list[str], list[list[str]]]:
        """Columns, and a few rows."""


class Samples(Callback):
    """Adds the module's samples to <trainer.default_root_dir>/samples.csv after each validation of a fit.

    The first column is the optimizer step. Loggers with `log_table` (W&B) or an experiment with `add_text`
    (TensorBoard) get them too. Nothing is written by fast_dev_run.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append the samples of this validation to the file."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or trainer.fast_dev_run or not trainer.is_global_zero or not isinstance(pl_module, ShowsSamples):  # type: ignore[attr-defined]
            return
        columns, rows = pl_module.samples()
        step = trainer.global_step
        self._append(Path(trainer.default_root_dir) / "samples.csv", step, columns, rows)
        loggers: list[Any] = trainer.loggers  # of any kind
        for logger in loggers:
            if hasattr(logger, "log_table"):
                logger.log_table(key="samples", columns=columns, data=rows, step=step)
            elif hasattr(getattr(logger, "experiment", None), "add_text"):
                text = "\n\n".join(" | ".join(row) for row in [columns, *rows])
                logger.experiment.add_text("samples", text, global_step=step)

    @staticmethod
    def _append(path: Path, step: int, columns: list[str], rows: list[list[str]]) -> None:
        """Rows of earlier steps stay; those of later ones were lost with the run that wrote them."""
        kept: list[list[Any]] = []
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) < step]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([["step", *columns], *kept, *([step, *row] for row in rows)])
        write_text(path, text.getvalue())
