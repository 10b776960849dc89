"""A sum of sigmoids fits any continuous function of one variable: built by hand, and trained."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from modules.nets.mlp import MLP
from scripts.studies.lab.recorded import sigmoids
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Play, Study, Table, across, mean_and_spread


@dataclass(frozen=True)
class Settings:
    """Numbers of sigmoids, and steps of training."""

    counts: tuple[int, ...] = (2, 4, 16, 64)
    steps: int = 1000
    rate: float = 0.02


def random_function(seed: int) -> tuple[Tensor, Tensor]:
    """A continuous function with values from -1 to 1 on a grid of [-1, 1]: x and y (401,), float64.

    Smooth waves of random phases, and a jagged line through random points, which no derivative describes.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, 401)
    waves = sum(rng.normal() * np.sin(math.pi * n * x + rng.uniform(0, 2 * math.pi)) / n for n in range(1, 5))
    jagged = np.interp(x, np.linspace(-1, 1, 9), rng.normal(0, 0.5, 9))
    y = waves + jagged
    return torch.from_numpy(x), torch.from_numpy(2 * (y - y.min()) / (y.max() - y.min()) - 1)


def built(x: Tensor, y: Tensor, count: int) -> MLP:
    """The project's perceptron with `count` sigmoids set by hand: one a stretch of x, its height by least squares."""
    net = MLP(1, 1, 1, [count], "sigmoid").double()
    width = float(x[-1] - x[0]) / count
    centres = x[0] + width * (torch.arange(count) + 0.5)
    steepness = 4 / width  # slope 1 across one stretch at the middle of the sigmoid
    with torch.no_grad():
        hidden, out = net[0].linear, net[1]
        hidden.weight.fill_(steepness)  # type: ignore[operator,union-attr]
        hidden.bias.copy_((-steepness * centres).view(1, 1, -1))  # type: ignore[operator,union-attr]
        design = net[0](x.view(1, -1, 1))[0]
        design = torch.cat([design, torch.ones_like(design[:, :1])], dim=1)
        found = torch.linalg.lstsq(design, y.unsqueeze(1), driver="gelsd").solution
        out.weight.copy_(found[:-1].unsqueeze(0))  # type: ignore[operator]
        out.bias.copy_(found[-1:].unsqueeze(0))  # type: ignore[operator]
    return net


def trained(x: Tensor, y: Tensor, count: int, steps: int, rate: float) -> MLP:
    """The same network from random weights, by Adam on the mean squared error, its rate falling to 0."""
    net = MLP(1, 1, 1, [count], "sigmoid").double()
    with torch.no_grad():  # steps as steep as the stretches are narrow
        net[0].linear.weight.mul_(10)  # type: ignore[operator,union-attr]
        net[0].linear.bias.mul_(10)  # type: ignore[operator,union-attr]
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x.view(1, -1, 1)).view(-1) - y).square().mean().backward()
        optimizer.step()
        schedule.step()
    return net


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Largest errors by number of sigmoids, and what three of the sums look like."""
    x, y = random_function(seed)
    found: Measurements = {"counts": list(settings.counts), "x": x.tolist(), "y": y.tolist(), "curves": {}}
    found["parts"] = {"built": {}, "trained": {}}
    for way in ("built", "trained"):
        largest = []
        for count in settings.counts:
            net = built(x, y, count) if way == "built" else trained(x, y, count, settings.steps, settings.rate)
            with torch.no_grad():
                said = net(x.view(1, -1, 1)).view(-1)
            largest.append(float((said - y).abs().max()))
            found["parts"][way][str(count)] = sigmoids(net)
            if way == "built" and count in settings.counts[1:3]:
                found["curves"][str(count)] = said.tolist()
        found[way] = largest
    return found


TIMES = Said("times as large", "倍")
STATEMENTS = (
    Statement(
        Said(
            "Set by hand, many sigmoids leave less than a quarter of the largest error that two leave.",
            "手動設定時，許多 sigmoid 的最大誤差不到兩個 sigmoid 的四分之一。",
        ),
        lambda found: found["built"][0] / found["built"][-1], 4, Said("times less", "倍的縮小"), "ratio",
    ),
    Statement(
        Said(
            "Trained from random weights, they leave less than half of it.",
            "從隨機權重開始訓練，許多 sigmoid 的最大誤差不到兩個的一半。",
        ),
        lambda found: found["trained"][0] / found["trained"][-1], 2, Said("times less", "倍的縮小"), "ratio",
    ),
    Statement(
        Said(
            "Training does not find the best: with the most sigmoids its largest error is more than twice that of "
            "those set by hand.",
            "訓練找不到最好的：sigmoid 最多時，訓練的最大誤差是手動設定的兩倍以上。",
        ),
        lambda found: found["trained"][-1] / found["built"][-1], 2, TIMES, "ratio",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """One function with two sums of sigmoids, and the largest error by their number."""
    drawn = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    first = measurements[0]
    left.plot(first["x"], first["y"], color="black", linewidth=2.5, alpha=0.5, label="function")
    for count, curve in first["curves"].items():
        left.plot(first["x"], curve, linewidth=1.2, label=f"{count} sigmoids")
    left.set(xlabel="x", ylabel="y", title="sums of sigmoids set by hand")
    left.legend()
    for way, colour in (("built", "tab:blue"), ("trained", "tab:orange")):
        errors = across(measurements, way)
        right.loglog(first["counts"], errors.T, color=colour, alpha=0.3, linewidth=0.8)
        right.loglog(first["counts"], np.exp(np.log(errors).mean(0)), "o-", color=colour, label=way)
    right.set(xlabel="number of sigmoids", ylabel="largest error", title=f"{len(measurements)} random functions")
    right.set_xticks(first["counts"], [str(c) for c in first["counts"]])
    right.minorticks_off()
    right.legend()
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Largest error by number of sigmoids."""
    rows = [
        [count, *(mean_and_spread(across(measurements, way)[:, i]) for way in ("built", "trained"))]
        for i, count in enumerate(measurements[0]["counts"])
    ]
    return ["sigmoids", "largest error, built", "largest error, trained"], rows


