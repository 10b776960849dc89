"""How often a module in training reads the truth instead of its own words, as a function of the optimizer step."""

from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import schedules
from callbacks.steps import steps_done, steps_in_run

DecayName = Literal["constant", "linear", "exponential", "inverse_sigmoid"]


@runtime_checkable
class ReadsItself(Protocol):
    """A module that reads the truth with some probability, else what it said itself; None where it reads neither."""

    teacher_forcing: float | None


class ScheduledSampling(Callback):
    """Sets `teacher_forcing` of any module that has it, before every training step (Bengio et al. 2015, section 2.4).

    From `begin` on, with i optimizer steps done since then:

        constant: `floor`; linear: from 1 down to `floor` at `total`; exponential: k^i;
        inverse_sigmoid: k / (k + exp(i / k));

    none below `floor`; before `begin` it is 1. It is a function of the step alone, so a resumed run goes on exactly; a
    step of several optimizers counts once. Logged as `teacher_forcing`.
    """

    def __init__(
        self,
        decay: DecayName = "inverse_sigmoid",
        floor: float = 0.0,
        total: int | None = None,
        k: float | None = None,
        begin: int = 0,
    ) -> None:
        """Check the settings.

        Args:
            decay: The shape.
            floor: Lowest probability.
            total: Optimizer steps from `begin` to `floor`; for linear. Default: the rest of the run.
            k: For exponential below 1, such as 0.9999; for inverse_sigmoid 1 or more: it falls to a half at k ln k.
            begin: Optimizer steps of plain teacher forcing first.
        """
        if decay not in get_args(DecayName):
            raise MisconfigurationException(f"decay={decay!r}: expected one of {', '.join(get_args(DecayName))}.")
        if not 0 <= floor <= 1:
            raise MisconfigurationException(f"floor={floor}: expected a probability, from 0 to 1.")
        if begin < 0 or (total is not None and total < 1):
            raise MisconfigurationException(f"begin={begin}, total={total}: expected 0 or more, and 1 or more, steps.")
        if decay == "exponential" and (k is None or not 0 < k < 1):
            raise MisconfigurationException(f"k={k}: exponential decay needs a number above 0 and below 1.")
        if decay == "inverse_sigmoid" and (k is None or k < 1):
            raise MisconfigurationException(f"k={k}: inverse_sigmoid needs a number of steps, 1 or more.")
        self.decay, self.floor, self.total, self.k, self.begin = decay, floor, total, k, begin

    def probability(self, step: int, total: int) -> float:
        """Of the truth, after `step` optimizer steps of `total`."""
        i = step - self.begin
        if i < 0:
            return 1.0
        match self.decay:
            case "constant":
                return self.floor
            case "linear":
                return schedules.linear(i, self.total or max(1, total - self.begin), floor=self.floor)
            case "exponential":
                assert self.k is not None
                return schedules.exponential(i, self.k, self.floor)
            case "inverse_sigmoid":
                assert self.k is not None
                return schedules.inverse_sigmoid(i, self.k, self.floor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module must take a probability, and a linear decay needs an end."""
        if not isinstance(pl_module, ReadsItself) or pl_module.teacher_forcing is None:
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has no `teacher_forcing` for ScheduledSampling to set."
            )
        self._steps = 0
        if self.decay == "linear" and self.total is None:
            steps = steps_in_run(trainer)
            if not 0 < steps < float("inf"):
                raise MisconfigurationException("The run has no known end: set `total` of ScheduledSampling.")
            self._steps = int(steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the probability of this step."""
        pl_module.teacher_forcing = self.probability(steps_done(trainer), self._steps)
        # as a tensor on the CPU: Lightning would copy a number to the device, and wait for it
        pl_module.log("teacher_forcing", torch.tensor(pl_module.teacher_forcing))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the module as one that reads the truth."""
        pl_module.teacher_forcing = 1.0
