"""Where the time of a training goes: loader, steps, validation, decoding, checkpoints."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

SHARE = 0.3  # of the time that a device may wait for the loader before it is said
SEEN = 50  # steps until then; the first ones start workers and compile


class TimeSpent(Callback):
    """Says at the end of a fit where its time went, and once, while it runs, that the GPU waits for its batches.

    On a GPU the host runs ahead: its steps are short until the device's queue is full, and their times are then the
    device's. Decoding is what the module counts of a validation in its `decoding_seconds`, where it has them;
    checkpoints are what RunCheckpointIO counts, wherever it writes them. The rest (figures, logging) is "other".
    """

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("loader", "step", "validation", "decoding", "checkpoints", "other"), 0.0)
        """Seconds."""
        self._begun = dict(self.spent)
        """What was spent in the first steps."""
        self._last, self._steps, self._warned = 0.0, 0, False
        self._within = {"decoding": 0.0, "checkpoints": 0.0}
        """What their own clocks said at the last call."""

    def _count(self, part: str, trainer: Trainer, module: LightningModule) -> None:
        """What has passed since the last call belongs to a part, but for decoding and checkpoints within it."""
        now = time.perf_counter()
        self.spent[part] += now - self._last
        self._last = now
        clocks = {"decoding": (module, "decoding_seconds"), "checkpoints": (trainer.strategy.checkpoint_io, "seconds")}
        for name, (place, attribute) in clocks.items():
            passed = getattr(place, attribute, 0.0) - self._within[name]
            self._within[name] += passed
            self.spent[name] += passed
            self.spent[part] -= passed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the fit."""
        self._last, self._steps, self._warned = time.perf_counter(), 0, False
        self._count("other", trainer, pl_module)  # what was decoded and saved before is no part of it
        self.spent = dict.fromkeys(self.spent, 0.0)
        self._begun = dict(self.spent)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What came before is no waiting for the loader."""
        self._count("other", trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._count("loader", trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is made."""
        self._count("step", trainer, pl_module)
        self._steps += 1
        if self._steps == SEEN:  # the first ones start workers and compile
            self._begun = dict(self.spent)
        waited, worked = (self.spent[part] - self._begun[part] for part in ("loader", "step"))
        share = waited / max(1e-9, waited + worked)
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
            self._count("other", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is done, metrics included."""
        if self._last:
            self._count("validation", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where the time of the fit went."""
        self._count("other", trainer, pl_module)
        total = sum(self.spent.values())
        if self._steps:
            parts = [(part, seconds / max(total, 1e-9)) for part, seconds in self.spent.items() if seconds]
            shares = ", ".join(f"{part} {share:.0%}" for part, share in parts)
            rank_zero_info(f"time of {total:.0f} s: {shares}")
