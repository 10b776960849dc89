"""How much of the truth a one-shot translator is shown in training, as a function of the optimizer step."""

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import schedules
from callbacks.steps import steps_done, steps_in_run


@runtime_checkable
class Glances(Protocol):
    """A module that is shown a share of the words it got wrong, 0 to 1."""

    glance: float


class AnnealedGlance(Callback):
    """Brings `glance` of a module evenly from `first` to `last` over the run (Qian et al. 2021, arXiv 2008.07905).

    The paper goes from 0.5 to 0.3, so that the network leans ever less on words that it will not have. It is a function
    of the step alone, so a resumed run goes on exactly. Logged as `glance`.

    Args:
        first, last: Shares of the wrong words, from 0 to 1. The first one is above 0: it decides how a network is
            built.
        total: Optimizer steps from the one to the other. Default: the run.
    """

    def __init__(self, first: float = 0.5, last: float = 0.3, total: int | None = None) -> None:
        if not 0 < first <= 1 or not 0 <= last <= 1:
            raise MisconfigurationException(f"first={first}, last={last}: expected shares, above 0 to 1, and 0 to 1.")
        if total is not None and total < 1:
            raise MisconfigurationException(f"total={total}: expected 1 or more steps, or null for the whole run.")
        self.first, self.last, self.total = first, last, total

    def share(self, step: int, total: int) -> float:
        """After `step` optimizer steps of `total`; `last` from the last of them on."""
        return self.last + (self.first - self.last) * schedules.linear(step, total)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module must glance, and the run must have an end."""
        if not isinstance(pl_module, Glances) or not pl_module.glance:
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has no `glance` above 0 for AnnealedGlance to change: take it for "
                "OneShotTranslator or CTCTranslator with --model.glance 0.5."
            )
        steps = self.total or steps_in_run(trainer)
        if not 0 < steps < float("inf"):
            raise MisconfigurationException("The run has no known end: set `total` of AnnealedGlance.")
        self._steps = int(steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the share of this step."""
        pl_module.glance = self.share(steps_done(trainer), self._steps)
        # as a tensor on the CPU: Lightning would copy a number to the device, and wait for it
        pl_module.log("glance", torch.tensor(pl_module.glance))
