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

from modules.nets.conformer import MaskedBatchNorm

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, MaskedBatchNorm)


def split_decay(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that weight decay should reach, and those it should not: biases and the gains of norms."""
    free = {
        parameter
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(part, NORMS) or "bias" in name.split("_")
    }
    parameters = list(module.parameters())
    return [p for p in parameters if p not in free], [p for p in parameters if p in free]


def allow_clipping(optimizer: Optimizer) -> None:
    """Let the gradients of a fused optimizer be clipped under mixed precision, which Lightning refuses otherwise.

    Fused optimizers could undo fp16's scaling of the loss within their step, after the clipping; now the scaler does
    it before, as with other optimizers.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


class HomeworkModule(LightningModule):
    """What every homework's module shares. A homework adds `build`, its steps, and, if it likes, `draw` and `tables`.

    The data hands its facts over (number of features, classes, ...): `trainer.fit(module, data)` does it, or call
    `expect(data.facts)`. Lightning then calls `configure_model`, which builds the network. A checkpoint holds the
    facts, too: it predicts without the training data.

    Args:
        optimizer: Called with the parameters; from YAML any class_path, such as SGD. Default: AdamW. (A class as a
            default value would leave its own arguments, as weight decay, to the class that a config names instead.)
    """

    homework: ClassVar[str]
    monitor: ClassVar[str]
    """The validation metric that chooses the best checkpoint."""
    mode: ClassVar[str] = "min"
    members_in_one_pass: ClassVar[bool] = False
    """Whether all folds can be trained in one pass; if not, `leeml kfold` trains them one after the other."""

    def __init__(self, optimizer: OptimizerCallable | None = None) -> None:
        super().__init__()
        self.new_optimizer: OptimizerCallable = optimizer or torch.optim.AdamW
        self.facts: dict[str, Any] | None = None
        self.built = False
        self.compiled = False
        """Whether torch.compile has seen the networks; the Compiled callback sets it."""
        self._train_sums = torch.zeros(4)  # of this epoch so far: losses, steps, right answers, answers
        self._counts: list[Any] = []  # rows or tokens of each batch of an accumulated step, over all ranks
        self._overfits = False
        self.learning_rate: float | None = None
        """Set by Lightning's Tuner: wins over the optimizer's own rate."""

    def build(self, facts: dict[str, Any]) -> None:
        """Create networks and metrics from what the data knows."""
        raise NotImplementedError

    def draw(self) -> dict[str, Figure]:
        """Pictures of the last validation, test or prediction: name -> figure."""
        return {}

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Tables of the last validation or test, of a few thousand rows at most: name -> (columns, rows)."""
        return {}

    def expect(self, facts: dict[str, Any]) -> None:
        """Take the facts of the data, which `configure_model` builds from. HomeworkData.setup calls it.

        Raises:
            MisconfigurationException: the network is built already, from other facts.
        """
        if self.built:
            raise MisconfigurationException(
                f"this {type(self).__name__} is built already, from the facts it has; make a new one for other data"
            )
        self.facts = facts

    def configure_model(self) -> None:
        """Build the network from the facts, if there are some yet; Lightning may call this more than once."""
        if self.facts is not None and not self.built:
            self.build(self.facts)
            self.built = True

    def _need_facts(self) -> None:
        """Say in one line that neither a datamodule, nor the user, nor a checkpoint has handed facts over."""
        if not self.built:
            raise MisconfigurationException(
                f"{type(self).__name__} has no facts of the data: give the trainer the datamodule, trainer.fit(model, "
                "datamodule=data), or hand them over before: data.setup('fit'), then model.expect(data.facts)"
            )

    on_validation_start = on_test_start = on_predict_start = _need_facts

    def setup(self, stage: str) -> None:
        """Take over overfit_batches: Lightning would put a sampler of its own in place of that of our loaders.

        Its limits of batches stay, and `on_train_epoch_start` keeps the order of the first epoch. A share is one of the
        training batches alone: a validation may be a single batch.
        """
        trainer: Any = self.trainer
        if stage == "fit" and trainer.overfit_batches:
            if isinstance(trainer.overfit_batches, float):
                trainer.limit_val_batches = 1.0
            self._overfits, trainer.overfit_batches = True, 0

    def on_train_epoch_start(self) -> None:
        """With overfit_batches, every epoch has the batches of the first, noise and crops included."""
        sampler: Any = getattr(self.trainer.train_dataloader, "sampler", None)
        if self._overfits and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(0)

    def configure_optimizers(self) -> Optimizer:
        """The injected optimiser of all parameters."""
        self._need_facts()
        return self.optimizer_of(self)

    def optimizer_of(self, part: nn.Module) -> Optimizer:
        """The injected optimiser of a part; its weight decay, if any, leaves out biases and norms.

        A module with several optimizers, such as a GAN, gives its `configure_optimizers` one call for each part.
        """
        optimizer = self.new_optimizer(part.parameters())
        if optimizer.defaults.get("weight_decay"):
            decayed, free = split_decay(part)
            optimizer = self.new_optimizer([{"params": decayed}, {"params": free, "weight_decay": 0.0}])
        for group in optimizer.param_groups if self.learning_rate is not None else ():
            group["lr"] = self.learning_rate
        if getattr(self._trainer, "gradient_clip_val", None):  # there is no trainer where optimizers are only looked at
            allow_clipping(optimizer)
        return optimizer

    def global_mean(self, total: Tensor, count: int) -> Tensor:
        """Mean over what counts (rows, tokens) of all ranks, scaled so that DDP's average of gradients is exact.

        Where gradients are accumulated, it is the mean over all batches of the optimizer step: each is divided by the
        count of the first, and `on_before_optimizer_step` fixes the scale when that of all is known.

        Args:
            total: Sum of this rank's losses.
            count: Rows or tokens behind it.
        """
        world, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if world > 1:
            everywhere = torch.full((), float(count), device=self.device)  # no copy to wait for
            counted: Any = self.trainer.strategy.reduce(everywhere, reduce_op="sum")
        else:
            counted = count
        if parts > 1:
            self._counts.append(counted)
            counted = self._counts[0]
        return total * world / counted

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by what was counted in all accumulated batches."""
        if self._counts:
            scale = self.trainer.accumulate_grad_batches * self._counts[0] / sum(self._counts)
            grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            if grads:  # a step that is left out has none
                torch._foreach_mul_(grads, scale)  # a launch for all of them together
            self._counts = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make this step's noise a pure function of (seed, epoch, batch, rank), so that a resumed run repeats it."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        for part in (self.current_epoch, batch_idx, self.global_rank):
            seed = (seed * 1_000_003 + part) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def track(self, loss: Tensor, right: Tensor | None = None) -> Tensor:
        """Add a step to the epoch's means, without waiting for the device; returns the loss.

        Args:
            loss: Of the step, ().
            right: Which answers are right, bool of any shape; None: nothing is counted.
        """
        counts = self._counts  # where gradients are accumulated, global_mean divided by the first batch's
        mean = loss.detach().float()
        if counts:
            mean = mean * (counts[0] / counts[-1])
        one = torch.ones_like(mean)
        found, answers = (one * 0, one * 0) if right is None else (right.sum(dtype=mean.dtype), one * right.numel())
        new = torch.stack([mean, one, found, answers])
        new = torch.where(mean - mean == 0, new, 0)  # a step that is not finite is not made, and not counted either
        self._train_sums = self._train_sums.to(loss.device) + new
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean training loss of the epoch, and the share of right answers where they were counted."""
        everywhere = self.trainer.strategy.reduce(self._train_sums, reduce_op="sum")
        loss, steps, right, answers = everywhere.tolist()
        if steps:
            self.log("train/loss", loss / steps, sync_dist=True, prog_bar=True)
        if answers:
            self.log("train/accuracy", right / answers, sync_dist=True)
        self._train_sums = torch.zeros_like(self._train_sums)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the facts in, so that the checkpoint is whole, and in the middle of an epoch the sums so far."""
        checkpoint["homework"], checkpoint["facts"] = self.homework, self.facts
        checkpoint["train_sums"] = self._train_sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build from the checkpoint's facts where the data has not told them.

        Raises:
            MisconfigurationException: the checkpoint belongs to another homework, or to none of ours.
        """
        found = checkpoint.get("homework", "something else")
        if found != self.homework:
            raise MisconfigurationException(f"this is a checkpoint of {found}, the model is of {self.homework}")
        if self.facts is None:
            self.expect(checkpoint["facts"])
        HomeworkModule.configure_model(self)
        self._train_sums = checkpoint.get("train_sums", torch.zeros(4))
