"""Adaptive rates in a narrow valley: plain descent, Adagrad, RMSProp and Adam, from the notes' formulas."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, across, effect, fact, mean_and_spread

Rule = Callable[[Tensor], Tensor]
"""Gradient of a step -> what is added to the parameters; it remembers what it saw."""


@dataclass(frozen=True)
class Settings:
    """The valley and the descents.

    Args:
        curvature: Along the valley's floor, and across it.
        steps: Of every descent.
        reached: Distance that counts as arrived, over that of the start.
        rates: To choose from.
        noise: Deviation of the gradients' noise where explosions are looked for.
    """

    curvature: tuple[float, float] = (0.2, 20.0)
    steps: int = 2000
    reached: float = 0.01
    rates: tuple[float, ...] = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5)
    noise: float = 0.02


def descent(rate: float) -> Rule:
    """Plain gradient descent with a constant rate."""
    return lambda gradient: -rate * gradient


def adagrad(rate: float, eps: float = 1e-10) -> Rule:
    """Duchi et al. 2011: the rate of each parameter over the root of the sum of its squared gradients."""
    total = torch.zeros(())

    def update(gradient: Tensor) -> Tensor:
        nonlocal total
        total = total + gradient**2
        return -rate * gradient / (total.sqrt() + eps)

    return update


def mean_adagrad(rate: float, decay: bool = False, eps: float = 1e-10) -> Rule:
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


def rmsprop(rate: float, alpha: float = 0.99, eps: float = 1e-8) -> Rule:
    """Tieleman and Hinton 2012: a running mean, so that recent gradients count most."""
    mean = torch.zeros(())

    def update(gradient: Tensor) -> Tensor:
        nonlocal mean
        mean = alpha * mean + (1 - alpha) * gradient**2
        return -rate * gradient / (mean.sqrt() + eps)

    return update


def adam(rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Kingma and Ba 2015: RMSProp with momentum, both corrected for having begun at 0."""
    movement, mean, step = torch.zeros(()), torch.zeros(()), 0

    def update(gradient: Tensor) -> Tensor:
        nonlocal movement, mean, step
        step += 1
        movement = beta1 * movement + (1 - beta1) * gradient
        mean = beta2 * mean + (1 - beta2) * gradient**2
        return -rate * (movement / (1 - beta1**step)) / ((mean / (1 - beta2**step)).sqrt() + eps)

    return update


RULES: dict[str, Callable[[float], Rule]] = {
    "descent": descent,
    "Adagrad": adagrad,
    "Adagrad, lecture": mean_adagrad,
    "RMSProp": rmsprop,
    "Adam": adam,
}
TORCH: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "descent": lambda p, rate: torch.optim.SGD(p, lr=rate),
    "Adagrad": lambda p, rate: torch.optim.Adagrad(p, lr=rate, eps=1e-10),
    "RMSProp": lambda p, rate: torch.optim.RMSprop(p, lr=rate, alpha=0.99, eps=1e-8),
    "Adam": lambda p, rate: torch.optim.Adam(p, lr=rate),
}


def walk(rule: Rule, curvature: Tensor, start: Tensor, steps: int, noise: Tensor | None = None) -> Tensor:
    """Places (steps + 1, 2) in the valley (a x^2 + b y^2) / 2; noise (steps, 2) is added to the gradients."""
    places = [start]
    for step in range(steps):
        gradient = curvature * places[-1]
        places.append(places[-1] + rule(gradient if noise is None else gradient + noise[step]))
    return torch.stack(places)


def apart_from_torch(name: str, curvature: Tensor, start: Tensor, steps: int = 200) -> float:
    """Largest distance of our rule's places from those of torch.optim."""
    rate = 0.05
    ours = walk(RULES[name](rate), curvature, start, steps)
    place = start.clone().requires_grad_()
    optimizer = TORCH[name]([place], rate)
    apart = 0.0
    for wanted in ours[1:]:
        place.grad = curvature * place.detach()
        optimizer.step()
        apart = max(apart, float((place.detach() - wanted).abs().max()))
    return apart


def steps_to(path: Tensor, reached: float) -> int:
    """The step from which on a path (T, 2) stays nearer to 0 than a share of its start; T where it never does."""
    distance = path.norm(dim=1)
    away = ~(distance < reached * distance[0])  # also what is not a number
    return int(away.nonzero().max()) + 1 if away.any() else 0


