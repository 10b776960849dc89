"""Momentum: the notes' recursion against torch's, and a way across a plateau where plain descent stops."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, fact, mean_and_spread


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


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Equality is exact; crossing is compared over seeds, also with plain descent of the same total step."""
    first = measurements[0]
    findings = [
        fact(
            "with a constant rate the recursion equals torch.optim.SGD (distance)", first["apart, constant rate"], 1e-12
        ),
        fact(
            "when the rate changes they differ by more than 0.01 (minus distance)",
            -first["apart, changing rate"],
            -0.01,
        ),
    ]
    for other in ("plain", "plain, rate / (1 - λ)"):
        for place, kind in enumerate(("a plateau", "a plateau and a hill")):
            gap = [m["crossed"]["momentum"][place] - m["crossed"][other][place] for m in measurements]
            findings.append(effect(f"momentum crosses {kind} more often than {other} (share)", gap, 0.1))
    return findings


def figure(measurements: list[Measurements]) -> Figure:
    """One landscape with all three paths, and the share that each way crosses."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
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
    left.legend(fontsize=8)
    for shift, name in enumerate(first["crossed"]):
        values = np.array([m["crossed"][name] for m in measurements])
        bars = right.bar(np.arange(2) + 0.27 * (shift - 1), values.mean(0), 0.25, color=colours[name], label=name)
        right.bar_label(bars, fmt="%.2f", fontsize=8)
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


STUDY = Study(
    number=8,
    heading="Momentum",
    chinese="動量",
    claim="Momentum carries descent across a plateau and over a small hill where plain descent stops; the notes' "
    "recursion is torch's SGD as long as the rate stays constant.",
    source="Lecture 3 of 2021; Polyak 1964; Sutskever et al. 2013, ICML",
    idea="The movement remembers earlier gradients, so it goes on where the gradient is small. torch multiplies the "
    "whole memory by the present rate, the notes keep each gradient with the rate of its time: the same until a "
    "schedule changes the rate. As momentum also makes steps 1 / (1 - λ) times as long on a steady slope, plain "
    "descent is tried with that rate, too.",
    formula="m<sub>t+1</sub> = λ m<sub>t</sub> − η g<sub>t</sub>, θ<sub>t+1</sub> = θ<sub>t</sub> + m<sub>t+1</sub>",
    varies="momentum 0 or 0.9, with the same rate and the same total step; random plateaus and hills",
    code=("scripts/studies/momentum.py:notes_step",),
    quick=Settings(),
    full=Settings(landscapes=400),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    seeds=5,
)
