"""Batch normalisation: rounder losses, fewer steps, deep sigmoid nets, and what becomes of the batch at test time."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from datamodules.hw2_phoneme import PhonemeData
from modules.hw2_phoneme import PhonemeClassifier
from modules.nets.window_mlp import WindowMLP
from scripts.studies.lab.fit import fit
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, across, mean_and_spread

WAYS = ("plain", "batch norm")


@dataclass(frozen=True)
class Settings:
    """The line that is fitted, and HW2's nets.

    Args:
        larger: The second feature's size over the first's.
        hidden: Widths of the ReLU net.
        rates: Of its plain descent, to choose from.
        deep: Widths of the sigmoid net.
        deep_rate: Adam's, for it.
        window, batch: Frames in a window, and windows in a batch.
        epochs: Of every fit.
        every: Steps from one look at the accuracy to the next.
        judged: Held-out frames of a look, or a few more.
        examples, companies: Held-out windows, and batches in which each is looked at, of 32 windows.
    """

    larger: float = 10.0
    hidden: tuple[int, ...] = (128, 128, 128)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    deep: tuple[int, ...] = (64,) * 8
    deep_rate: float = 1e-3
    window: int = 5
    batch: int = 256
    epochs: int = 4
    every: int = 5
    judged: int = 1000
    examples: int = 16
    companies: int = 20


def features(larger: float, seed: int) -> Tensor:
    """The lecture's table (200, 2): the second column holds numbers like the first's, but so many times as large."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + 4 * torch.rand((200, 2), generator=generator, dtype=torch.float64)
    return x * torch.tensor([1.0, larger])


def scaled(x: Tensor) -> Tensor:
    """Every feature (N, D) with mean 0 and deviation 1."""
    return (x - x.mean(0)) / x.std(0, correction=0)


def curvatures(x: Tensor) -> Tensor:
    """Eigenvalues (2,), ascending, of the Hessian of the mean squared error of w1 x1 + w2 x2, which is 2 E[x x']."""
    return torch.linalg.eigvalsh(2 * x.mT @ x / len(x))


def best_rate(x: Tensor) -> float:
    """The constant rate at which both directions of the bowl shrink alike, and the slower one fastest."""
    return 2 / float(curvatures(x).sum())


def steps_needed(x: Tensor, share: float = 0.01) -> int:
    """Steps of plain descent at that rate until what is too much of the loss is down to a share of the first.

    Along every eigenvector the distance shrinks by (k - 1) / (k + 1) a step, where k is the ratio of the curvatures.
    """
    low, high = curvatures(x).tolist()
    return math.ceil(math.log(share) / (2 * math.log((high - low) / (high + low))))


def path(x: Tensor, start: Tensor, steps: int) -> Tensor:
    """Places (steps + 1, 2) of descent at the best rate to the weights 0."""
    hessian, rate = 2 * x.mT @ x / len(x), best_rate(x)
    places = [start]
    for _ in range(steps):
        places.append(places[-1] - rate * hessian @ places[-1])
    return torch.stack(places)


