"""Adaptive rates in a narrow valley: plain descent, Adagrad, RMSProp and Adam, from the notes' formulas."""

import math
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

Rule = Callable[[Tensor], Tensor]
"""Gradient of a step -> what is added to the parameters; it remembers what it saw. The rate may be a tensor (K, 1)."""


@dataclass(frozen=True)
class Settings:
    """The valley and the descents.

    Args:
        curvature: Along the valley's floor, and across it.
        steps: Of every descent.
        reached: Distance that counts as arrived, over that of the start.
        rates: To choose from.
        noise: Deviation of the gradients' noise where explosions are looked for.
        drawn: Places of a path that are kept for the figure.
    """

    curvature: tuple[float, float] = (0.2, 20.0)
    steps: int = 2000
    reached: float = 0.01
    rates: tuple[float, ...] = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
    noise: float = 0.02
    drawn: int = 2000


def descent(rate: float | Tensor) -> Rule:
    """Plain gradient descent with a constant rate."""
    return lambda gradient: -rate * gradient


def adagrad(rate: float | Tensor, eps: float = 1e-10) -> Rule:
    """Duchi et al. 2011: the rate of each parameter over the root of the sum of its squared gradients."""
    total = torch.zeros(())

    def update(gradient: Tensor) -> Tensor:
        nonlocal total
        total = total + gradient**2
        return -rate * gradient / (total.sqrt() + eps)

    return update


def mean_adagrad(rate: float | Tensor, decay: bool = False, eps: float = 1e-10) -> Rule:
    """Adagrad as the lecture writes it: sigma is the root of the mean of the squared gradients so far.

    With `decay` the rate falls with the root of the step, and the two together are Adagrad's sum.
    """
    total, step = torch.zeros(()), 0

    def update(gradient: Tensor) -> Tensor:
        nonlocal total, step
        total, step = total + gradient**2, step + 1
        now = rate / math.sqrt(step) if decay else rate
        return -now * gradient / ((total / step).sqrt() + eps)

    return update


def rmsprop(rate: float | Tensor, alpha: float = 0.99, eps: float = 1e-8) -> Rule:
    """Tieleman and Hinton 2012: a running mean, so that recent gradients count most."""
    mean = torch.zeros(())

    def update(gradient: Tensor) -> Tensor:
        nonlocal mean
        mean = alpha * mean + (1 - alpha) * gradient**2
        return -rate * gradient / (mean.sqrt() + eps)

    return update


