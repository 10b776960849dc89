"""Critical points of the training loss: gradient norm, curvature, saddle or minimum, and a step out of a saddle."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.curvature import (
    Extremes,
    curvature,
    escape_direction,
    full_matrix,
    hessian_product,
    kind_of_point,
    minimum_ratio,
    taylor_change,
)


class CriticalPoint(Callback):
    """Looks at gradient and Hessian of the training loss in the last batch of every n-th epoch, and logs what it saw.

    Logged: critical/gradient_norm, /lowest and /highest (eigenvalues), and for at most `exact_up_to` parameters
    /minimum_ratio. It works with any module: the loss is the one about to be differentiated, of that batch, with its
    dropout and, where gradients are accumulated, divided by the number of batches; of the training set it tells
    exactly where one batch holds all of it. A compiled network works uncompiled in that batch. The network must be
    differentiable twice (no fused attention), all its parameters on one device, the loss not scaled (no 16-mixed).

    Args:
        every_n_epochs: 1 looks in every epoch.
        tolerance: Gradient norm below which a point counts as critical (1e-3 in HW2-2).
        iterations: Of Lanczos, two passes through the network each.
        exact_up_to: Parameters up to which all eigenvalues are computed, one Hessian product a parameter.
        escape_step: Length of a step along the lowest eigenvector, made after the optimizer's where the point is
            critical and this eigenvalue negative; logged with it: critical/predicted_change of the loss. 0: none.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        tolerance: float = 1e-3,
        iterations: int = 40,
        exact_up_to: int = 1000,
        escape_step: float = 0.0,
    ) -> None:
        for name, value, least in (("every_n_epochs", every_n_epochs, 1), ("iterations", iterations, 1)):
            if value < least:
                raise MisconfigurationException(f"CriticalPoint: {name} is {value}: expected at least {least}")
        for name, number in (("tolerance", tolerance), ("escape_step", escape_step), ("exact_up_to", exact_up_to)):
            if number < 0:
                raise MisconfigurationException(f"CriticalPoint: {name} is {number}: expected 0 or more")
        self.every_n_epochs, self.tolerance, self.iterations = every_n_epochs, tolerance, iterations
        self.exact_up_to, self.escape_step = exact_up_to, escape_step
        self.kind = ""
        """What the last look found: minimum, saddle or none (HW2-2's rule); empty where the ratio was not computed."""
        self._move: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a scaled loss, whose curvature would be scaled too."""
        if trainer.precision == "16-mixed":
            raise MisconfigurationException(
                "CriticalPoint cannot be used with trainer.precision 16-mixed; use bf16-mixed"
            )

    def _looks(self, trainer: Trainer) -> bool:
        return trainer.is_last_batch and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave compiled networks aside in the batch to look at: they cannot be differentiated twice."""
        torch.compiler.set_stance("force_eager" if self._looks(trainer) else "default")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave torch as it was."""
        torch.compiler.set_stance("default")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Measure, while the graph of the loss is there."""
        if not self._looks(trainer):
            return
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        gradient, product = hessian_product(loss, parameters)
        norm = float(gradient.norm())
        found = {"gradient_norm": norm}
        if len(gradient) <= self.exact_up_to:
            values, vectors = torch.linalg.eigh(full_matrix(product, gradient))
            extremes = Extremes(float(values[0]), vectors[:, 0], float(values[-1]))
            found["minimum_ratio"] = minimum_ratio(values)
            self.kind = kind_of_point(norm, found["minimum_ratio"], self.tolerance)
        else:
            extremes = curvature(gradient, product, self.iterations)
            self.kind = ""
        found |= {"lowest": extremes.lowest, "highest": extremes.highest}
        if self.escape_step and norm < self.tolerance and extremes.lowest < 0:
            self._move = self.escape_step * escape_direction(gradient, extremes)
            found["predicted_change"] = taylor_change(gradient, extremes, self.escape_step)
        pl_module.log_dict({f"critical/{name}": value for name, value in found.items()}, on_step=False, on_epoch=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the step out of the saddle, if there is one to make."""
        torch.compiler.set_stance("default")
        if self._move is None:
            return
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        with torch.no_grad():
            parts = self._move.split([p.numel() for p in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.add_(part.view_as(parameter))
        self._move = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the last look found."""
        seen = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("critical/")}
        if seen:
            numbers = ", ".join(f"{name.partition('/')[2]} {value:.3g}" for name, value in seen.items())
            named = f"{self.kind} by HW2-2's rule" if self.kind else "not all eigenvalues known"
            rank_zero_info(f"critical point: {named}: {numbers}")
