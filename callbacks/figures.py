"""Pictures and tables of a run: PNG and CSV files in the run folder, and to every logger that takes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import matplotlib

matplotlib.use("Agg")  # no screen needed, and none opened

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from callbacks.curves import plot_curves, read_metrics
from callbacks.files import whole


@runtime_checkable
class Draws(Protocol):
    """A module that has pictures of what it predicted last, or a datamodule that has some of its data."""

    def draw(self) -> dict[str, Figure]:
        """Pictures of the last validation or test: name -> figure."""


class Figures(Callback):
    """After fit, validate and test: curves of loss, score and learning rate, and whatever module and data draw.

    Files go to <trainer.default_root_dir>/figures/<name>.png; loggers with `log_image` (W&B) or an experiment with
    `add_figure` (TensorBoard) get them too. Nothing is written by fast_dev_run.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves of the run and what the data and the module have to show."""
        if not _wanted(trainer):
            return
        figures: dict[str, Figure] = {}
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                file = Path(logger.log_dir) / "metrics.csv"
                curves = read_metrics(file) if file.is_file() else {}
                keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
                chosen = {str(keeper.monitor).split("/")[-1] for keeper in keepers}
                for name, wanted, log in (
                    ("loss", {"loss", "mse"}, True),
                    ("gradient_norm", {"gradient_norm"}, True),
                    *((score, {score}, False) for score in chosen - {"loss", "mse"}),
                ):
                    if found := {k: v for k, v in curves.items() if k.split("/")[-1] in wanted}:
                        figures[name] = plot_curves(found, name.replace("_", " "), log)
                if rate := {k: v for k, v in curves.items() if k.startswith("lr-")}:
                    figures["learning_rate"] = plot_curves(rate, "learning rate", log=False)
        for part in (trainer.datamodule, pl_module):  # type: ignore[attr-defined]
            figures |= part.draw() if isinstance(part, Draws) else {}
        self._save(trainer, figures)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the module predicted."""
        if isinstance(pl_module, Draws) and _wanted(trainer):
            self._save(trainer, {f"test_{name}": figure for name, figure in pl_module.draw().items()})

    def _save(self, trainer: Trainer, figures: dict[str, Figure]) -> None:
        folder = Path(trainer.default_root_dir) / "figures"
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            with whole(path) as scratch:
                figure.savefig(scratch, format="png", dpi=120)
            show(trainer.loggers, name, figure, path, trainer.global_step)


def _wanted(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def show(loggers: Sequence[Any], name: str, figure: Figure, path: Path, step: int) -> None:
    """Give a figure to every logger that takes pictures."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[str(path)])
        elif hasattr(getattr(logger, "experiment", None), "add_figure"):
            logger.experiment.add_figure(name, figure, global_step=step)