def adam(rate: float | Tensor, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Kingma and Ba 2015: RMSProp with momentum, both corrected for having begun at 0."""
    movement, mean, step = torch.zeros(()), torch.zeros(()), 0

    def update(gradient: Tensor) -> Tensor:
        nonlocal movement, mean, step
        step += 1
        movement = beta1 * movement + (1 - beta1) * gradient
        mean = beta2 * mean + (1 - beta2) * gradient**2
        return -rate * (movement / (1 - beta1**step)) / ((mean / (1 - beta2**step)).sqrt() + eps)

    return update


def falling(rule: Rule) -> Rule:
    """A rule whose rate falls with the root of the step."""
    step = 0

    def update(gradient: Tensor) -> Tensor:
        nonlocal step
        step += 1
        return rule(gradient) / math.sqrt(step)

    return update


RULES: dict[str, Callable[[float | Tensor], Rule]] = {
    "descent": descent,
    "Adagrad": adagrad,
    "RMSProp": rmsprop,
    "Adam": adam,
    "RMSProp, falling rate": lambda rate: falling(rmsprop(rate)),
    "Adam, falling rate": lambda rate: falling(adam(rate)),
    "Adagrad, valley turned": adagrad,
}
TORCH: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "descent": lambda p, rate: torch.optim.SGD(p, lr=rate),
    "Adagrad": lambda p, rate: torch.optim.Adagrad(p, lr=rate, eps=1e-10),
    "RMSProp": lambda p, rate: torch.optim.RMSprop(p, lr=rate, alpha=0.99, eps=1e-8),
    "Adam": lambda p, rate: torch.optim.Adam(p, lr=rate),
}


def valley(curvature: tuple[float, float], turned: bool) -> tuple[Tensor, Tensor]:
    """Hessian (2, 2) of a valley, and the matrix (2, 2) that turns it: by 45 degrees, or not at all."""
    turn = torch.eye(2, dtype=torch.float64)
    if turned:
        turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    return turn @ torch.diag(torch.tensor(curvature, dtype=torch.float64)) @ turn.T, turn


def walk(rule: Rule, hessian: Tensor, start: Tensor, steps: int, noise: Tensor | None = None) -> Tensor:
    """Places (steps + 1, ..., 2) in the valley x^T H x / 2 from start (..., 2); noise (steps, 2) of the gradients."""
    places = [start]
    for step in range(steps):
        gradient = places[-1] @ hessian
        places.append(places[-1] + rule(gradient if noise is None else gradient + noise[step]))
    return torch.stack(places)


def apart_from_torch(name: str, hessian: Tensor, start: Tensor, steps: int = 200) -> float:
    """Largest distance of our rule's places from those of torch.optim."""
    rate = 0.05
    ours = walk(RULES[name](rate), hessian, start, steps)
    place = start.clone().requires_grad_()
    optimizer = TORCH[name]([place], rate)
    apart = 0.0
    for wanted in ours[1:]:
        place.grad = place.detach() @ hessian
        optimizer.step()
        apart = max(apart, float((place.detach() - wanted).abs().max()))
    return apart


def steps_to(path: Tensor, reached: float) -> int:
    """The step from which on a path (T, 2) stays nearer to 0 than a share of its start; T where it never does."""
    distance = path.norm(dim=1)
    away = ~(distance < reached * distance[0])  # also what is not a number
    return int(away.nonzero().max()) + 1 if away.any() else 0


def best_walk(
    rule: Callable[[float | Tensor], Rule],
    rates: tuple[float, ...],
    hessian: Tensor,
    start: Tensor,
    steps: int,
    reached: float,
) -> tuple[int, float, Tensor]:
    """Fewest steps over all rates until a path stays near the minimum, that rate and its path (steps + 1, 2)."""
    column = torch.tensor(rates, dtype=torch.float64).unsqueeze(1)
    paths = walk(rule(column), hessian, start.expand(len(rates), 2), steps)
    needed = [steps_to(path, reached) for path in paths.unbind(1)]
    best = int(np.argmin(needed))
    return needed[best], rates[best], paths[:, best]


def late_jump(path: Tensor) -> float:
    """How far across the valley a path (T, 2) gets again after it was below 1 % of its start, in such per cents."""
    height = path[:, 1].abs() / path[0, 1].abs()
    below = (height < 0.01).nonzero()
    return float(height[int(below[0]) :].max() / 0.01) if len(below) else 1.0


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Steps of each rule at the best of the rates, paths, and the late jump of both ways to write Adagrad."""
    generator = torch.Generator().manual_seed(seed)
    angle = (0.15 + 0.2 * torch.rand((), generator=generator, dtype=torch.float64)) * math.pi
    start = 3 * torch.stack([-angle.cos(), angle.sin()])
    found: Measurements = {"steps": {}, "paths": {}, "rates": {}, "limit": settings.steps + 1}
    for name, rule in RULES.items():
        hessian, turn = valley(settings.curvature, "turned" in name)
        needed, rate, path = best_walk(rule, settings.rates, hessian, turn @ start, settings.steps, settings.reached)
        found["steps"][name], found["rates"][name] = max(1, needed), rate
        found["paths"][name] = path[: settings.drawn].tolist()
    hessian, _ = valley(settings.curvature, False)
    noise = settings.noise * torch.randn((settings.steps, 2), generator=generator, dtype=torch.float64)
    found["jump"], found["height"], every = {}, {}, max(1, settings.steps // 500)
    for name, decay in (("constant rate", False), ("falling rate", True)):
        path = walk(mean_adagrad(0.3, decay), hessian, start, settings.steps, noise)
        found["jump"][name] = late_jump(path)
        found["height"][name] = path[::every, 1].abs().tolist()
    found["apart"] = max(apart_from_torch(name, hessian, start) for name in TORCH)
    return found


def fewer(name: str) -> Callable[[Measurements], float]:
    """How many times as many steps plain descent needs."""
    return lambda found: found["steps"]["descent"] / found["steps"][name]


FEWER = Said("times fewer steps", "倍的差距（步數較少）")
MORE = Said("times as many steps", "倍的步數")
STATEMENTS = (
    Statement(
        Said("The notes' formulas give the steps of torch.optim.", "筆記的公式與 torch.optim 的每一步相同。"),
        lambda found: found["apart"], 1e-6, Said("apart", "的距離"), kind="exact",
    ),
    *(
        Statement(
            Said(
                f"{english} needs less than half the steps of plain descent until it stays at the minimum, each at its "
                "best rate.",
                f"{chinese}停在最小值附近所需的步數，不到一般梯度下降的一半（各用最好的學習率）。",
            ),
            fewer(name), 2, FEWER, "ratio",
        )
        for name, english, chinese in (
            ("Adagrad", "Adagrad", "Adagrad "),
            ("RMSProp, falling rate", "RMSProp with a falling rate", "學習率遞減的 RMSProp "),
            ("Adam, falling rate", "Adam with a falling rate", "學習率遞減的 Adam "),
        )
    ),
    Statement(
        Said(
            "At a constant rate RMSProp never comes to rest: to stay as near it needs more than twice the steps of "
            "plain descent.",
            "學習率不變的 RMSProp 停不下來：要停在一樣近的地方，步數是一般梯度下降的兩倍以上。",
        ),
        lambda found: found["steps"]["RMSProp"] / found["steps"]["descent"], 2, MORE, "ratio",
    ),
    Statement(
        Said(
            "Turn the valley by 45 degrees and Adagrad needs more than five times as many steps.",
            "把山谷轉 45 度，Adagrad 需要五倍以上的步數。",
        ),
        lambda found: found["steps"]["Adagrad, valley turned"] / found["steps"]["Adagrad"], 5, MORE, "ratio",
    ),
    Statement(
        Said(
            "The lecture's Adagrad, a mean under the root, explodes late: across the valley it gets back to more than "
            "5 % of its start, after it was below 1 %.",
            "課堂上的 Adagrad（根號裡是平均）後期會爆開：橫向距離降到起點的 1 % 以下之後，又回到 5 % 以上。",
        ),
        lambda found: found["jump"]["constant rate"], 5, Said("% of the start", "%（相對於起點）"), "ratio",
    ),
    Statement(
        Said("A falling rate makes that jump less than a fifth.", "讓學習率遞減，這個跳動不到原來的五分之一。"),
        lambda found: found["jump"]["constant rate"] / found["jump"]["falling rate"], 5,
        Said("times less far", "倍的縮小"), "ratio",
    ),
)  # fmt: skip

COLOURS = {
    "descent": "tab:blue",
    "Adagrad": "tab:green",
    "RMSProp": "tab:red",
    "Adam": "tab:purple",
    "RMSProp, falling rate": "tab:orange",
    "Adam, falling rate": "tab:pink",
    "Adagrad, valley turned": "tab:olive",
}


def figure(measurements: list[Measurements]) -> Figure:
    """The way to the minimum of the first seed, near and at the end; and the lecture's Adagrad across the valley."""
    drawn = Figure(figsize=(8, 8), layout="constrained")
    parts = drawn.subplot_mosaic([["valley", "distance"], ["jump", "jump"]])
    first = measurements[0]
    x, y = np.meshgrid(np.linspace(-3.2, 1, 100), np.linspace(-3, 3.2, 100))
    parts["valley"].contour(x, y, np.log(0.1 * x**2 + 10 * y**2 + 1e-2), 12, colors="0.8", linewidths=0.7)
    for name in ("descent", "Adagrad", "RMSProp, falling rate", "Adam, falling rate"):
        place = np.array(first["paths"][name])
        parts["valley"].plot(*place.T, ".-", markersize=3, linewidth=0.8, color=COLOURS[name])
    for name, path in first["paths"].items():
        distance = np.linalg.norm(path, axis=1)
        label = f"{name}: {first['steps'][name]:,}"
        parts["distance"].loglog(np.arange(1, len(distance) + 1), distance / distance[0], linewidth=1,
                                 color=COLOURS[name], label=label)  # fmt: skip
    parts["distance"].axhline(0.01, color="0.5", linewidth=0.8, linestyle=":")
    parts["valley"].set(xlim=(-3.2, 1), ylim=(-3, 3.2), xlabel="along the valley", ylabel="across", title="the paths")
    parts["distance"].set(xlabel="step", ylabel="distance from the minimum / at the start", ylim=(1e-4, 4),
                          title="steps until it stays within 1 %")  # fmt: skip
    parts["distance"].legend(fontsize=9, loc="lower left")
    every = max(1, (first["limit"] - 1) // 500)
    for (name, height), colour in zip(first["height"].items(), ("tab:red", "tab:green"), strict=True):
        parts["jump"].semilogy(np.arange(len(height)) * every, np.clip(height, 1e-9, None), linewidth=0.8, label=name,
                               color=colour)  # fmt: skip
    parts["jump"].set(xlabel="step", ylabel="distance across the valley", title="the lecture's Adagrad, rate 0.3")
    parts["jump"].legend(fontsize=9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Steps to the minimum at the best rate."""
    rows = []
    for name in RULES:
        steps = [m["steps"][name] for m in measurements]
        missed = sum(s >= m["limit"] for s, m in zip(steps, measurements, strict=True))
        rates = sorted({m["rates"][name] for m in measurements})
        rows.append([name, mean_and_spread(steps), ", ".join(f"{r:g}" for r in rates), missed])
    limit = f"seeds that do not in {measurements[0]['limit'] - 1:,} steps"
    return ["rule", "steps until it stays within 1 %", "best rate", limit], rows


def on_a_surface(measurements: list[Measurements]) -> Any:
    """The valley; the other surface of the play is a landscape of the study momentum."""
    return {"surface": "valley", "rules": ["descent", "adagrad", "rmsprop", "adam"], "hill": 0.03, "flat": 0.01}


STUDY = Study(
    number=9,
    heading=Said("Adaptive Learning Rate", "自適應學習率"),
    lecture=Said(
        "Across a narrow valley gradients are large, along it they are small, so one rate is too long for the one or "
        "too short for the other. Divide each gradient by the size it usually has, and steps are alike in both. Then "
        "steps are about as long as the rate even near the minimum, so the rate must fall.",
        "橫越狹窄山谷的方向梯度大，沿著山谷的方向梯度小，同一個學習率不是太長就是太短。把每個方向的梯度除以它平常的大"
        "小，兩邊的步伐就一樣長。但這樣一來，就算到了最小值附近，步伐還是和學習率差不多長，所以學習率必須遞減。",
    ),
    formula="θ ← θ − η g / σ; Adagrad σ² = Σ g², the lecture's σ² = mean g², RMSProp σ² ← α σ² + (1 − α) g², Adam: "
    "RMSProp with momentum",
    varies=Said(
        "The rule, each at the best of nine rates, in a valley a hundred times as steep across as along (in full a "
        "thousand times), and in the same valley turned by 45 degrees. Every seed starts elsewhere.",
        "更新的規則（各用九個學習率中最好的），在橫向比縱向陡一百倍的山谷（完整版一千倍），以及轉了 45 度的同一個山"
        "谷。每個種子從不同的地方出發。",
    ),
    caption=Said(
        "Above: the paths of the first seed, and how near they are; the dotted line is 1 % of the start. Below: the "
        "lecture's σ shrinks across the valley while descent goes along it, until one step there is too long.",
        "上：第一個種子的路徑，以及離最小值多近；虛線是起點的 1 %。下：沿著山谷前進時，課堂的 σ 在橫向越來越小，直到某"
        "一步太大。",
    ),
    doubt=Said(
        "A valley without noise, in two dimensions. Rates for each parameter help where the valley lies along the "
        "axes; the turned valley shows what is lost where it does not. How long the valley is matters, too: in the "
        "longer one of --full plain descent is so slow that RMSProp, with a small constant rate, arrives before it.",
        "這是沒有雜訊的二維山谷。山谷沿著座標軸時，各參數有自己的學習率才有用；轉了 45 度的山谷就看得出差別。"
        "山谷多長也有影響：--full 的山谷更長，一般的梯度下降太慢，學習率固定而小的 RMSProp 反而先到。",
    ),
    again=(
        "leeml fit --config configs/hw1_covid/medium.yaml --model.optimizer Adagrad --model.optimizer.lr 0.05",
        Said("HW1 with another rule.", "換一個規則訓練 HW1。"),
    ),
    source="Lecture 4 of 2021; Duchi et al. 2011, JMLR; Tieleman and Hinton 2012; Kingma and Ba 2015 (arXiv 1412.6980)",
    code=(
        "scripts/studies/adaptive_rates.py:adagrad",
        "scripts/studies/adaptive_rates.py:rmsprop",
        "scripts/studies/adaptive_rates.py:adam",
    ),
    quick=Settings(),
    full=Settings(curvature=(0.02, 20.0), steps=20000),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("descent", on_a_surface),
)
