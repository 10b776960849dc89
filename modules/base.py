"""What every homework's LightningModule shares: facts from the data, an injected optimiser, repeatable noise."""

import os
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def split_decay(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that weight decay should reach, and those it should not: biases and the gains of norms."""
    free = {
        parameter
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(part, NORMS) or name.split("_")[0] == "bias"
    }
    parameters = list(module.parameters())
    return [p for p in parameters if p not in free], [p for p in parameters if p in free]


class HomeworkModule(LightningModule):
    """What every homework's module shares. A homework adds `build`, its steps, and, if it likes, `draw` and `tables`.

    The network is built when the data has told its facts (number of features, classes, ...), or from the checkpoint,
    which holds them: it predicts without the training data.

    Args:
        optimizer: Called with the parameters; from YAML any class_path, such as SGD or AdamW.
    """

    homework: ClassVar[str]
    monitor: ClassVar[str]
    """The validation metric that chooses the best checkpoint."""
    mode: ClassVar[str] = "min"
    members_in_one_pass: ClassVar[bool] = False
    """Whether all folds can be trained in one pass; if not, `leeml kfold` trains them one after the other."""

    def __init__(self, optimizer: OptimizerCallable = torch.optim.AdamW) -> None:
        super().__init__()
        self.new_optimizer = optimizer
        self.facts: dict[str, Any] | None = None
        self._train_loss = torch.zeros(())
        self._train_steps = 0

    def build(self, facts: dict[str, Any]) -> None:
        """Create networks and metrics from what the data knows."""
        raise NotImplementedError

    def draw(self) -> dict[str, Figure]:
        """Pictures of the last validation, test or prediction: name -> figure."""
        return {}

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Tables of the last validation or test, of a few thousand rows at most: name -> (columns, rows)."""
        return {}

    def configure_model(self) -> None:
        """Build from the datamodule's facts; Lightning may call this more than once."""
        facts = getattr(getattr(self._trainer, "datamodule", None), "facts", None)
        if self.facts is None and facts is not None:
            self._use(facts)

    def _use(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.build(facts)

    def configure_optimizers(self) -> Optimizer:
        """The injected optimiser; its weight decay, if any, leaves out biases and norms."""
        optimizer = self.new_optimizer(self.parameters())
        if not optimizer.defaults.get("weight_decay"):
            return optimizer
        decayed, free = split_decay(self)
        return self.new_optimizer([{"params": decayed}, {"params": free, "weight_decay": 0.0}])

    def global_mean(self, total: Tensor, count: int) -> Tensor:
        """Mean over the rows of all ranks, scaled so that DDP's average of gradients is its exact gradient.

        Args:
            total: Sum of this rank's losses.
            count: Rows behind it.
        """
        world = self.trainer.world_size
        if world == 1:
            return total / count
        rows = torch.tensor(float(count), device=self.device)
        return total * world / self.trainer.strategy.reduce(rows, reduce_op="sum")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make this step's noise a pure function of (seed, epoch, batch, rank), so that a resumed run repeats it."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        for part in (self.current_epoch, batch_idx, self.global_rank):
            seed = (seed * 1_000_003 + part) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def track(self, loss: Tensor) -> Tensor:
        """Add a step's loss to the epoch's mean, without waiting for the device; returns the loss."""
        self._train_loss = self._train_loss.to(loss.device) + loss.detach()
        self._train_steps += 1
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean training loss of the epoch."""
        if self._train_steps:
            self.log("train/loss", self._train_loss / self._train_steps, sync_dist=True, prog_bar=True)
        self._train_loss, self._train_steps = torch.zeros_like(self._train_loss), 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the facts in, so that the checkpoint is whole, and in the middle of an epoch the losses so far."""
        checkpoint["homework"], checkpoint["facts"] = self.homework, self.facts
        checkpoint["train_loss"] = self._train_loss, self._train_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build from the checkpoint's facts where the data has not told them.

        Raises:
            MisconfigurationException: the checkpoint belongs to another homework, or to none of ours.
        """
        found = checkpoint.get("homework", "something else")
        if found != self.homework:
            raise MisconfigurationException(f"this is a checkpoint of {found}, the model is of {self.homework}")
        if self.facts is None:
            self._use(checkpoint["facts"])
        self._train_loss, self._train_steps = checkpoint.get("train_loss", (torch.zeros(()), 0))
