"""Critical points: the lecture's saddle, and how many directions go down at the critical points of small networks."""

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
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table

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


def of_width(found: Measurements, place: int) -> list[list[float]]:
    """The points of the net that is the n-th by width."""
    return [point for point in found["points"] if point[0] == found["widths"][place]]


def with_a_way_down(found: Measurements, place: int) -> float:
    """Share of a net's critical points that have a direction down."""
    return float(np.mean([point[3] > 0 for point in of_width(found, place)]))


def rank_correlation(found: Measurements) -> float:
    """Between loss and share of directions down, over the critical points of the largest net."""
    points = of_width(found, -1)
    return float(spearmanr([point[1] for point in points], [point[3] for point in points])[0])


def saddle_error(found: Measurements) -> float:
    """Distance of the origin's eigenvalues from -2 and 2."""
    return float(np.abs(np.array(found["saddle"]["eigenvalues"]) - [-2, 2]).max())


def taylor_error(found: Measurements) -> float:
    """Distance of the loss after a step t from Taylor's, apart from the t^4 / 4 that Taylor leaves out."""
    saddle = found["saddle"]
    left_out = np.array(saddle["steps"]) ** 4 / 4
    return float(np.abs(np.array(saddle["loss"]) - saddle["taylor"] - left_out).max())


ERROR = Said("of error", "的誤差")
STATEMENTS = (
    Statement(
        Said(
            "The lecture's saddle (1 − w1 w2)² has the eigenvalues −2 and 2 at the origin.",
            "課堂上的鞍點 (1 − w1 w2)²，在原點的特徵值是 −2 與 2。",
        ),
        saddle_error, 1e-12, ERROR, kind="exact",
    ),
    Statement(
        Said(
            "A step t along the eigenvector of −2 lowers the loss by t², as Taylor says, up to t⁴ / 4.",
            "沿著 −2 的特徵向量走 t，損失下降 t²，和泰勒展開一致，只差 t⁴ / 4。",
        ),
        taylor_error, 1e-12, ERROR, kind="exact",
    ),
    Statement(
        Said(
            "In the largest net more than nine of ten critical points have a way down.",
            "在最大的網路裡，九成以上的臨界點有下降的方向。",
        ),
        lambda found: with_a_way_down(found, -1), 0.9, Said("% of the points", "% 的臨界點"), "share",
    ),
    Statement(
        Said(
            "They are more often saddles than those of the smallest net.",
            "與最小的網路相比，它們更常是鞍點。",
        ),
        lambda found: with_a_way_down(found, -1) - with_a_way_down(found, 0), 0.05,
        Said("percentage points more saddles", "個百分點的差距"), "share",
    ),
    Statement(
        Said(
            "The higher the loss of a critical point, the more of its directions go down.",
            "臨界點的損失越大，下降的方向越多。",
        ),
        rank_correlation, 0.4, Said("of rank correlation", "的等級相關"),
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """The lecture's surface with the way out, and loss against directions down."""
    drawn = Figure(figsize=(8, 3.8), layout="constrained")
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
    right.legend(fontsize=9)
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
    heading=Said("Local minima and Saddle point", "區域最小值與鞍點"),
    lecture=Said(
        "Where the gradient is zero, the Hessian tells a minimum from a saddle. A minimum needs <em>every</em> "
        "eigenvalue to be positive, which is the less likely the more parameters there are. An eigenvector u of a "
        "negative eigenvalue λ is a way out: a step t u changes the loss by t²λ/2, and that is down.",
        "梯度為零的地方，由 Hessian 分辨最小值與鞍點。要成為最小值，<em>每一個</em>特徵值都必須是正的，參數越多越難。"
        "負特徵值 λ 的特徵向量 u 就是離開的路：走 t u，損失的變化是 t²λ/2，也就是下降。",
    ),
    formula="L(θ + t u) ≈ L(θ) + t gᵀu + ½ t² uᵀH u; with g = 0 and H u = λ u: L + ½ λ t²",
    varies=Said(
        "The lecture's loss of two weights; and tanh nets of growing width on HW2-2's curve. A search for small "
        "<em>gradients</em>, not small losses, starts at random weights and ends at critical points of any height. "
        "Some weight decay keeps it from running far out, where everything is flat.",
        "課堂上兩個權重的損失；以及越來越寬的 tanh 網路，學 HW2-2 的曲線。從隨機權重出發，尋找小的<em>梯度</em>（不是"
        "小的損失），所以會停在各種高度的臨界點。一點 weight decay 讓它不會跑到一片平坦的遠處。",
    ),
    caption=Said(
        "Left: the lecture's loss; the white arrows are the way out of the saddle. Right: every dot is a critical "
        "point: the higher its loss, the larger the share of its directions that go down.",
        "左：課堂上的損失，白色箭頭是離開鞍點的方向。右：每一點是一個臨界點，損失越大，下降的方向所佔的比例越大。",
    ),
    doubt=Said(
        "These nets have at most some dozens of parameters, since a Hessian has the square of their number. HW2-2 "
        "calls a point a minimum where more than half of the eigenvalues are positive; by that rule most saddles here "
        "would be minima.",
        "這些網路最多幾十個參數，因為 Hessian 的大小是參數個數的平方。HW2-2 把超過一半特徵值為正的點叫做最小值；照那個"
        "標準，這裡大部分的鞍點都算最小值。",
    ),
    again=(
        "leeml fit --config configs/hw1_covid/medium.yaml --trainer.callbacks+=CriticalPoint",
        Said("Where did HW1's training end: at a minimum or a saddle?", "HW1 訓練結束的地方，是最小值還是鞍點？"),
    ),
    source="Lecture 2 of 2021; Dauphin et al. 2014, NeurIPS (arXiv 1406.2572), figure 1; HW2-2 of 2021",
    code=(
        "callbacks/curvature.py:hessian_product",
        "callbacks/curvature.py:lanczos",
        "callbacks/critical_points.py:CriticalPoint",
    ),
    quick=Settings(),
    full=Settings(widths=(1, 2, 4, 8, 16), starts=300),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
)
