"""Critical points: the lecture's saddle, and how many directions go down at the critical points of small networks."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from callbacks.curvature import (
    Extremes,
    escape_direction,
    full_matrix,
    hessian_product,
    kind_of_point,
    minimum_ratio,
    taylor_change,
)
from modules.nets.mlp import MLP
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, fact

SMALL = 1e-8
"""Gradient norm of what counts as found."""
FLAT = 1e-6
"""Eigenvalues down to minus this, relative to the largest, do not count as a way down."""


@dataclass(frozen=True)
class Settings:
    """Widths of the nets, searches for each in a seed, their iterations, the weight decay; steps out of the saddle."""

    widths: tuple[int, ...] = (1, 2, 4, 8)
    starts: int = 60
    iterations: int = 80
    decay: float = 5e-3
    steps: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)


def lecture_loss(w: Tensor) -> Tensor:
    """L = (1 - w1 w2)^2: the error of a net with two weights on the one sample x = 1, y = 1."""
    return (1 - w[0] * w[1]) ** 2


def leave_the_saddle(steps: tuple[float, ...]) -> Measurements:
    """Eigenvalues at the origin, and loss after steps along the lowest eigenvector, as it is and as Taylor has it."""
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gradient, product = hessian_product(lecture_loss(w), [w])
    values, vectors = torch.linalg.eigh(full_matrix(product, gradient))
    extremes = Extremes(float(values[0]), vectors[:, 0], float(values[-1]))
    way = escape_direction(gradient, extremes)
    return {
        "eigenvalues": values.tolist(),
        "way": way.tolist(),
        "steps": list(steps),
        "loss": [float(lecture_loss(t * way)) for t in steps],
        "taylor": [1 + taylor_change(gradient, extremes, t) for t in steps],
    }


def derivatives(net: MLP, x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (M,), gradient (M, P) and Hessian (M, P, P) of M nets side by side, one backward pass a row for all."""
    parameters = list(net.parameters())
    members = len(parameters[0])
    square = sum(p.square().view(members, -1).sum(1) for p in parameters)
    loss = (net(x.view(1, -1, 1).expand(members, -1, 1)).squeeze(-1) - y).square().mean(1) + decay * square

    def flat(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part.reshape(members, -1) for part in parts], dim=1)

    gradient = flat(torch.autograd.grad(loss.sum(), parameters, create_graph=True))
    columns = gradient.sum(0)  # members share nothing, so a sum over them keeps their derivatives apart
    rows = [flat(torch.autograd.grad(column, parameters, retain_graph=True)) for column in columns]
    return loss.detach(), gradient.detach(), torch.stack(rows, dim=1)


