"""Critical points of the training loss: gradient norm, curvature, saddle or minimum, and a step out of a saddle."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class Extremes(NamedTuple):
    """Ends of the spectrum of a symmetric matrix."""

    lowest: float
    vector: Tensor
    """Unit eigenvector (P,) of the lowest eigenvalue."""
    highest: float


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Product]:
    """Gradient (P,) of a loss, and the product of its Hessian with a vector (P,) -> (P,).

    The Hessian is never formed: H v is the gradient of g . v (Pearlmutter 1994, Neural Computation 6). The loss keeps
    its graph, so that it can still be differentiated as usual.

    Args:
        loss: (), twice differentiable; of what cannot be, such as fused attention, torch says so.
        parameters: Of any shapes, P numbers together; those that the loss does not depend on count as flat.
    """
    parts = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    gradient = _flat(parts, parameters)

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:  # the loss is linear in all parameters
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(gradient, parameters, vector, retain_graph=True, allow_unused=True)
        return _flat(parts, parameters)

    return gradient.detach(), product


def _flat(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    filled = (torch.zeros_like(p) if part is None else part for part, p in zip(parts, like, strict=True))
    return torch.cat([part.reshape(-1) for part in filled])


def lanczos(product: Product, start: Tensor, iterations: int = 40) -> Extremes:
    """Extreme eigenvalues of a symmetric matrix of which only products are known (Lanczos 1950).

    In exact arithmetic as many iterations as rows give them exactly; the outer ones are found much sooner. All
    directions are orthogonalised again in every iteration, as rounding would otherwise bring found ones back.

    Args:
        product: (P,) -> (P,)
        start: Where to begin (P,), not 0; a random direction has a part in every eigenvector.
        iterations: At most.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(iterations, len(start))):
        new = product(basis[-1])
        diagonal.append(float(new @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):  # once leaves what rounding left
            new = new - known.T @ (known @ new)
        length = float(new.norm())
        scale = max(map(abs, [*diagonal, *beside]))
        if length <= 10 * torch.finfo(new.dtype).eps * max(scale, torch.finfo(new.dtype).tiny):
            break  # the directions so far hold all that the start has a part in
        beside.append(length)
        basis.append(new / length)
    size = len(diagonal)
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, value in enumerate(beside[: size - 1]):
        small[i, i + 1] = small[i + 1, i] = value
    values, vectors = torch.linalg.eigh(small)
    vector = torch.stack(basis[:size]).T @ vectors[:, 0].to(start)
    return Extremes(float(values[0]), vector / vector.norm(), float(values[-1]))


def curvature(gradient: Tensor, product: Product, iterations: int = 40) -> Extremes:
    """Extreme eigenvalues by Lanczos from a random direction that is always the same; gradient and product as above."""
    generator = torch.Generator().manual_seed(0)  # its own: the run's noise stays what it was
    return lanczos(product, torch.randn(len(gradient), generator=generator).to(gradient), iterations)


def full_matrix(product: Product, like: Tensor) -> Tensor:
    """The matrix (P, P) behind products, one a column; `like` (P,) gives size, type and device."""
    matrix = torch.stack([product(unit) for unit in torch.eye(len(like)).to(like)])
    return (matrix + matrix.T) / 2  # rounding leaves it not quite symmetric


def minimum_ratio(eigenvalues: Tensor) -> float:
    """Share of eigenvalues (P,) that are positive (HW2-2 of 2021); what is no more than rounding is not."""
    noise = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().max()
    return float((eigenvalues > noise).double().mean())


def kind_of_point(gradient_norm: float, ratio: float, tolerance: float = 1e-3) -> str:
    """HW2-2's rule: minimum where the gradient is below the tolerance and more than half of the eigenvalues positive,
    saddle where no more than half are, none where the gradient is larger."""
    if not gradient_norm < tolerance:
        return "none"
    return "minimum" if ratio > 0.5 else "saddle"


def escape_direction(gradient: Tensor, extremes: Extremes) -> Tensor:
    """The lowest eigenvector (P,), signed so that the loss does not rise along it in first order either."""
    return -extremes.vector if float(gradient @ extremes.vector) > 0 else extremes.vector


def taylor_change(gradient: Tensor, extremes: Extremes, step: float) -> float:
    """Change of the loss that a step along `escape_direction` makes, by Taylor: t g . u + t^2 lambda / 2."""
    slope = float(gradient @ escape_direction(gradient, extremes))
    return step * slope + step**2 * extremes.lowest / 2


class CriticalPoint(Callback):
    """Looks at gradient and Hessian of the training loss in the last batch of every n-th epoch, and logs what it saw.

    Logged: critical/gradient_norm, /lowest and /highest (eigenvalues), and for at most `exact_up_to` parameters
    /minimum_ratio. It works with any module: the loss is the one about to be differentiated, of that batch, with its
    dropout and, where gradients are accumulated, divided by the number of batches; of the training set it tells
    exactly where one batch holds all of it. The network must be differentiable twice (no fused attention), all its
    parameters on one device, the loss not scaled (no 16-mixed).

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

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Measure, while the graph of the loss is there."""
        if not (trainer.is_last_batch and (trainer.current_epoch + 1) % self.every_n_epochs == 0):
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
