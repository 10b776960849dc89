"""Slices through the loss around a trained net, in filter-normalised directions, with and without residuals."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.warmup import WarmupScheduler
from datamodules.hw1_covid import CovidData
from scripts.studies.lab.fit import fit, regressor, rows
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread

NETS = {"plain": False, "residual": True}


@dataclass(frozen=True)
class Settings:
    """Depth and width of both nets, their training, and points a side and half the width of the slice."""

    depth: int = 20
    width: int = 32
    epochs: int = 15
    rate: float = 1e-3
    points: int = 15
    reach: float = 1.0
    used_rows: int = 256
    edition: str | None = None


def filter_normalised(net: nn.Module, generator: torch.Generator) -> list[Tensor]:
    """A random direction, one tensor a parameter, in which every unit's weights are as long as its own in the net.

    Without this, nets whose scale does not matter (because a norm follows) would look flat or sharp by scale alone.
    Biases and the norms' gains do not move (Li et al. 2018, section 4).
    """
    direction = []
    for parameter in net.parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 3 or parameter.shape[1] == 1:  # (M, in, out) is a layer's weight; the rest stays
            random.zero_()
        else:
            random *= parameter.detach().norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
        direction.append(random)
    return direction


@torch.no_grad()
def slice_of(net: nn.Module, x: Tensor, y: Tensor, directions: list[list[Tensor]], steps: np.ndarray) -> np.ndarray:
    """Mean squared error (K, K) around the net, step i along the first direction and j along the second.

    Batch statistics are those of the rows at each point, as the running ones only fit the centre.
    """
    net.train()
    centre = [p.detach().clone() for p in net.parameters()]
    losses = np.empty((len(steps), len(steps)))
    for i, a in enumerate(steps):
        for j, b in enumerate(steps):
            for p, c, u, v in zip(net.parameters(), centre, *directions, strict=True):
                p.copy_(c + a * u + b * v)
            losses[i, j] = float((net(x) - y).square().mean())
    for p, c in zip(net.parameters(), centre, strict=True):
        p.copy_(c)
    return losses


def bent_down(losses: np.ndarray, step: float) -> float:
    """Share of the inner points of a slice (K, K) where its Hessian, by differences, has a clearly negative eigenvalue.

    Clearly: larger than a tenth of the largest one there. Convex slices have none.
    """
    xx = (losses[2:, 1:-1] - 2 * losses[1:-1, 1:-1] + losses[:-2, 1:-1]) / step**2
    yy = (losses[1:-1, 2:] - 2 * losses[1:-1, 1:-1] + losses[1:-1, :-2]) / step**2
    xy = (losses[2:, 2:] - losses[2:, :-2] - losses[:-2, 2:] + losses[:-2, :-2]) / (4 * step**2)
    values = np.linalg.eigvalsh(np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -1))
    return float((values[..., 0] < -0.1 * np.abs(values).max(-1)).mean())


def pits(losses: np.ndarray) -> int:
    """Inner points of a slice (K, K) that are lower than their eight neighbours; a bowl has one."""
    around = np.lib.stride_tricks.sliding_window_view(losses, (3, 3)).reshape(-1, 9)
    return int((np.delete(around, 4, axis=1).min(1) > around[:, 4]).sum())


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Train both nets and cut a slice through each, in directions drawn with the same seed."""
    steps = np.linspace(-settings.reach, settings.reach, settings.points)
    found: Measurements = {"steps": steps.tolist(), "slice": {}, "bent": {}, "pits": {}, "rise": {}, "centre": {}}
    for name, residual in NETS.items():
        torch.manual_seed(seed)
        data = CovidData(str(root), edition=settings.edition, seed=seed, batch_size=256)
        hidden = [settings.width] * settings.depth
        module = regressor(torch.optim.Adam, settings.rate, hidden=hidden, residual=residual, batch_norm=True)
        fit(module, data, settings.epochs, [WarmupScheduler(schedule="cosine", warmup=0)])
        x, y = rows(data, "train")
        every = -(-len(x) // settings.used_rows)  # from all over the file, whose rows lie by state
        x, y = x[::every].unsqueeze(0), y[::every].unsqueeze(0)
        generator = torch.Generator().manual_seed(seed)
        directions = [filter_normalised(module.net, generator) for _ in range(2)]
        losses = slice_of(module.net, x, y, directions, steps)
        middle = settings.points // 2
        edge = np.concatenate([losses[0], losses[-1], losses[:, 0], losses[:, -1]])
        found["slice"][name] = losses.tolist()
        found["bent"][name] = bent_down(losses, float(steps[1] - steps[0]))
        found["pits"][name] = pits(losses)
        found["centre"][name] = float(losses[middle, middle])
        found["rise"][name] = float(np.log10(edge.mean() / losses[middle, middle]))
    return found


def more(key: str) -> Callable[[Measurements], float]:
    """By how much a number is larger for the plain net."""
    return lambda found: found[key]["plain"] - found[key]["residual"]


STATEMENTS = (
    Statement(
        Said(
            "More of the plain net's slice bends down than of the residual net's.",
            "一般網路的切面向下彎的部分，比有殘差連接的多。",
        ),
        more("bent"), 0.05, Said("percentage points more of the slice", "個百分點的切面"), "share",
    ),
    Statement(
        Said(
            "The plain net's slice has more pits (points lower than all around them).",
            "一般網路的切面有更多凹坑（比周圍都低的點）。",
        ),
        more("pits"), 1, Said("pits more", "個凹坑的差距"),
    ),
    Statement(
        Said(
            "The residual net's slice is almost a bowl: it has at most three pits.",
            "有殘差連接的切面幾乎像個碗：最多三個凹坑。",
        ),
        lambda found: found["pits"]["residual"], 3, Said("pits", "個凹坑"), kind="at most",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Both slices of the first seed as surfaces."""
    drawn = Figure(figsize=(8, 4), layout="constrained")
    first = measurements[0]
    a, b = np.meshgrid(first["steps"], first["steps"], indexing="ij")
    for place, name in enumerate(NETS):
        axes = drawn.add_subplot(1, 2, place + 1, projection="3d")
        height = np.log10(np.array(first["slice"][name]))
        axes.plot_surface(a, b, height, cmap="viridis", linewidth=0.2, edgecolor="black")
        axes.set(title=f"{name}, {first['bent'][name]:.0%} of it bends down", zlabel="log10 loss",
                 xlabel="direction 1", ylabel="direction 2")  # fmt: skip
        axes.locator_params(nbins=4)
        axes.set_box_aspect(None, zoom=0.9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """What the slices show of each network."""
    rows = []
    for name in NETS:
        keys = ("bent", "pits", "centre", "rise")
        rows.append([name, *(mean_and_spread([m[key][name] for m in measurements]) for key in keys)])
    return ["net", "share that bends down", "pits", "loss at the centre", "rise to the edge (log10)"], rows


STUDY = Study(
    number=4,
    heading=Said("Local minima and Saddle point: the loss surface", "損失曲面：有無殘差連接"),
    lecture=Said(
        "A net with many parameters has a loss surface that nobody can draw. But one can cut it: go from the trained "
        "weights along two random directions and draw the loss there. Deep plain nets lie in rugged land, where "
        "descent gets lost; residual connections make it smooth.",
        "參數很多的網路，損失曲面畫不出來，但可以切開來看：從訓練好的權重出發，沿兩個隨機方向走，把損失畫出來。"
        "一般的深網路周圍很崎嶇，梯度下降容易迷路；殘差連接讓它變得平滑。",
    ),
    formula="f(α, β) = L(θ + α δ + β η), with δ<sub>i</sub> ← δ<sub>i</sub> ‖θ<sub>i</sub>‖ / ‖δ<sub>i</sub>‖ a unit i",
    varies=Said(
        "A net of 20 hidden layers with batch normalisation, with and without residual connections, trained on HW1's "
        "data. For nets to be comparable, each unit's part of a direction is as long as the unit's own weights.",
        "20 層隱藏層、有批次標準化的網路，有或沒有殘差連接，用 HW1 的資料訓練。為了能互相比較，方向中每個神經元的長度"
        "都調整成與它的權重相同。",
    ),
    caption=Said(
        "The loss around the trained weights, which are in the middle. Its height is a logarithm.",
        "訓練好的權重（正中央）周圍的損失，高度取對數。",
    ),
    doubt=Said(
        "Two random directions of some ten thousand: a slice can miss what descent meets on its way.",
        "上萬個維度裡只看兩個隨機方向，切面可能錯過下降途中真正遇到的地形。",
    ),
    again=(
        "leeml study loss_surface --design --seeds 1",
        Said("Other seeds cut other slices.", "換一個種子，就是另一個切面。"),
    ),
    source="Li et al. 2018, NeurIPS (arXiv 1712.09913), figure 1; lecture 2 of 2021",
    code=("scripts/studies/loss_surface.py:filter_normalised", "modules/nets/mlp.py:Block"),
    quick=Settings(),
    full=Settings(epochs=100, points=41, used_rows=2000, edition="2021"),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw1_covid",
)
