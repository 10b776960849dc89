"""Where the time of a training goes: loader, steps, validation, checkpoints."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

SHARE = 0.3  # of the time that a device may wait for the loader before it is said
SEEN = 50  # steps until then; the first ones start workers and compile


class TimeSpent(Callback):
    """Says at the end of a fit where its time went, and once, while it runs, that the GPU waits for its batches.

    On a GPU the host runs ahead: its steps are short until the device's queue is full, and their times are then the
    device's. What is neither loader, step nor validation (checkpoints, figures, logging) is "other".
    """

    def __init__(self) -> None:
        self.spent = {"loader": 0.0, "step": 0.0, "validation": 0.0, "other": 0.0}
        """Seconds."""
        self._last, self._steps, self._warned, self._validating = 0.0, 0, False, False

    def _count(self, part: str) -> None:
        """What has passed since the last call belongs to a part."""
        now = time.perf_counter()
        self.spent[part] += now - self._last
        self._last = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the fit."""
        self.spent = dict.fromkeys(self.spent, 0.0)
        self._last, self._steps, self._warned = time.perf_counter(), 0, False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What came before is no waiting for the loader."""
        self._count("other")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._count("loader")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is made."""
        self._count("step")
        self._steps += 1
        if self._steps == SEEN:  # the first ones start workers and compile
            self.spent["other"] += self.spent["loader"] + self.spent["step"]
            self.spent["loader"] = self.spent["step"] = 0.0
        share = self.spent["loader"] / max(1e-9, self.spent["loader"] + self.spent["step"])
        on_gpu = pl_module.device.type != "cpu"
        if on_gpu and not self._warned and self._steps == 3 * SEEN and share > SHARE:
            self._warned = True
            rank_zero_warn(
                f"{share:.0%} of the time the {pl_module.device.type} waits for batches; raise data.workers, where "
                "there are cores for more, or choose cheaper augmentations"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation within the training, or before it."""
        if self._last:
            self._count("other")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is done, decoding and metrics included."""
        if self._last:
            self._count("validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where the time of the fit went."""
        self._count("other")
        total = sum(self.spent.values())
        if self._steps:
            shares = ", ".join(f"{part} {seconds / max(total, 1e-9):.0%}" for part, seconds in self.spent.items())
            rank_zero_info(f"time of {total:.0f} s: {shares}")
