"""One line of progress for a whole run: cheap enough for steps of a millisecond, quiet where nobody watches."""

import shutil
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from torch import Tensor
from torch.nn import Module, ModuleList
from torchmetrics import Metric, MetricCollection
from tqdm import tqdm

from callbacks.steps import steps_done, steps_in_run

WIDTH = 80
"""Columns that the bar fits into, also on a wider terminal."""
FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


def networks(module: LightningModule) -> list[tuple[str, int]]:
    """Class and parameters of each of the module's networks; of a list of equal ones, the class of one."""
    parts = [part for _, part in module.named_children() if not isinstance(part, Metric | MetricCollection)]
    kinds = [part[0] if isinstance(part, ModuleList) and len(part) else part for part in parts]
    return [(type(kind).__name__, _size(part)) for kind, part in zip(kinds, parts, strict=True) if _size(part)]


def describe_net(module: LightningModule) -> str:
    """The module's networks with their parameters, in one line."""
    nets = ", ".join(f"{name} of {size:,} parameters" for name, size in networks(module))
    return f"{type(module).__name__}: {nets or f'{_size(module):,} parameters'}"


def _size(part: Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


class RunProgress(ProgressBar):
    """One bar: of fit over its steps, of validate, test and predict over their batches.

    It names what is being done and shows the loss (a step's, until the first epoch has ended) and the metric that
    chooses the checkpoint. Where stderr is no terminal, fit prints a line every tenth of the run.
    """

    INTERVAL = 0.2  # seconds between redraws

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._drawn = 0.0
        self._tenth = 0
        self._loss: Tensor | None = None
        self._begun, self._done_before = 0.0, 0
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning where it has disabled the bar for a while."""
        self._enabled = True

    def _open(self, stage: str, total: float, done: int = 0) -> None:
        self._total = int(total) if 0 < total < float("inf") else None
        self._stage = stage
        self._bar = tqdm(
            total=self._total, initial=done, desc=stage, bar_format=FORMAT, disable=not sys.stderr.isatty(),
            ncols=min(WIDTH, shutil.get_terminal_size().columns) - 1,
        )  # fmt: skip

    def _due(self) -> bool:
        now = time.monotonic()
        if self._bar is None or now - self._drawn < self.INTERVAL:
            return False
        self._drawn = now
        return True

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained."""
        if self._enabled:
            print(describe_net(pl_module), file=sys.stderr, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, for as many steps as there are."""
        if self._enabled:
            self._open("training", steps_in_run(trainer), steps_done(trainer))
            self._begun, self._done_before = time.monotonic(), steps_done(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw a few times a second."""
        if self._due():
            self._loss = outputs.get("loss") if isinstance(outputs, dict) else None  # a skipped batch has none
            self._draw(trainer, done=False)

    def _scores(self, trainer: Trainer) -> str:
        """The loss, and the metric that chooses the checkpoint, with their names."""
        known = trainer.progress_bar_metrics
        chosen = [c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
        shown = [name for name in dict.fromkeys(["train/loss", *chosen]) if name in known] or list(known)[:2]
        values = {name: known[name] for name in shown}
        if "train/loss" not in known and self._loss is not None:
            values = {"train/loss": float(self._loss)} | values
        return " ".join(f"{name.rpartition('/')[2]} {value:.4g}" for name, value in values.items())

    def _time(self, trainer: Trainer) -> str:
        """Spent so far, and left where the end is known."""
        spent = time.monotonic() - self._begun
        done = steps_done(trainer) - self._done_before
        left = tqdm.format_interval(spent / done * (self._total - steps_done(trainer))) if self._total and done else "?"
        return f"[{tqdm.format_interval(spent)}<{left}]"

    def _draw(self, trainer: Trainer, done: bool) -> None:
        assert self._bar is not None
        if not self._bar.disable:
            self._bar.n = steps_done(trainer)
            self._bar.set_description_str(self._stage, refresh=False)
            self._bar.set_postfix_str(f"epoch {trainer.current_epoch} {self._scores(trainer)}")
        elif done or (self._total and self._tenth < (tenth := 10 * steps_done(trainer) // self._total) < 10):
            self._tenth = tenth = 10 if done else tenth  # the last line waits for the last validation
            line = f"{tenth * 10:3d} %  {self._time(trainer)}  epoch {trainer.current_epoch} {self._scores(trainer)}"
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar on its last state."""
        if self._bar is not None:
            self._draw(trainer, done=True)
            self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the stage within fit, or open the bar of `leeml validate`."""
        if self._bar is not None:
            self._bar.set_description_str("validating")
        elif self._enabled and not trainer.sanity_checking and not trainer.training:
            self._open("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count batches; within fit, where a validation takes long, beside the name of the stage."""
        if not self._due() or self._bar is None:
            return
        if self._stage == "training":
            self._bar.set_description_str(f"validating {batch_idx + 1}/{sum(trainer.num_val_batches)}")
        else:
            self._count(batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to training, or close the bar."""
        if self._bar is None:
            return
        if self._stage == "training":
            self._bar.set_description_str("training", refresh=False)
        else:
            self._finish()

    def _count(self, batch_idx: int) -> None:
        assert self._bar is not None
        self._bar.n = batch_idx + 1
        self._bar.refresh()

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.n = self._total or self._bar.n
            self._bar.refresh()
            self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of `leeml test`."""
        if self._enabled:
            self._open("testing", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar on by a batch."""
        if self._due():
            self._count(args[4])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar on its last state."""
        self._finish()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of `leeml predict`."""
        if self._enabled:
            self._open("predicting", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar on by a batch."""
        if self._due():
            self._count(args[4])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar on its last state."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal in order: the last state of the bar on a line of its own."""
        self._close()
