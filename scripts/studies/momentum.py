"""Momentum: the notes' recursion against torch's, and a way across a plateau where plain descent stops."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Play, Study, Table, mean_and_spread


@dataclass(frozen=True)
class Settings:
    """Momentum and rate, steps, and how many random landscapes a seed has."""

    momentum: float = 0.9
    rate: float = 0.02
    steps: int = 300
    landscapes: int = 40


def notes_step(
    theta: Tensor, movement: Tensor, gradient: Tensor, momentum: float, rate: float
) -> tuple[Tensor, Tensor]:
    """The notes' update: m <- lambda m - eta g, theta <- theta + m."""
    movement = momentum * movement - rate * gradient
    return theta + movement, movement


def compare_with_torch(rates: list[float], momentum: float) -> float:
    """Largest distance between the notes' recursion and torch.optim.SGD on a quadratic bowl, one step a rate."""
    bowl = torch.tensor([1.0, 10.0], dtype=torch.float64)
    theta = torch.tensor([2.0, 1.0], dtype=torch.float64)
    movement = torch.zeros(2, dtype=torch.float64)
    other = theta.clone().requires_grad_()
    optimizer = torch.optim.SGD([other], lr=rates[0], momentum=momentum)
    apart = 0.0
    for rate in rates:
        theta, movement = notes_step(theta, movement, bowl * theta, momentum, rate)
        optimizer.param_groups[0]["lr"] = rate
        other.grad = bowl * other.detach()
        optimizer.step()
        apart = max(apart, float((theta - other.detach()).abs().max()))
    return apart


@dataclass(frozen=True)
class Landscape:
    """A slope, a plateau, a small hill and a deep valley at x = 3.5, on a line (N such lines side by side).

    Args:
        flat: Slope of the plateau (N,), 0 or almost.
        hill: Height of the hill (N,); 0 where there is none.
    """

    flat: Tensor
    hill: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Loss at x, (N,) -> (N,), or (N, K) -> (N, K)."""
        flat, hill = (part.view(-1, *(1,) * (x.dim() - 1)) for part in (self.flat, self.hill))
        slope = torch.nn.functional.softplus(-6 * (x + 1)) / 3
        valley = -2 * torch.exp(-(((x - 3.5) / 0.8) ** 2))
        return slope - flat * x + hill * torch.exp(-(((x - 1) / 0.25) ** 2)) + valley


def random_landscapes(count: int, generator: torch.Generator) -> Landscape:
    """Half of them have a plateau alone, half also a hill, which makes a local minimum before it."""
    flat = 0.02 * torch.rand(count, generator=generator, dtype=torch.float64)
    hill = 0.06 * torch.rand(count, generator=generator, dtype=torch.float64)
    hill[: count // 2] = 0
    return Landscape(flat, hill)


def descend(landscape: Landscape, start: Tensor, momentum: float, rate: float, steps: int) -> Tensor:
    """Places (steps + 1, N) of descent with the notes' recursion."""
    x, movement = start, torch.zeros_like(start)
    places = [x]
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(landscape(x).sum(), x)
        x, movement = notes_step(x.detach(), movement, gradient, momentum, rate)
        places.append(x)
    return torch.stack(places)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Equality with torch, and which share of random landscapes each way crosses."""
    generator = torch.Generator().manual_seed(seed)
    landscape = random_landscapes(settings.landscapes, generator)
    start = -2.5 + 0.5 * torch.rand(settings.landscapes, generator=generator, dtype=torch.float64)
    ways = {
        "plain": (0.0, settings.rate),
        "plain, rate / (1 - λ)": (0.0, settings.rate / (1 - settings.momentum)),
        "momentum": (settings.momentum, settings.rate),
    }
    found: Measurements = {"crossed": {}, "hill": landscape.hill[-1:].tolist(), "flat": landscape.flat[-1:].tolist()}
    found["paths"] = {}
    for name, (momentum, rate) in ways.items():
        places = descend(landscape, start, momentum, rate, settings.steps)
        crossed = (places[-1] - 3.5).abs() < 0.8
        half = settings.landscapes // 2
        found["crossed"][name] = [float(part.double().mean()) for part in (crossed[:half], crossed[half:])]
        found["paths"][name] = places[:, -1].tolist()
    found["apart, constant rate"] = compare_with_torch([0.05] * 100, settings.momentum)
    found["apart, changing rate"] = compare_with_torch([0.05] * 20 + [0.005] * 20, settings.momentum)
    return found


def gap(other: str, place: int) -> Callable[[Measurements], float]:
    """By how much larger a share of landscapes momentum crosses."""
    return lambda found: found["crossed"]["momentum"][place] - found["crossed"][other][place]


OF_LANDSCAPES = Said("percentage points more landscapes", "個百分點的地形")
DISTANCE = Said("apart", "的距離")
STATEMENTS = (
    Statement(
        Said(
            "With a constant rate the notes' recursion is torch.optim.SGD.",
            "學習率不變時，筆記的遞迴式就是 torch.optim.SGD。",
        ),
        lambda found: found["apart, constant rate"], 1e-12, DISTANCE, kind="exact",
    ),
    Statement(
        Said("When the rate changes the two differ.", "學習率改變時，兩者就不同了。"),
        lambda found: found["apart, changing rate"], 0.01, DISTANCE,
    ),
    *(
        Statement(
            Said(f"Momentum crosses {english} more often than {than}.", f"動量比{versus}更常越過{chinese}。"),
            gap(other, place), 0.1, OF_LANDSCAPES, "share",
        )
        for other, than, versus in (
            ("plain", "plain descent with the same rate", "同樣學習率的梯度下降"),
            ("plain, rate / (1 - λ)", "plain descent with the same total step", "總步長相同的梯度下降"),
        )
        for place, english, chinese in ((0, "a plateau", "平坦區"), (1, "a plateau with a hill", "有小丘的平坦區"))
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """One landscape with all three paths, and the share that each way crosses."""
    drawn = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    first = measurements[0]
    landscape = Landscape(*(torch.tensor(first[name], dtype=torch.float64) for name in ("flat", "hill")))
    axis = torch.linspace(-3, 5, 400, dtype=torch.float64)
    left.plot(axis, landscape(axis.view(1, -1))[0], color="black", linewidth=1)
    colours = dict(zip(first["paths"], ("tab:blue", "tab:green", "tab:red"), strict=True))
    for shift, (name, path) in enumerate(first["paths"].items()):
        x = torch.tensor(path, dtype=torch.float64)
        height = landscape(x.view(1, -1))[0] + 0.12 * shift
        left.plot(x, height, ".-", markersize=3, linewidth=0.6, color=colours[name], label=name)
        left.plot(x[-1], height[-1], "o", color=colours[name])
    left.set(xlabel="θ", ylabel="loss (paths lifted apart)", title="plateau, hill, valley")
    left.legend(fontsize=9)
    for shift, name in enumerate(first["crossed"]):
        values = np.array([m["crossed"][name] for m in measurements])
        bars = right.bar(np.arange(2) + 0.27 * (shift - 1), values.mean(0), 0.25, color=colours[name], label=name)
        right.bar_label(bars, fmt="%.2f", fontsize=9)
    right.set_xticks([0, 1], ["plateau", "plateau and hill"])
    right.set(ylabel="share that reaches the valley", ylim=(0, 1.1), title="random landscapes")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Share of landscapes crossed."""
    rows = []
    for name in measurements[0]["crossed"]:
        values = np.array([m["crossed"][name] for m in measurements])
        rows.append([name, mean_and_spread(values[:, 0]), mean_and_spread(values[:, 1])])
    return ["descent", "crosses a plateau (share)", "a plateau and a hill"], rows


