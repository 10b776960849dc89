"""The mean of a run's last weights (fairseq's average_checkpoints; Vaswani et al. 2017, section 6.1)."""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor


class AverageOfLast(WeightAveraging):
    """Each validation takes the weights as they stand; what is validated, and saved, is the mean of the last `last`.

    Training goes on with the weights as they were. Checkpoints hold the mean as their weights, and beside it those of
    now and the last ones, `last` + 1 sets more than without, so that a resumed run goes on exactly. Before the first
    validation the mean is of the weights as they stand.

    Args:
        last: Validations whose weights are averaged; fewer as long as there are fewer.
    """

    def __init__(self, last: int = 5) -> None:
        if last < 1:
            raise MisconfigurationException(f"last={last}: expected 1 or more sets of weights to average.")
        super().__init__(use_buffers=False)
        self._taken: deque[list[Tensor]] = deque(maxlen=last)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Never between validations: the mean changes only when a validation begins."""
        return False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights, and put the mean in their place for the validation."""
        if self._average_model is not None and not trainer.sanity_checking:
            self._taken.append([parameter.detach().clone() for parameter in pl_module.parameters()])
            for mean, *weights in zip(self._average_model.module.parameters(), *self._taken, strict=True):
                mean.data.copy_(torch.stack(weights).mean(0))
        super().on_validation_epoch_start(trainer, pl_module)

    def _follow(self, pl_module: LightningModule) -> None:
        """Where nothing was taken yet, the mean would be the weights that the run began with."""
        if self._average_model is not None and not self._taken:
            for mean, weights in zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True):
                mean.data.copy_(weights.data)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the mean in the module."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the last weights in."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["last_weights"] = list(self._taken)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the last weights out."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        weights = checkpoint.get("last_weights", [])
        self._taken.extend([part.to(pl_module.device) for part in parts] for parts in weights)