def normalised(z: Tensor, mean: Tensor, variance: Tensor, gain: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """The lecture's formula: z (B, D) with the given mean and variance (D,) taken away, then gain and shift (D,)."""
    return gain * (z - mean) / (variance + eps).sqrt() + shift


def apart_from_torch(seed: int, batches: int = 20, momentum: float = 0.1) -> float:
    """Largest distance of that formula from nn.BatchNorm1d, in training and, with running averages, afterwards."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm1d(6, momentum=momentum, dtype=torch.float64)
    gain, shift = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        norm.weight.copy_(gain)
        norm.bias.copy_(shift)
    mean, variance = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    apart = 0.0
    for _ in range(batches):
        z = 3 + 2 * torch.randn((10, 6), generator=generator, dtype=torch.float64)
        ours = normalised(z, z.mean(0), z.var(0, correction=0), gain, shift)
        apart = max(apart, float((norm(z) - ours).detach().abs().max()))
        mean = (1 - momentum) * mean + momentum * z.mean(0)
        variance = (1 - momentum) * variance + momentum * z.var(0)  # torch keeps the variance over B - 1
    norm.eval()
    return max(apart, float((norm(z) - normalised(z, mean, variance, gain, shift)).detach().abs().max()))


class HeldOut(Callback):
    """Accuracy on held-out windows before the first step and every few steps, in evaluation mode."""

    def __init__(self, every: int, judged: int) -> None:
        self.every, self.judged = every, judged
        self.steps: list[int] = []
        self.accuracy: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take windows from all over the held-out frames, and look for the first time."""
        batches = list(trainer.datamodule.val_dataloader())  # type: ignore[attr-defined]
        self.x, self.y = (torch.cat([batch[name] for batch in batches]) for name in ("x", "y"))
        step = max(1, len(self.y) // self.judged)
        self.x, self.y = self.x[::step], self.y[::step]
        self.common = float(self.y.bincount().max()) / len(self.y)
        self.look(0, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look every few steps."""
        if trainer.global_step % self.every == 0:
            self.look(trainer.global_step, pl_module)

    @torch.no_grad()
    def look(self, step: int, module: LightningModule) -> None:
        """Keep the step and the share of right answers."""
        module.eval()
        said = module(self.x)[0].argmax(1)
        module.train()
        self.steps.append(step)
        self.accuracy.append(float((said == self.y).double().mean()))


def trained(
    settings: Settings, seed: int, root: Path, optimizer: Callable[..., torch.optim.Optimizer], **options: Any
) -> tuple[PhonemeClassifier, HeldOut]:
    """HW2's module after a fit, and its accuracies.

    Args:
        settings, seed, root: As in `run`.
        optimizer: Called with the parameters.
        options: Of WindowMLP.
    """
    torch.manual_seed(seed)
    module = PhonemeClassifier(optimizer, partial(WindowMLP, **options))
    data = PhonemeData(str(root), seed=seed, window=settings.window, batch_size=settings.batch)
    held_out = HeldOut(settings.every, settings.judged)
    fit(module, data, settings.epochs, [held_out])
    return module, held_out


@torch.no_grad()
def in_company(
    module: PhonemeClassifier, x: Tensor, examples: int, companies: int, generator: torch.Generator
) -> Measurements:
    """Probabilities of windows' classes in batches (32, n, D) with others, by batch statistics and running averages.

    Args:
        module: Trained.
        x: Windows (N, n, D), from which examples are taken at equal distances, and their company by chance.
        examples, companies: E and K.
        generator: Of the company.

    Returns:
        train (E, K): by batch statistics, of the class that the window gets by running averages. test (E,): by running
        averages, alone. apart: by running averages, the largest difference that company makes.
    """
    module = deepcopy(module)  # batch statistics would go into its averages
    chosen = torch.linspace(0, len(x) - 1, examples).long()
    others = torch.randint(len(x), (examples, companies, 31), generator=generator)
    alone = module.eval()(x[chosen])[0].softmax(1)
    probability, said = alone.max(1)
    found: dict[bool, Tensor] = {}
    for training in (False, True):
        module.train(training)
        batches = [torch.cat([x[i : i + 1], x[j]]) for i, row in zip(chosen, others, strict=True) for j in row]
        first = torch.stack([module(batch)[0, 0].softmax(0) for batch in batches]).view(examples, companies, -1)
        found[training] = first.gather(2, said.view(-1, 1, 1).expand(-1, companies, 1)).squeeze(2)
    return {
        "train": found[True].tolist(),
        "test": probability.tolist(),
        "apart": float((found[False] - probability.unsqueeze(1)).abs().max()),
    }


def first_reaching(accuracy: list[float], steps: list[int], goal: float) -> float:
    """The first step with so much accuracy; inf where there is none."""
    return next((step for step, value in zip(steps, accuracy, strict=True) if value >= goal), math.inf)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Roundness of a bowl, accuracies by step with and without batch norm, and one example in many batches."""
    raw = features(settings.larger, seed)
    found: Measurements = {"bowl": {}, "every": settings.every, "rates": list(settings.rates)}
    for name, x in (("as they are", raw), ("scaled", scaled(raw))):
        low, high = curvatures(x).tolist()
        places = path(x, torch.tensor([-1.0, 0.7], dtype=torch.float64), 10)
        found["bowl"][name] = {
            "hessian": (2 * x.mT @ x / len(x)).tolist(), "ratio": high / low, "steps": steps_needed(x),
            "path": places.tolist(),
        }  # fmt: skip
    found["apart"] = apart_from_torch(seed)
    found |= {"shallow": {}, "deep": {}, "deep rate": settings.deep_rate}
    best = None
    for name, norm in zip(WAYS, (False, True), strict=True):
        found["shallow"][name] = []
        for rate in settings.rates:
            module, held_out = trained(
                settings, seed, root, partial(torch.optim.SGD, lr=rate), hidden=settings.hidden, batch_norm=norm
            )
            found["shallow"][name].append(held_out.accuracy)
            if norm and (best is None or held_out.accuracy[-1] > best[0]):
                best = held_out.accuracy[-1], module
        _, held_out = trained(
            settings, seed, root, partial(torch.optim.Adam, lr=settings.deep_rate, fused=True), hidden=settings.deep,
            activation="sigmoid", batch_norm=norm,
        )  # fmt: skip
        found["deep"][name] = held_out.accuracy
    found |= {"steps": held_out.steps, "common": held_out.common}
    goal = 0.9 * min(max(max(curve) for curve in found["shallow"][name]) for name in WAYS)
    found["goal"] = goal
    found["needed"] = {
        name: min(first_reaching(curve, held_out.steps, goal) for curve in found["shallow"][name]) for name in WAYS
    }
    assert best is not None
    generator = torch.Generator().manual_seed(seed)
    found["company"] = in_company(best[1], held_out.x, settings.examples, settings.companies, generator)
    return found


def moved_by_company(found: Measurements) -> float:
    """By how much, at most, a batch moves an example's probability away from that by running averages."""
    company = found["company"]
    return float(np.abs(np.array(company["train"]) - np.array(company["test"])[:, None]).max())


STATEMENTS = (
    Statement(
        Said(
            "With two features brought to one size, descent on a linear model needs less than a tenth of the steps.",
            "兩個特徵調整成一樣大之後，線性模型的梯度下降只需要不到十分之一的步數。",
        ),
        lambda found: found["bowl"]["as they are"]["steps"] / found["bowl"]["scaled"]["steps"], 10.0,
        Said("times as many steps as they are", "倍的步數（不調整時）"), "ratio",
    ),
    Statement(
        Said(
            "With batch normalisation HW2's ReLU net reaches the same accuracy in less than half the steps, each net "
            "at its best rate.",
            "加上批次標準化，HW2 的 ReLU 網路不到一半的步數就達到同樣的正確率（各用自己最好的學習率）。",
        ),
        lambda found: max(1, found["needed"]["plain"]) / max(1, found["needed"]["batch norm"]), 2.0,
        Said("times as many steps without it", "倍的步數（沒有它時）"), "ratio",
    ),
    Statement(
        Said(
            "Without batch normalisation a deep net of sigmoids stays within 5 percentage points of naming the most "
            "common class for all.",
            "沒有批次標準化，很深的 sigmoid 網路學不起來：正確率最多只比永遠猜最常見的類別高 5 個百分點。",
        ),
        lambda found: found["deep"]["plain"][-1] - found["common"], 0.05,
        Said("percentage points above it", "個百分點（比它高）"), "share", "at most",
    ),
    Statement(
        Said(
            "With batch normalisation the same net learns: it is more than 10 percentage points more accurate.",
            "加上批次標準化，同一個網路就學得起來：正確率多 10 個百分點以上。",
        ),
        lambda found: found["deep"]["batch norm"][-1] - found["deep"]["plain"][-1], 0.1,
        Said("percentage points more accurate", "個百分點的正確率"), "share",
    ),
    Statement(
        Said(
            "The lecture's formulas are torch.nn.BatchNorm1d, in training and in testing.",
            "課堂上的公式就是 torch.nn.BatchNorm1d，訓練與測試時都是。",
        ),
        lambda found: found["apart"], 1e-12, Said("apart", "的差距"), kind="exact",
    ),
    Statement(
        Said(
            "In testing, by running averages, an example's probability does not depend on its batch.",
            "測試時用移動平均，一筆資料的機率不受同批次的其他資料影響。",
        ),
        lambda found: found["company"]["apart"], 1e-5, Said("of difference at most", "的差距（最大）"), kind="exact",
    ),
    Statement(
        Said(
            "In training, by batch statistics, it does: some example's probability moves by more than 1 percentage "
            "point.",
            "訓練時用批次的統計量，就會受影響：有的機率變動超過 1 個百分點。",
        ),
        moved_by_company, 0.01, Said("percentage points, where it moves most", "個百分點（變動最大的一筆）"), "share",
    ),
)  # fmt: skip


def draw_bowl(axes: Axes, bowl: dict[str, Any], title: str) -> None:
    """Contours of the loss around its least, and descent at the best rate."""
    axis = np.linspace(-1.2, 1.2, 121)
    w1, w2 = np.meshgrid(axis, axis)
    (a, b), (_, d) = bowl["hessian"]
    height = (a * w1**2 + 2 * b * w1 * w2 + d * w2**2) / 2
    axes.contour(w1, w2, np.sqrt(height), 10, cmap="viridis", linewidths=0.8)
    places = np.array(bowl["path"])
    axes.plot(places[:, 0], places[:, 1], ".-", color="tab:red", linewidth=0.8, markersize=4)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xlabel="w1 − best", ylabel="w2 − best",
             title=f"{title}\n1 % of the loss after {bowl['steps']} steps")  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Contours before and after scaling, one example in many batches, accuracies by step."""
    drawn = Figure(figsize=(8, 11), layout="constrained")
    places = drawn.subplot_mosaic("AB;CD;EE", height_ratios=[4, 4, 3])
    raw, round_, shallow, deep, company = (places[letter] for letter in "ABCDE")
    first = measurements[0]
    for axes, (name, bowl) in zip((raw, round_), first["bowl"].items(), strict=True):
        draw_bowl(axes, bowl, f"features {name}")
    for axes, key in ((shallow, "shallow"), (deep, "deep")):
        for name, colour in zip(WAYS, ("tab:blue", "tab:orange"), strict=True):
            curves = [m[key][name] for m in measurements]
            if key == "shallow":
                curves = [max(by_rate, key=lambda curve: curve[-1]) for by_rate in curves]
            shortest = min(map(len, curves))  # folds differ in length
            steps, values = first["steps"][:shortest], np.array([curve[:shortest] for curve in curves])
            axes.plot(steps, 100 * values.T, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, 100 * values.mean(0), color=colour, label=name)
    deep.axhline(100 * across(measurements, "common").mean(), color="0.5", linestyle=":", label="most common class")
    shallow.set(xlabel="step", ylabel="held-out accuracy (%)", title="ReLU net, each at its best rate")
    deep.set(xlabel="step", ylim=shallow.get_ylim(), title="deep net of sigmoids")
    seen, tested = (np.array(first["company"][part]) for part in ("train", "test"))
    order = tested.argsort()
    company.plot(100 * seen[order], "o", color="tab:orange", alpha=0.3, markersize=4)
    company.plot(100 * seen[order][:1, :1], "o", color="tab:orange", markersize=4, label="training: batch statistics")
    company.plot(100 * tested[order], "_", color="black", markersize=14, markeredgewidth=2,
                 label="testing: running averages")  # fmt: skip
    company.set(xlabel="example", ylabel="probability of its class (%)", ylim=(0, 105),
                title="one example in many batches")  # fmt: skip
    for axes in (shallow, deep, company):
        axes.legend(fontsize=9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Accuracy at the end by rate, steps needed, and the bowls."""
    rows: list[list[Any]] = []
    for name in WAYS:
        for i, rate in enumerate(measurements[0]["rates"]):
            end = [m["shallow"][name][i][-1] for m in measurements]
            rows.append([f"ReLU net, {name}, rate {rate:g}", "accuracy", mean_and_spread(end)])
        rows.append(
            [f"ReLU net, {name}", "steps to the goal", mean_and_spread([m["needed"][name] for m in measurements])]
        )
        rows.append(
            [f"deep sigmoid net, {name}", "accuracy", mean_and_spread([m["deep"][name][-1] for m in measurements])]
        )
    for name in measurements[0]["bowl"]:
        for key, what in (("ratio", "ratio of the curvatures"), ("steps", "steps to 1 % of the loss")):
            values = [m["bowl"][name][key] for m in measurements]
            rows.append([f"linear model, features {name}", what, mean_and_spread(values)])
    return ["", "measure", "value"], rows


STUDY = Study(
    number=11,
    heading=Said("Batch Normalization", "批次標準化"),
    lecture=Said(
        "A feature with large numbers makes the loss steep in its weight, and the one learning rate for all must suit "
        "the steepest direction. The inputs of inner layers are features, too, and they change while the layers before "
        "them learn, so batch normalisation brings them to mean 0 and deviation 1 in every step, over the batch. At "
        "test time there may be no batch; averages from training stand in.",
        "數值大的特徵讓損失在它的權重方向上很陡，而所有方向共用的學習率必須配合最陡的方向。中間各層的輸入也是特徵，"
        "而且會隨著前面各層改變，"
        "所以批次標準化每一步都用這個批次，把它們調整成平均 0、標準差 1。測試時可能沒有批次，"
        "就改用訓練時累積的平均。",
    ),
    formula="z̃ = (z − μ) / √(σ² + ε), ẑ = γ ⊙ z̃ + β, with μ and σ² of the batch; running: μ̄ ← p μ̄ + (1 − p) μ",
    varies=Said(
        "The scale of two features of a linear model; HW2's net with and without batch normalisation, each at the best "
        "of three rates; a deep net of sigmoids; and the batch around an example. The goal of the ReLU nets is nine "
        "tenths of the lower of both best accuracies.",
        "線性模型中兩個特徵的大小；HW2 的網路有沒有批次標準化，各用三個學習率中最好的；很深的 sigmoid 網路；"
        "以及一筆資料周圍的批次。"
        "ReLU 網路的目標是兩者最佳正確率中較低者的九成。",
    ),
    caption=Said(
        "Above: the loss by two weights, and descent at the best rate. Middle: accuracy on new frames by step, one "
        "thin line a seed. Below: the probability of the same example in many batches.",
        "上：損失與兩個權重的關係，以及最好學習率的下降路徑。中：新資料上的正確率，每條細線是一個種子。下："
        "同一筆資料在許多批次中的機率。",
    ),
    doubt=Said(
        "Why it works is disputed: the paper named the changing inputs of inner layers, Santurkar 2018 found that it "
        "works as well where noise makes them change, and that the loss gets smoother. Other cures for deep sigmoid "
        "nets exist: better first weights, residual connections, other activations.",
        "為什麼有效仍有爭議：原論文說是中間各層的輸入一直變動；Santurkar 2018 發現，"
        "就算用雜訊讓它們變動也一樣有效，真正的原因是損失曲面變平滑。"
        "很深的 sigmoid 網路也有其他辦法：更好的初始權重、殘差連接、換活化函數。",
    ),
    again=(
        "leeml fit --config configs/hw2_phoneme/medium.yaml --model.net.batch_norm true",
        Said("HW2's net with batch normalisation.", "加上批次標準化來訓練 HW2 的網路。"),
    ),
    source="Lecture 5 of 2021; Ioffe and Szegedy 2015, ICML (arXiv 1502.03167); Santurkar et al. 2018, NeurIPS (arXiv "
    "1805.11604)",
    code=(
        "scripts/studies/batch_norm.py:normalised",
        "modules/nets/window_mlp.py:WindowMLP",
        "modules/nets/mlp.py:MemberBatchNorm",
    ),
    quick=Settings(),
    full=Settings(hidden=(256, 256, 256), deep=(128,) * 12, window=11, every=20, judged=2000),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw2_phoneme",
    full_looks=(4, 8),
)