def on_a_surface(measurements: list[Measurements]) -> Any:
    """The landscape of the picture, to be walked from where one clicks."""
    hill, flat = measurements[0]["hill"][0], measurements[0]["flat"][0]
    return {"surface": "plateau", "rules": ["descent", "momentum"], "hill": hill, "flat": flat}


STUDY = Study(
    number=8,
    heading=Said("Momentum", "動量"),
    lecture=Said(
        "Plain descent follows the gradient of the moment, so it stops where that is almost zero. Momentum also "
        "remembers the way so far: the movement is the last movement, a little shorter, plus a step down the gradient. "
        "Like a ball that rolls, it goes on over a plateau and over a small hill.",
        "一般的梯度下降只看當下的梯度，所以走到梯度幾乎為零的地方就停了。動量還記得之前的移動：這一步等於上一步的移動打點折，再加上梯度的反方向。"
        "就像滾動的球，能繼續滾過平坦區和小丘。",
    ),
    formula="m<sub>t+1</sub> = λ m<sub>t</sub> − η g<sub>t</sub>, θ<sub>t+1</sub> = θ<sub>t</sub> + m<sub>t+1</sub>",
    varies=Said(
        "Descent with λ = 0, with λ = 0.9, and with λ = 0 and a rate ten times as large, which is the total step that "
        "momentum makes on a steady slope; on random plateaus and hills.",
        "λ = 0、λ = 0.9，以及 λ = 0 但學習率大十倍（動量在固定斜坡上的總步長）；地形是隨機產生的平坦區與小丘。",
    ),
    caption=Said(
        "Left: three paths down one landscape, lifted apart; a dot marks the end. Right: the share of landscapes in "
        "which the valley is reached.",
        "左：同一個地形上的三條路徑（上下錯開），圓點是終點。右：到達谷底的地形比例。",
    ),
    doubt=Said(
        "A line has one dimension. In many dimensions noise of the batches also carries descent across plateaus.",
        "這裡只有一個維度；在高維度中，批次的雜訊也會帶著參數離開平坦區。",
    ),
    again=(
        "leeml fit --config configs/hw1_covid/medium.yaml --model.optimizer SGD --model.optimizer.momentum 0",
        Said("HW1 without momentum.", "不用動量訓練 HW1。"),
    ),
    source="Lecture 3 of 2021; Polyak 1964; Sutskever et al. 2013, ICML",
    code=("scripts/studies/momentum.py:notes_step",),
    quick=Settings(),
    full=Settings(landscapes=400),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("descent", on_a_surface),
)
