"""Curvature of a loss as pure functions: Hessian products, Lanczos, the minimum ratio, kinds of critical points."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
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