def late_jump(path: Tensor) -> float:
    """How far across the valley a path (T, 2) gets again, over 1 % of its start, after it was below that (log10)."""
    height = path[:, 1].abs() / path[0, 1].abs()
    below = (height < 0.01).nonzero()
    return float((height[int(below[0]) :].max() / 0.01).log10()) if len(below) else 0.0


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Steps of each rule at the best of the rates, paths, and the late jump of both ways to write Adagrad."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.tensor(settings.curvature, dtype=torch.float64)
    angle = (0.15 + 0.2 * torch.rand((), generator=generator, dtype=torch.float64)) * math.pi
    start = 3 * torch.stack([-angle.cos(), angle.sin()])
    found: Measurements = {"steps": {}, "first": {}, "paths": {}, "rates": {}, "limit": settings.steps + 1}
    for name, rule in RULES.items():
        best = None
        for rate in settings.rates:
            path = walk(rule(rate), curvature, start, settings.steps)
            needed = steps_to(path, settings.reached)
            if best is None or needed < best[0]:
                best = needed, rate, path
        assert best is not None
        found["steps"][name], found["rates"][name] = best[0], best[1]
        distance = best[2].norm(dim=1) / start.norm()
        found["first"][name] = int((distance < settings.reached).int().argmax())
        found["paths"][name] = best[2][:: max(1, settings.steps // 500)].tolist()
    rules = {"Adagrad, lecture": mean_adagrad(0.3), "with decay": mean_adagrad(0.3, decay=True)}
    noise = settings.noise * torch.randn((settings.steps, 2), generator=generator, dtype=torch.float64)
    found["jump"], found["height"] = {}, {}
    for name, made in rules.items():
        path = walk(made, curvature, start, settings.steps, noise)
        found["jump"][name] = late_jump(path)
        found["height"][name] = path[:: max(1, settings.steps // 500), 1].abs().tolist()
    found["apart"] = max(apart_from_torch(name, curvature, start) for name in TORCH)
    return found


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Twice as many steps count as slower; coming back to a tenth of the start across the valley as an explosion."""
    findings = [fact("the notes' formulas give torch.optim's steps (distance)", measurements[0]["apart"], 1e-6)]
    for name in ("Adagrad", "RMSProp", "Adam"):
        ratio = [math.log2(m["steps"]["descent"] / max(1, m["steps"][name])) for m in measurements]
        claim = f"{name} needs less than half the steps of plain descent, each at its best rate (log2 ratio)"
        findings.append(effect(claim, ratio, 1.0))
    jump = across([m["jump"] for m in measurements], "Adagrad, lecture")
    findings.append(
        effect(
            "the lecture's Adagrad, a mean under the root, explodes late (log10 over 1 % of the start)",
            jump.tolist(),
            1.0,
        )
    )
    calm = across([m["jump"] for m in measurements], "with decay")
    findings.append(effect("a decaying rate takes 1 or more off that (log10)", (jump - calm).tolist(), 1.0))
    return findings


def figure(measurements: list[Measurements]) -> Figure:
    """Paths in the valley, and the distance across it over time for the lecture's Adagrad."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    first = measurements[0]
    x, y = np.meshgrid(np.linspace(-3.2, 1, 100), np.linspace(-3, 3, 100))
    left.contour(x, y, np.log(0.1 * x**2 + 10 * y**2 + 1e-2), 12, colors="0.8", linewidths=0.7)
    for name, path in first["paths"].items():
        place = np.array(path)
        left.plot(place[:, 0], place[:, 1], ".-", markersize=3, linewidth=0.8,
                  label=f"{name} ({first['rates'][name]:g})")  # fmt: skip
    left.set(xlim=(-3.2, 1), ylim=(-3, 3), xlabel="along the valley", ylabel="across", title="each at its best rate")
    left.legend(fontsize=7)
    every = max(1, (first["limit"] - 1) // 500)
    for name, height in first["height"].items():
        right.semilogy(np.arange(len(height)) * every, np.clip(height, 1e-9, None), linewidth=0.8, label=name)
    right.set(xlabel="step", ylabel="distance across the valley", title="mean under the root, rate 0.3")
    right.legend(fontsize=8)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Steps to the goal at the best rate."""
    rows = []
    for name in RULES:
        steps = [m["steps"][name] for m in measurements]
        missed = sum(s >= m["limit"] for s, m in zip(steps, measurements, strict=True))
        rates = sorted({m["rates"][name] for m in measurements})
        first = [m["first"][name] for m in measurements]
        rows.append([name, mean_and_spread(steps), mean_and_spread(first), missed, ", ".join(f"{r:g}" for r in rates)])
    return ["rule", "steps until it stays within 1 %", "first there", "seeds that never arrive", "best rate"], rows


STUDY = Study(
    number=9,
    heading="Adaptive Learning Rate",
    chinese="自適應學習率",
    claim="In a narrow valley one rate for all directions is slow; Adagrad, RMSProp and Adam give each its own. A "
    "mean of all squared gradients makes steps explode late, and a decaying rate fixes it.",
    source="Lecture 4 of 2021; Duchi et al. 2011, JMLR; Tieleman and Hinton 2012; Kingma and Ba 2015 (arXiv 1412.6980)",
    idea="Across the valley gradients are large, along it they are small; dividing each by the size it usually has "
    "makes steps alike. The lecture's σ is the root of the <em>mean</em> of all squares: it shrinks across the valley "
    "while descent goes along it, until one step there is too long. Adagrad's own sum never shrinks.",
    formula="θ ← θ − η g / σ; Adagrad σ² = Σ g², the lecture's σ² = mean g², RMSProp σ² ← α σ² + (1 − α) g², Adam: "
    "RMSProp with momentum",
    varies="rule, each at the best of eight rates; where the descent starts",
    code=(
        "scripts/studies/adaptive_rates.py:adagrad",
        "scripts/studies/adaptive_rates.py:rmsprop",
        "scripts/studies/adaptive_rates.py:adam",
    ),
    quick=Settings(),
    full=Settings(steps=20000),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    seeds=5,
)