def one_by_one(measurements: list[Measurements]) -> Any:
    """The function of the first seed, and the sigmoids that were fitted to it."""
    return {key: measurements[0][key] for key in ("x", "y", "parts")}


STUDY = Study(
    number=1,
    heading=Said("Neuron and Neuron Network", "神經元與神經網路：用 Sigmoid 疊加擬合任何函數"),
    lecture=Said(
        "A sigmoid is a soft step. Cut the axis into k stretches and put one step into each: with the right heights "
        "their sum follows any continuous curve, the closer the more steps there are. That a sum <em>can</em> come "
        "close does not say that training finds it.",
        "每個 sigmoid 都是一個平緩的階梯。把橫軸切成 k 段，每段放一個階梯，高度合適就能拼出任何連續曲線，階梯越多越接"
        "近。不過「拼得出來」不代表「訓練找得到」。",
    ),
    formula="y = b + Σ<sub>i</sub> c<sub>i</sub> sigmoid(b<sub>i</sub> + w<sub>i</sub> x)",
    varies=Said(
        "The number of sigmoids, and who sets them: by hand with heights by least squares, or Adam from random "
        "weights. Every seed has another continuous function, smooth waves with a jagged line.",
        "sigmoid 的數目，以及由誰設定：手動放好、用最小平方法求高度，或由 Adam 從隨機權重訓練。每個種子是另一個連續函"
        "數：平滑的波加上鋸齒線。",
    ),
    caption=Said(
        "Left: one function (grey) and two sums set by hand. Right: the largest error by the number of sigmoids, a "
        "thin line for each function, the thick one is their mean.",
        "左：一個函數（灰）與兩個手動設定的疊加。右：最大誤差隨 sigmoid 數目的變化，細線是各個函數，粗線是平均。",
    ),
    doubt=Said(
        "One input. With d inputs the same way needs a number of steps that grows like a power of d.",
        "這裡只有一個輸入。有 d 個輸入時，同樣的做法需要的階梯數以 d 次方成長。",
    ),
    again=(
        "leeml fit --config configs/hw1_covid/medium.yaml --model.hidden [2]",
        Said("HW1 with two neurons; then try 64.", "只用兩個神經元做 HW1；再試試 64 個。"),
    ),
    source="Lecture 1 of 2021; Cybenko 1989, Mathematics of Control, Signals and Systems 2",
    code=("modules/nets/mlp.py:MLP",),
    quick=Settings(),
    full=Settings(counts=(2, 4, 8, 16, 32, 64, 128), steps=10000),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("sigmoids", one_by_one),
)
