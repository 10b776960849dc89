"""The learning rate as a function of the optimizer step, for any LightningModule."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from callbacks import schedules
from callbacks.steps import steps_in_run

ScheduleName = Literal["constant", "linear", "cosine", "inverse_sqrt", "noam"]

STEPS_DONE = "schedule_step"  # in the optimizer's first param group


class WarmupScheduler(Callback):
    """Warms the learning rate up, then follows a schedule of `callbacks/schedules.py`.

    The rate of a param group is its own base rate times the factor of the step. The module's `configure_optimizers`
    returns its optimizers alone, with no scheduler; then this is all:

        from lightning.pytorch import Trainer
        from callbacks.warmup import WarmupScheduler
        Trainer(max_epochs=10, callbacks=[WarmupScheduler("cosine", warmup=0.1)]).fit(module, data)

    Steps are the optimizer's own, not batches, so gradient accumulation needs no care, and with manual optimization
    every optimizer has its own count. Count and base rate (`initial_lr`, as torch's schedulers name it) live in the
    param groups: they are saved with the optimizer, and a resumed run goes on exactly where it stopped, with the
    base rate it began with. `LearningRateMonitor` logs the rates.
    """

    def __init__(
        self,
        schedule: ScheduleName = "cosine",
        warmup: int | float = 0,
        total: int | None = None,
        floor: float = 0.0,
        d_model: int | None = None,
        factor: float = 1.0,
    ) -> None:
        """Check the settings.

        Args:
            schedule: The shape after the warm-up. `noam` brings its own scale, so give the optimizer `lr: 1.0`.
            warmup: Optimizer steps (an integer: 1000), or a share of `total` (with a decimal point: 0.1).
            total: Optimizer steps from the first to the end value. Default: the length of the run (with manual
                optimization taken as one step a batch for every optimizer).
            floor: End value, as a share of the base rate; for linear, cosine and inverse_sqrt.
            d_model: Width of the model; for noam.
            factor: Noam's factor (the course: 2); for noam.
        """
        share = isinstance(warmup, float)
        if schedule not in get_args(ScheduleName):
            raise MisconfigurationException(
                f"schedule={schedule!r}: expected one of {', '.join(get_args(ScheduleName))}."
            )
        if share and not 0 <= warmup <= 1:
            raise MisconfigurationException(
                f"warmup={warmup}: a number with a decimal point is a share of the run, from 0.0 to 1.0; "
                "give a number of steps as an integer."
            )
        if warmup < 0:
            raise MisconfigurationException(f"warmup={warmup}: expected 0 or more steps.")
        if total is not None and total < 1:
            raise MisconfigurationException(f"total={total}: expected 1 or more steps, or null for the whole run.")
        if not 0 <= floor <= 1:
            raise MisconfigurationException(f"floor={floor}: expected a share of the base rate, from 0.0 to 1.0.")
        if schedule == "noam" and (d_model is None or d_model < 1):
            raise MisconfigurationException(f"d_model={d_model}: noam needs the width of the model, 1 or more.")
        if not 0 < factor < float("inf"):
            raise MisconfigurationException(f"factor={factor}: expected a positive number.")
        self.schedule, self.warmup, self.total = schedule, warmup, total
        self.floor, self.d_model, self.factor = floor, d_model, factor
        self._needs_total = share or schedule in ("linear", "cosine")
        self._factor_at: Callable[[int], float]
        self._hooks: list[RemovableHandle] = []
        self._depth = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the rates of the first step; from then on, the end of every optimizer step sets those of the next."""
        if trainer.lr_scheduler_configs:
            raise MisconfigurationException(
                f"{type(pl_module).__name__}.configure_optimizers returns a learning-rate scheduler, and the trainer "
                "has a WarmupScheduler: both would set the rate. Drop one of them."
            )
        if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "The trainer has a WarmupScheduler and StochasticWeightAveraging, and both would set the rate. Drop "
                "one of them; EMAWeightAveraging and AverageOfLast leave it alone."
            )
        if sum(isinstance(callback, WarmupScheduler) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException("The trainer has more than one WarmupScheduler. Drop all but one.")
        self._factor_at = self._build(self._total(trainer) if self._needs_total else 0)
        self._remove_hooks()
        done = trainer.global_step // max(1, len(trainer.optimizers))  # global_step adds up all optimizers
        for optimizer in trainer.optimizers:
            if not all("lr" in group for group in optimizer.param_groups or [{}]):  # no group: no real optimizer
                raise MisconfigurationException(f"{optimizer!r} has no learning rate for WarmupScheduler to set.")
            optimizer.param_groups[0].setdefault(STEPS_DONE, done)
            self._set_rates(optimizer)
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizers."""
        self._remove_hooks()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers."""
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._depth = 0

    def _total(self, trainer: Trainer) -> int:
        """Optimizer steps in the run; asked at its start, since asking earlier loses a stateful loader's state."""
        if self.total is not None:
            return self.total
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "With GradientAccumulationScheduler the number of steps of the run is not known beforehand, and "
                f"schedule={self.schedule!r} with warmup={self.warmup} needs it: set `total` of WarmupScheduler."
            )
        steps = steps_in_run(trainer)
        if not 0 <= steps < float("inf"):  # endless: inf, or -1 where the loader has no length
            raise MisconfigurationException(
                f"The run has no known end, and schedule={self.schedule!r} with warmup={self.warmup} needs one: "
                "set `total` of WarmupScheduler, or max_steps of the trainer."
            )
        return int(steps)

    def _build(self, total: int) -> Callable[[int], float]:
        """The schedule with everything settled but the step."""
        warmup = round(self.warmup * total) if isinstance(self.warmup, float) else self.warmup
        match self.schedule:
            case "constant":
                return partial(schedules.constant, warmup=warmup)
            case "linear":
                return partial(schedules.linear, total=total, warmup=warmup, floor=self.floor)
            case "cosine":
                return partial(schedules.cosine, total=total, warmup=warmup, floor=self.floor)
            case "inverse_sqrt":
                return partial(schedules.inverse_sqrt, warmup=warmup, floor=self.floor)
            case "noam":
                assert self.d_model is not None
                return partial(schedules.noam, d_model=self.d_model, warmup=warmup, factor=self.factor)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:  # else the end of super().step() inside the step of a subclass: torch calls hooks for both
            optimizer.param_groups[0][STEPS_DONE] += 1
            self._set_rates(optimizer)

    def _set_rates(self, optimizer: Optimizer) -> None:
        factor = self._factor_at(optimizer.param_groups[0][STEPS_DONE])
        for group in optimizer.param_groups:
            if "initial_lr" not in group:  # also a group that came in during the run
                group["initial_lr"] = float(group["lr"])
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], torch.Tensor):  # compiled and capturable optimizers hold on to it
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