def critical_points(width: int, starts: int, iterations: int, decay: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (M,), gradient norm (M,) and eigenvalues (M, P) where searches from random weights end.

    Tanh nets learn HW2-2's sin(5 pi x) / (5 pi x). Levenberg-Marquardt makes the squared gradient norm small, whatever
    the loss does: it ends at saddles as readily as at minima. The weight decay keeps flat directions out.
    """
    x = torch.linspace(0.01, 1, 40, dtype=torch.float64)
    y = torch.sin(5 * torch.pi * x) / (5 * torch.pi * x)
    net = MLP(starts, 1, 1, [width], "tanh").double()
    generator = torch.Generator().manual_seed(seed)
    size = 0.2 + 1.5 * torch.rand((starts, 1), generator=generator, dtype=torch.float64)
    count = sum(p[0].numel() for p in net.parameters())
    place = size * torch.randn((starts, count), generator=generator, dtype=torch.float64)

    def at(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            sizes = [p[0].numel() for p in net.parameters()]
            for p, part in zip(net.parameters(), place.split(sizes, dim=1), strict=True):
                p.copy_(part.view_as(p))
        return derivatives(net, 4 * x - 2, y, decay)

    loss, gradient, hessian = at(place)
    damping = torch.full((starts,), 1e-2, dtype=torch.float64)
    for _ in range(iterations):
        values, vectors = torch.linalg.eigh(hessian)
        parts = (vectors.mT @ gradient.unsqueeze(2)).squeeze(2)
        step = (vectors @ (values * parts / (values.square() + damping.unsqueeze(1))).unsqueeze(2)).squeeze(2)
        new = at(place - step)
        better = new[1].norm(dim=1) < gradient.norm(dim=1)
        damping = torch.where(better, damping / 4, damping * 4).clamp(1e-20, 1e6)
        place = torch.where(better.unsqueeze(1), place - step, place)
        loss, gradient = torch.where(better, new[0], loss), torch.where(better.unsqueeze(1), new[1], gradient)
        hessian = torch.where(better.view(-1, 1, 1), new[2], hessian)
    return loss, gradient.norm(dim=1), torch.linalg.eigvalsh(hessian)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """The lecture's saddle, and loss and share of positive eigenvalues of the critical points that were reached."""
    points = []
    for width in settings.widths:
        found = critical_points(width, settings.starts, settings.iterations, settings.decay, seed)
        for loss, norm, values in zip(found[0].tolist(), found[1].tolist(), found[2], strict=True):
            if norm < SMALL:
                ratio = minimum_ratio(values)
                down = float((values < -FLAT * values.abs().max()).double().mean())
                points.append([width, loss, ratio, down, kind_of_point(norm, ratio)])
    return {"saddle": leave_the_saddle(settings.steps), "points": points, "widths": list(settings.widths)}


def shares(measurements: list[Measurements], width: int) -> list[float]:
    """Share of a width's critical points with a way down, one a seed."""
    found = [[p[3] > 0 for p in m["points"] if p[0] == width] for m in measurements]
    return [float(np.mean(points)) if points else math.nan for points in found]


def judge(measurements: list[Measurements]) -> list[Finding]:
    """The saddle by its closed form; the points by how many have a way down and whether those lie higher."""
    saddle = measurements[0]["saddle"]
    t = np.array(saddle["steps"])
    widths = measurements[0]["widths"]
    last = [[p for p in m["points"] if p[0] == widths[-1]] for m in measurements]
    rank = [float(spearmanr([p[1] for p in points], [p[3] for p in points])[0]) for points in last]
    grows = [b - a for a, b in zip(shares(measurements, widths[0]), shares(measurements, widths[-1]), strict=True)]
    parameters = 3 * widths[-1] + 1
    return [
        fact("at the origin the eigenvalues are -2 and 2 (error)",
             float(np.abs(np.array(saddle["eigenvalues"]) - [-2, 2]).max()), 1e-12),
        fact("a step t along the lowest eigenvector changes the loss as Taylor says, up to t^4 / 4 (error)",
             float(np.abs(np.array(saddle["loss"]) - saddle["taylor"] - t**4 / 4).max()), 1e-12),
        effect(f"most critical points of the net with {parameters} parameters have a way down (share)",
               shares(measurements, widths[-1]), 0.5),
        effect(f"the share is larger than with {3 * widths[0] + 1} parameters (difference)", grows, 0.1),
        effect("the higher the loss, the more directions go down (rank correlation)", rank, 0.2),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """The lecture's surface with the way out, and loss against directions down."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    axis = np.linspace(-1.6, 1.6, 161)
    w1, w2 = np.meshgrid(axis, axis)
    left.contourf(w1, w2, np.sqrt((1 - w1 * w2) ** 2), 24, cmap="viridis")
    way = np.array(measurements[0]["saddle"]["way"])
    left.plot(0, 0, "o", color="white")
    for sign in (-1, 1):
        left.annotate("", sign * way, (0, 0), arrowprops={"arrowstyle": "->", "color": "white", "linewidth": 2})
    left.set(xlabel="w1", ylabel="w2", aspect="equal", title="(1 - w1 w2)²: saddle, way out")
    for width in measurements[0]["widths"]:
        points = [p for m in measurements for p in m["points"] if p[0] == width]
        right.plot([p[1] for p in points], [p[3] for p in points], "o", alpha=0.5, markersize=4,
                       label=f"{3 * width + 1} parameters")  # fmt: skip
    right.set(xlabel="loss", ylabel="share of eigenvalues below 0", title="critical points of small tanh nets")
    right.legend(fontsize=8)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Critical points by size of the net."""
    rows = []
    for width in measurements[0]["widths"]:
        points = [p for m in measurements for p in m["points"] if p[0] == width]
        kinds = [p[4] for p in points]
        rows.append([
            3 * width + 1, len(points), f"{np.mean([p[3] > 0 for p in points]):.0%}",
            f"{np.mean([p[2] for p in points]):.2f}", f"{kinds.count('minimum')} / {kinds.count('saddle')}",
        ])  # fmt: skip
    return ["parameters", "critical points", "with a way down", "mean minimum ratio", "HW2-2: minimum / saddle"], rows


STUDY = Study(
    number=3,
    heading="Local minima and Saddle point",
    chinese="區域最小值與鞍點",
    claim="Where the gradient is zero the Hessian tells a saddle from a minimum and shows the way out; in many "
    "dimensions most critical points are saddles, the more so the higher the loss.",
    source="Lecture 2 of 2021; Dauphin et al. 2014, NeurIPS (arXiv 1406.2572), figure 1; HW2-2 of 2021",
    idea="Near a critical point the loss is a quadratic form. With an eigenvector u of a negative eigenvalue λ, a "
    "step t u changes the loss by t²λ/2: down. A minimum needs <em>every</em> eigenvalue to be positive, the less "
    "likely the more there are. HW2-2 calls a point a minimum where more than half are. The points come from "
    "searching for small gradients, not for small losses, from random weights, on a loss with some weight decay: "
    "without it most searches end far out, where everything is flat.",
    formula="L(θ + t u) ≈ L(θ) + t gᵀu + ½ t² uᵀH u; with g = 0 and H u = λ u: L + ½ λ t²",
    varies="parameters of the net; loss at the critical point",
    code=(
        "callbacks/curvature.py:hessian_product",
        "callbacks/curvature.py:lanczos",
        "callbacks/critical_points.py:CriticalPoint",
    ),
    quick=Settings(),
    full=Settings(widths=(1, 2, 4, 8, 16), starts=300),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    seeds=5,
)
