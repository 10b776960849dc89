"""Notices a loss, gradient, weight or metric that is not a finite number, before it is kept."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks.checkpoints import LastCheckpoint
from callbacks.steps import steps_done

Policy = Literal["stop", "skip", "lower"]

LOWER = 0.5  # the rate is multiplied by this
PATIENCE = 20  # steps in a row that cannot be made: skipping them leads nowhere
SMALLEST_SCALE = 1e-6  # of fp16: below it no gradient was finite for dozens of steps
AT_ONCE = ("cpu",)  # devices that nobody has to wait for
SHOWN = 5


class NotFiniteError(MisconfigurationException):
    """A number that training or its judgement rests on is infinite or not a number."""


class FiniteNumbers(Callback):
    """Makes no optimizer step with a loss or gradient that is not finite, and judges nothing by such a metric.

    What then happens is the policy:

        stop: name the step and what was not finite, save the state before the step, end the run;
        skip: leave the step out, count it (`skipped_steps`), go on;
        lower: the same, and halve the learning rate.

    A step left out changes neither weights, nor the optimizer's state, nor running statistics of batch norm. A metric
    (a loss, or of the kind that a callback monitors: others may be undefined) or weight that is not finite ends the run
    under each policy, before a checkpoint is written.

    On the CPU each step is looked at before it is made. On other devices the flags stay there and are read where the
    host waits in any case: at steps that are logged, before validation and checkpoints, at the end of an epoch. Fused
    optimizers leave the step out on the device; others get a gradient of zero for it.

    With fp16 an infinite gradient is what the loss scale is there for: it skips the step and is no mistake, unless the
    scale has become so small that no step can succeed. Sharded strategies (FSDP) are judged by metrics and weights.

    Args:
        policy: What to do about a step.
    """

    def __init__(self, policy: Policy = "stop") -> None:
        if policy not in get_args(Policy):
            raise MisconfigurationException(f"policy={policy!r}: expected one of {', '.join(get_args(Policy))}.")
        self.policy = policy
        self._forget()
        self.skipped = 0
        """Optimizer steps that were not made."""
        self._in_a_row = 0

    def _forget(self) -> None:
        self._bad: Tensor | None = None  # of each parameter with a gradient, in the first step since the last look
        self._first: Tensor | None = None  # number of that step, -1 for none
        self._count: Tensor | None = None
        self._longest: Tensor | None = None  # most steps in a row
        self._names: list[str] = []
        self._rows: list[tuple[int, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the counts of the run that is resumed."""
        self.skipped = state_dict["skipped"]

    # steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what a step would change beside the weights."""
        self._forget()
        self._in_a_row = 0
        self._streak: Tensor | None = None  # the same up to the last step, on the device
        self._losses: list[Tensor] = []
        self._parameters = {parameter: name for name, parameter in pl_module.named_parameters()}
        self._running = [
            buffer
            for name, buffer in pl_module.named_buffers()
            if name.rpartition(".")[2].startswith("running_") or name.endswith("num_batches_tracked")
        ]
        self._before: list[Tensor] = []
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._watches = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch, and the running statistics before the first one of a step."""
        self._batch = batch, batch_idx
        if self._running and not self._losses:
            self._before = [buffer.clone() for buffer in self._running]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss of a batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave the step out where its loss or its gradient is not finite."""
        losses, self._losses = self._losses, []
        if not self._watches or self._scaler is not None:
            return
        everywhere = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        parameters = [p for p in everywhere if p.numel()]
        numbers: list[Any] = [p.grad._values() if p.grad.is_sparse else p.grad for p in parameters]
        if trainer.world_size == 1:  # else ranks would not agree; the gradient is of all
            numbers += losses
        if not numbers:
            return
        norms = torch._foreach_norm(numbers, math.inf)
        sizes = torch.stack(norms if len({size.dtype for size in norms}) == 1 else [size.float() for size in norms])
        if sizes.device.type in AT_ONCE:
            self._judge(trainer, pl_module, optimizer, parameters, sizes, losses)
        else:
            self._mark(trainer, optimizer, parameters, sizes)

    def _judge(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, parameters: list[nn.Parameter],
        sizes: Tensor, losses: list[Tensor],
    ) -> None:  # fmt: skip
        if math.isfinite(float(sizes.max())):
            self._in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # torch's optimizers leave such parameters as they are
        for buffer, before in zip(self._running, self._before, strict=bool(self._before)):
            buffer.copy_(before)
        bad = [self._parameters.get(p, "?") for p, size in zip(parameters, sizes, strict=False) if not size.isfinite()]
        what = self._trace(trainer, module, losses) or _gradient(bad)
        self._in_a_row += 1
        self._found(trainer, module, steps_done(trainer), 1, what)

    def _mark(self, trainer: Trainer, optimizer: Optimizer, parameters: list[nn.Parameter], sizes: Tensor) -> None:
        """The same without waiting for the device."""
        wrong = ~sizes.isfinite()
        any_wrong = wrong.any()
        if self._first is None or self._bad is None or len(self._bad) != len(wrong):
            self._first = sizes.new_full((), -1, dtype=torch.long)
            self._bad, self._count = torch.zeros_like(wrong), torch.zeros_like(self._first)
            self._longest = torch.zeros_like(self._first)
            self._names = [self._parameters.get(p, "?") for p in parameters]
        assert self._count is not None
        assert self._longest is not None
        new = any_wrong & (self._first < 0)
        self._first = torch.where(new, steps_done(trainer), self._first)
        self._bad = torch.where(new, wrong, self._bad)
        self._count = self._count + any_wrong
        before = torch.zeros_like(self._first) if self._streak is None else self._streak
        self._streak = torch.where(any_wrong, before + 1, 0)
        self._longest = torch.maximum(self._longest, self._streak)
        if isinstance(self._batch[0], dict) and isinstance(row := self._batch[0].get("row"), Tensor):
            self._rows.append((steps_done(trainer), row))
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = any_wrong.float()  # type: ignore[attr-defined]
        else:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.masked_fill_(any_wrong, 0)
        for buffer, old in zip(self._running, self._before, strict=bool(self._before)):
            buffer.copy_(torch.where(any_wrong, old, buffer))

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        """Read what the device has noted, where the host waits for it in any case."""
        if self._scaler is not None and self._scaler.get_scale() < SMALLEST_SCALE:
            raise NotFiniteError(
                f"step {steps_done(trainer)}: no gradient was finite for many steps, and fp16's loss scale has become "
                f"{self._scaler.get_scale():.1g}; {_ways(self.policy)}"
            )
        if self._first is None or self._bad is None or self._count is None or self._longest is None:
            return
        first, count, self._in_a_row = torch.stack((self._first, self._count, self._longest)).tolist()
        bad = self._bad.tolist()
        names, rows = self._names, [row for step, row in self._rows if step == first]
        self._forget()
        if first < 0:
            return
        loss = any(bad[len(names) :])
        what = "the loss is not finite" if loss else _gradient([n for n, b in zip(names, bad, strict=False) if b])
        self._found(trainer, module, first, count, what + (_named(rows[0]) if rows else ""))

    def _found(self, trainer: Trainer, module: LightningModule, step: int, count: int, what: str) -> None:
        self.skipped += count
        text = f"step {step}: {what}"
        if self.policy == "stop" or self._in_a_row >= PATIENCE:
            if self.policy != "stop":
                text += f"; {self._in_a_row} steps in a row could not be made"
            error = NotFiniteError(f"{text}. The step was not made; {_ways(self.policy)}")
            keepers: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            for keeper in keepers:
                if isinstance(keeper, LastCheckpoint):
                    keeper.end(error)
                    return
            raise error
        if self.policy == "lower":
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    for name in ("initial_lr", "lr"):  # the first is what WarmupScheduler multiplies
                        if name in group:
                            group[name] *= LOWER  # in place where it is a tensor
        done = "the step was left out" + (f" and the rate multiplied by {LOWER}" if self.policy == "lower" else "")
        rank_zero_warn(f"{text}; {done} ({self.skipped} so far)")

    # where the host waits in any case

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look at steps that are logged."""
        if self._first is not None and (steps_done(trainer) + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._look(trainer, pl_module)
        if self.skipped and not trainer.fit_loop._should_accumulate():
            pl_module.log("skipped_steps", torch.tensor(float(self.skipped)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before weights are judged."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last steps."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let no weight through that is not finite.

        Raises:
            NotFiniteError: names the first one.
        """
        self._look(trainer, pl_module)
        weights = {name for name, _ in pl_module.named_parameters()}
        for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
            for name, value in state.items():
                if name in weights and not bool(value.isfinite().all()):
                    raise NotFiniteError(
                        f"step {steps_done(trainer)}: the weights {name} are not finite, no checkpoint was written; "
                        f"{_ways(self.policy)}"
                    )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge nothing by a metric that is not finite.

        Raises:
            NotFiniteError: names the metric.
        """
        if trainer.sanity_checking:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = {str(getattr(callback, "monitor", "")) for callback in callbacks}
        kinds = {"loss", "mse"} | {monitor.split("/")[-1].split("_")[-1] for monitor in monitors}
        for name, value in trainer.callback_metrics.items():
            judging = name.startswith(("val", "test")) and name.split("/")[-1].split("_")[-1] in kinds
            if judging and not math.isfinite(value):
                when = f"step {steps_done(trainer) + 1}: " if trainer.state.fn == TrainerFn.FITTING else ""
                raise NotFiniteError(f"{when}{name} is {float(value)}: the model or the data is at fault; {JUDGED}")

    on_test_end = on_validation_end

    # what was it

    def _trace(self, trainer: Trainer, module: LightningModule, losses: list[Tensor]) -> str:
        """Where the loss lost its way: what of the batch, or which layer, is the first that is not finite."""
        if all(bool(loss.isfinite()) for loss in losses):
            return ""
        batch, number = self._batch
        row = batch.get("row") if isinstance(batch, dict) else None
        row = row if isinstance(row, Tensor) else None
        for key, value in batch.items() if isinstance(batch, dict) else ():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                return f"the batch's {key} is not finite{_named(_where(value, row))}"
        first: list[tuple[str, Tensor]] = []
        names = {part: name for name, part in module.named_modules() if not any(part.children())}

        def look(part: nn.Module, args: Any, output: Any) -> None:
            if not first and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                first.append((f"{names[part]} ({type(part).__name__})", output))

        hooks = [part.register_forward_hook(look) for part in names]
        try:
            with _unchanged(module, self._running), torch.compiler.set_stance("force_eager"):
                module.on_train_batch_start(batch, number)
                module.training_step(batch, number)
        except Exception:  # what cannot be run once more is named without its layer
            pass
        finally:
            for hook in hooks:
                hook.remove()
        text = f"the loss is {float(losses[-1])}"
        if not first:
            return text + _named(row)
        return f"{text}, the output of {first[0][0]} is the first that is not finite{_named(_where(first[0][1], row))}"


JUDGED = "where it comes from training, lower the rate (--model.optimizer.lr) or clip (--trainer.gradient_clip_val 1)"


@contextmanager
def _unchanged(module: LightningModule, running: list[Tensor]) -> Iterator[None]:
    """A module whose steps leave no trace: nothing logged, counted or averaged."""
    before = {name: copy.copy(value) if type(value) is list else value for name, value in vars(module).items()}
    kept = [buffer.clone() for buffer in running]
    module.__dict__["log"] = module.__dict__["log_dict"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(before)
        for buffer, value in zip(running, kept, strict=True):
            buffer.copy_(value)


def _gradient(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    of = f" of {', '.join(names[:SHOWN])}{more}" if names else ""
    return f"the gradient{of} is not finite"


def _where(value: Tensor, row: Tensor | None) -> Tensor | None:
    """Of the rows (B,) or (M, B) those that are not finite in a value of the same leading shape; else all."""
    if row is None or value.shape[: row.ndim] != row.shape:
        return row
    bad = ~value.isfinite()
    return row[bad.flatten(row.ndim).any(-1) if bad.ndim > row.ndim else bad]


def _named(row: Tensor | None) -> str:
    """The numbers of rows, in brackets."""
    if row is None:
        return ""
    numbers = list(dict.fromkeys(row.flatten().tolist()))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f" (training rows {', '.join(map(str, numbers[:SHOWN]))}{more}, from 0)"


def _ways(policy: str) -> str:
    other = " or --nonfinite skip or lower" if policy == "stop" else ""
    return (
        f"go on from the last checkpoint with --resume and a lower rate (--model.optimizer.lr), clipped gradients "
        f"(--trainer.gradient_clip_val 1){other}"
    )
