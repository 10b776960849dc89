"""The general guide: a deeper net with a higher training loss has an optimisation issue; residual connections help."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from callbacks.general_guide import Losses, diagnose
from callbacks.warmup import WarmupScheduler
from datamodules.hw1_covid import CovidData
from scripts.studies.lab.fit import Curve, errors, fit, regressor
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread

NETS = {"shallow": (0, False), "deep, plain": (1, False), "deep, residual": (1, True)}
"""Index of the depth, residual."""


@dataclass(frozen=True)
class Settings:
    """Hidden layers of the shallow and the deep nets, their width, and how they are trained."""

    depths: tuple[int, int] = (2, 30)
    width: int = 32
    epochs: int = 30
    rate: float = 1e-3
    edition: str | None = None


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Training loss of the last epoch and held-out error of the three nets, and the branch the guide names for each."""
    losses, curves = {}, {}
    for name, (which, residual) in NETS.items():
        torch.manual_seed(seed)
        data = CovidData(str(root), edition=settings.edition, seed=seed, batch_size=256)
        hidden = [settings.width] * settings.depths[which]
        module = regressor(torch.optim.Adam, settings.rate, hidden=hidden, residual=residual, batch_norm=True)
        curve = Curve()
        fit(module, data, settings.epochs, [curve, WarmupScheduler(schedule="cosine", warmup=0)])
        curves[name] = curve.by_epoch(settings.epochs)
        size = sum(p.numel() for p in module.parameters())
        losses[name] = Losses(size, curves[name][-1], errors(module, data).held_out)
    guide = {
        name: diagnose(own, [other for key, other in losses.items() if key != name], goal=None)
        for name, own in losses.items()
    }
    return {
        "depths": list(settings.depths),
        "train": {name: run.train for name, run in losses.items()},
        "held_out": {name: run.validation for name, run in losses.items()},
        "curves": curves,
        "branch": guide,
    }


def ratio(above: str, below: str) -> Callable[[Measurements], float]:
    """How many times one net's training loss is another's."""
    return lambda found: found["train"][above] / found["train"][below]


def taken_back(found: Measurements) -> float:
    """Share of the logarithm of what depth cost in training loss that residual connections save."""
    loss = found["train"]
    return math.log(loss["deep, plain"] / loss["deep, residual"]) / math.log(loss["deep, plain"] / loss["shallow"])


LOSS = Said("times the training loss", "倍的訓練損失")
STATEMENTS = (
    Statement(
        Said(
            "The deep plain net has more training loss than the shallow one, so it is not overfitting.",
            "一般的深網路，訓練損失比淺網路大，所以不是過擬合。",
        ),
        ratio("deep, plain", "shallow"), 1.1, LOSS, "ratio",
    ),
    Statement(
        Said("Residual connections lower the deep net's training loss.", "殘差連接會降低深網路的訓練損失。"),
        ratio("deep, plain", "deep, residual"), 1.1, LOSS, "ratio",
    ),
    Statement(
        Said(
            "Residual connections take back more than half of what depth costs in training loss (in logarithms).",
            "加深所增加的訓練損失（取對數），殘差連接拿回一半以上。",
        ),
        taken_back, 0.5, Said("% of it", "%"), "share",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Training loss by epoch, and both errors at the end."""
    drawn = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for place, (name, colour) in enumerate(zip(NETS, ("tab:blue", "tab:red", "tab:green"), strict=True)):
        curves = np.array([m["curves"][name] for m in measurements])
        epochs = range(1, curves.shape[1] + 1)
        depth = measurements[0]["depths"][NETS[name][0]]
        left.semilogy(epochs, curves.T, color=colour, alpha=0.25, linewidth=0.8)
        left.semilogy(epochs, np.exp(np.log(curves).mean(0)), color=colour, label=f"{name}: {depth} hidden layers")
        for part, shift, style in (("train", -0.15, "o"), ("held_out", 0.15, "s")):
            values = [m[part][name] for m in measurements]
            right.plot(np.full(len(values), place + shift), values, style, color=colour, alpha=0.6,
                           fillstyle="full" if part == "train" else "none")  # fmt: skip
    left.set(xlabel="epoch", ylabel="training loss (percent²)", title="while training")
    left.legend(fontsize=9)
    right.set_xticks(range(len(NETS)), NETS)
    right.set(ylabel="mean squared error (percent²)", ylim=(0, None), title="full: training, hollow: held out")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Errors of the nets, and what the guide says of them."""
    rows = []
    for name, (which, _) in NETS.items():
        train, held_out = ([m[part][name] for m in measurements] for part in ("train", "held_out"))
        branches = [m["branch"][name] for m in measurements]
        said = ", ".join(f"{b} ({branches.count(b)})" for b in dict.fromkeys(branches))
        depth = measurements[0]["depths"][which]
        rows.append([name, depth, mean_and_spread(train), mean_and_spread(held_out), said])
    return ["net", "hidden layers", "training loss", "held-out error", "the guide says (seeds)"], rows


STUDY = Study(
    number=2,
    heading=Said("General Guide", "機器學習任務攻略：模型偏差還是最佳化問題"),
    lecture=Said(
        "Look at the training loss first. A deeper net could copy the shallow one and let its other layers pass "
        "everything through, so if it has <em>more</em> training loss it is neither too simple nor overfitting: a good "
        "setting of its weights was not found. Residual connections make passing through the easy thing to do.",
        "先看訓練損失。深的網路只要複製淺的網路，其餘各層原樣輸出，就至少一樣好；所以訓練損失反而<em>較大</em>時，"
        "不是模型太簡單，也不是過擬合，而是沒有找到那組參數。殘差連接讓「原樣輸出」變得很容易。",
    ),
    formula="L<sub>train</sub>(deep) &gt; L<sub>train</sub>(shallow) ⇒ optimisation; block: y = x + f(x)",
    varies=Said(
        "2 or 30 hidden layers of the same width, with and without residual connections, all with batch "
        "normalisation as in the paper; HW1's module, data and Adam.",
        "2 層或 30 層同樣寬的隱藏層，有或沒有殘差連接，都和論文一樣有批次標準化；用 HW1 的模型、資料與 Adam。",
    ),
    caption=Said(
        "Left: training loss by epoch, a thin line for each seed. Right: loss on the training rows (full) and on rows "
        "held out (hollow) at the end.",
        "左：各個 epoch 的訓練損失，細線是各個種子。右：最後在訓練資料（實心）與留出資料（空心）上的損失。",
    ),
    doubt=Said(
        "One width, one rate and one optimizer: a plain net that trains as well with another would show that the cure "
        "need not be the residual.",
        "只試了一種寬度、一個學習率、一種最佳化方法；如果換一種就能把一般的深網路訓練好，殘差連接就不是唯一的解法。",
    ),
    again=(
        "leeml fit --config configs/hw1_covid/medium.yaml --model.hidden [32,32,32,32,32,32,32,32,32,32]",
        Said(
            "Ten hidden layers; the guide says what it thinks after the fit.",
            "十層隱藏層；訓練之後，攻略會說出它的看法。",
        ),
    ),
    source="Lecture 2 of 2021; He et al. 2016, CVPR (arXiv 1512.03385), figure 1",
    code=("callbacks/general_guide.py:diagnose", "modules/nets/mlp.py:Block"),
    quick=Settings(),
    full=Settings(epochs=100, edition="2021"),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw1_covid",
)
