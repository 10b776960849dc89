"""Pictures and tables of a run: PNG and CSV files in the run folder, and to every logger that takes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import matplotlib

matplotlib.use("Agg")  # no screen needed, and none opened

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch.optim import Optimizer

from callbacks.curves import Curve, plot_curves, read_metrics
from callbacks.files import whole
from callbacks.last_validation import kept_weights
from callbacks.steps import steps_done


@runtime_checkable
class Draws(Protocol):
    """A module that has pictures of what it predicted last, or a datamodule that has some of its data."""

    def draw(self) -> dict[str, Figure]:
        """Pictures of the last validation or test: name -> figure."""


class Figures(Callback):
    """After fit, validate and test: curves of loss, score and learning rate, and whatever module and data draw.

    Files go to <trainer.default_root_dir>/figures/<name>.png; loggers with `log_image` (W&B) or an experiment with
    `add_figure` (TensorBoard) get them too. Nothing is written by fast_dev_run.

    What the module draws after a fit is drawn with the weights of best.ckpt.

    Args:
        explain: Writes title and caption onto a figure: (name, figure, whose weights).
    """

    def __init__(self, explain: Callable[[str, Figure, str], None] | None = None) -> None:
        self.explain = explain
        self._rates: dict[str, list[tuple[float, float]]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the rates of the step: metrics.csv has only those of logged steps."""
        kind, number = type(optimizer).__name__, 1 + list(trainer.optimizers).index(optimizer)
        name = kind if len(trainer.optimizers) == 1 else f"{kind} {number}"
        for place, group in enumerate(optimizer.param_groups, 1):
            self._rates.setdefault(f"{name}, group {place}", []).append((steps_done(trainer), float(group["lr"])))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves of the run and what the data and the module have to show."""
        if not _wanted(trainer):
            return
        if not trainer.is_global_zero:
            _take_part(pl_module)
            return
        figures: dict[str, Figure] = {}
        curves: dict[str, Curve] = {}
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
        if rates := self._by_step(curves):
            figures["learning_rate"] = plot_curves(rates, "learning rate", log=False)
        figures |= trainer.datamodule.draw() if isinstance(trainer.datamodule, Draws) else {}  # type: ignore[attr-defined]
        self._save(trainer, figures)
        if isinstance(pl_module, Draws):
            with kept_weights(trainer, pl_module) as weights:
                self._save(trainer, pl_module.draw(), weights)

    def _by_step(self, logged: dict[str, Curve]) -> dict[str, Curve]:
        """Rates of each step; of the steps before a resume those that were logged. Equal curves become one."""
        older = [curve for name, curve in logged.items() if name.startswith("lr-")]
        merged: dict[tuple[tuple[float, float], ...], list[str]] = {}
        for place, (name, new) in enumerate(self._rates.items()):
            before = [point for point in older[place] if point[0] < new[0][0]] if place < len(older) else []
            merged.setdefault((*before, *new), []).append(name)
        return {" = ".join(names): list(points) for points, names in merged.items()}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the module predicted."""
        if not _wanted(trainer) or not isinstance(pl_module, Draws):
            return
        if trainer.is_global_zero:
            figures = {f"test_{name}": figure for name, figure in pl_module.draw().items()}
            self._save(trainer, figures, f"test of {Path(trainer.ckpt_path).name}" if trainer.ckpt_path else "test")
        else:
            _take_part(pl_module)

    def _save(self, trainer: Trainer, figures: dict[str, Figure], weights: str = "") -> None:
        folder = Path(trainer.default_root_dir) / "figures"
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            if self.explain is not None:
                self.explain(name, figure, weights)
            with whole(path) as scratch:
                figure.savefig(scratch, format="png", dpi=120)
            show(trainer.loggers, name, figure, path, trainer.global_step)


def _wanted(trainer: Trainer) -> bool:
    return not trainer.fast_dev_run  # type: ignore[attr-defined]


def _take_part(module: LightningModule) -> None:
    """On a rank that writes nothing: what is drawn may be summed over all ranks, and the first would wait for ever."""
    if isinstance(module, Draws):
        module.draw()


def show(loggers: Sequence[Any], name: str, figure: Figure, path: Path, step: int) -> None:
    """Give a figure to every logger that takes pictures."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[str(path)])
        elif hasattr(getattr(logger, "experiment", None), "add_figure"):
            logger.experiment.add_figure(name, figure, global_step=step)
