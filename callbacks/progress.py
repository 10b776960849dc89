"""One line of progress for a whole run: cheap enough for steps of a millisecond, quiet where nobody watches."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from callbacks.steps import steps_done, steps_in_run


class RunProgress(ProgressBar):
    """A bar over the run's epochs (or steps) with the newest metrics; on no terminal, a line every tenth of the run."""

    INTERVAL = 0.2  # seconds between redraws

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._drawn = 0.0
        self._tenth = 0
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning where it has disabled the bar for a while."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, for as many steps as the run has."""
        if not self._enabled:
            return
        steps = steps_in_run(trainer)
        total = int(steps) if 0 < steps < float("inf") else None
        self._bar = tqdm(
            total=total, initial=steps_done(trainer), unit="step", desc="training", disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )  # fmt: skip
        self._total = total

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw a few times a second."""
        if self._bar is not None and (now := time.monotonic()) - self._drawn > self.INTERVAL:
            self._drawn = now
            self._draw(trainer, done=False)

    def _draw(self, trainer: Trainer, done: bool) -> None:
        assert self._bar is not None
        scores = {k: f"{float(v):.4g}" for k, v in trainer.progress_bar_metrics.items()}
        if not self._bar.disable:
            self._bar.n = steps_done(trainer)
            self._bar.set_postfix({"epoch": trainer.current_epoch, **scores})
        elif done or (self._total and self._tenth < (tenth := 10 * steps_done(trainer) // self._total) < 10):
            self._tenth = tenth = 10 if done else tenth  # the last line waits for the last validation
            text = " ".join(f"{k} {v}" for k, v in scores.items())
            print(f"{tenth * 10:3d} %  epoch {trainer.current_epoch}  {text}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar on its last state."""
        if self._bar is not None:
            self._draw(trainer, done=True)
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
