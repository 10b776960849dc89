"""Warm-up: how much chance Adam's first steps hold, and post- and pre-norm Transformers with and without it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from scipy.special import polygamma
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from callbacks.schedules import constant
from callbacks.warmup import WarmupScheduler
from datamodules.hw2_phoneme import PhonemeData
from modules.hw2_phoneme import PhonemeClassifier
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.transformer import Norm
from scripts.studies.adaptive_rates import adam
from scripts.studies.lab.fit import Curve, fit
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Play, Study, Table, across, mean_and_spread

NORMS: tuple[Norm, ...] = ("post", "pre")


@dataclass(frozen=True)
class Settings:
    """The encoder, its training, and the first steps that are looked at.

    Args:
        layers, d_model: Of the encoder; heads of 16 numbers, and twice the width in between.
        rates: Adam's, to choose from.
        warmup: Steps of the warm-up.
        epochs: Of every fit.
        batch: Frames of a step.
        sequences: Ways to draw the batches of the first steps, over which variances are taken.
        first: Steps of each of them.
        deep: Layers of the encoders whose gradients are looked at before any step.
    """

    layers: int = 6
    d_model: int = 32
    rates: tuple[float, ...] = (1e-2,)
    warmup: int = 24
    epochs: int = 6
    batch: int = 512
    sequences: int = 6
    first: int = 8
    deep: int = 24


class Gradients(Callback):
    """The gradients of the first steps, all parameters in a row; then the fit ends."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.found: list[Tensor] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep a copy of the gradient."""
        self.found.append(parameters_to_vector([p.grad for p in pl_module.parameters() if p.grad is not None]).clone())
        trainer.should_stop = len(self.found) == self.steps


def trained(
    settings: Settings,
    norm: Norm,
    epochs: int,
    seed: int,
    root: Path,
    optimizer: Callable[..., torch.optim.Optimizer],
    callbacks: Iterable[Callback],
) -> PhonemeClassifier:
    """HW2's module with such an encoder, without dropout, after a fit on whole utterances."""
    torch.manual_seed(seed)
    width = settings.d_model
    net = partial(
        TransformerFrames, d_model=width, heads=max(1, width // 16), d_ff=2 * width, layers=settings.layers,
        dropout=0.0, norm=norm, positions="sinusoidal",
    )  # fmt: skip
    module = PhonemeClassifier(optimizer, net)
    data = PhonemeData(str(root), seed=seed, window=None, batch_size=settings.batch)
    fit(module, data, epochs, callbacks)
    return module


def gradients_at_start(
    settings: Settings, norm: Norm, steps: int, seed: int, root: Path
) -> tuple[PhonemeClassifier, Tensor]:
    """The network as it is at first, and its gradients in so many batches (S, P): descent at rate 0 stays there."""
    kept = Gradients(steps)
    still = partial(torch.optim.SGD, lr=0.0)
    return trained(settings, norm, steps, seed, root, still, [kept]), torch.stack(kept.found)


def by_layer(module: PhonemeClassifier, gradients: Tensor) -> list[float]:
    """Mean norm of the gradient of the last matrix in every layer, first to last, from gradients (S, P)."""
    parameters = dict(module.named_parameters())
    parts = gradients.split([p.numel() for p in parameters.values()], dim=1)
    return [
        float(part.norm(dim=1).mean())
        for name, part in zip(parameters, parts, strict=True)
        if name.endswith("linear2.weight")
    ]


def variances(gradients: Tensor, beta2: float = 0.999) -> tuple[list[float], list[float]]:
    """Variance over K sequences of what Adam makes of their gradients (K, n, P), by step, means over parameters.

    Returns:
        That of the update, of rate 1, and that of the logarithm of the adaptive rate 1 / sqrt(v).
    """
    gradients = gradients[:, :, (gradients != 0).all(dim=1).all(dim=0)]
    rule, mean = adam(1.0, beta2=beta2), torch.zeros(())
    update, rate = [], []
    for step in range(gradients.shape[1]):
        gradient = gradients[:, step]
        update.append(float(rule(gradient).var(dim=0).mean()))
        mean = beta2 * mean + (1 - beta2) * gradient.double() ** 2
        rate.append(float((mean / (1 - beta2 ** (step + 1))).log().mul(-0.5).var(dim=0).mean()))
    return update, rate


def of_pure_noise(step: int) -> float:
    """Variance of log(1 / sqrt(v)) where v is the mean of the squares of `step` normal numbers around 0."""
    return float(polygamma(1, step / 2)) / 4


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Variances of the first steps, gradients by layer at the start, and losses of four ways at each rate."""
    found: Measurements = {"layers": {}, "loss": {}, "end": {}, "warmup": settings.warmup, "rates": settings.rates}
    steps = settings.sequences * settings.first
    for norm in NORMS:
        module, gradients = gradients_at_start(replace(settings, layers=settings.deep), norm, 1, seed, root)
        found["layers"][norm] = by_layer(module, gradients)
        for way, warmup in (("without", 0), ("warm-up", settings.warmup)):
            ends = []
            for rate in settings.rates:
                curve = Curve()
                optimizer = partial(torch.optim.Adam, lr=rate, fused=True)
                callbacks = [curve, WarmupScheduler("constant", warmup)]
                trained(settings, norm, settings.epochs, seed, root, optimizer, callbacks)
                ends.append(curve.by_epoch(settings.epochs)[-1])
            found["end"][f"{norm}-norm, {way}"] = ends
            found["loss"][f"{norm}-norm, {way}"] = torch.stack(curve.losses).tolist()  # at the largest rate
    _, gradients = gradients_at_start(settings, "post", steps, seed, root)
    found["update"], found["rate"] = variances(gradients.view(settings.sequences, settings.first, -1))
    factors = [constant(step, settings.warmup) for step in range(settings.first)]
    found["warm update"] = [f**2 * v for f, v in zip(factors, found["update"], strict=True)]
    return found


def first_to_last(key: str) -> Callable[[Measurements], float]:
    """How many times as large a variance is in the first step as in the last that was looked at."""
    return lambda found: found[key][0] / found[key][-1]


def at_large_rate(above: str, below: str) -> Callable[[Measurements], float]:
    """How many times one way's loss in the last epoch is another's, at the largest rate."""
    return lambda found: found["end"][above][-1] / found["end"][below][-1]


VARIANCE = Said("times the variance", "倍的變異數")
LOSS = Said("times the training loss", "倍的訓練損失")
STATEMENTS = (
    Statement(
        Said(
            "The logarithm of Adam's adaptive rate varies more from batch to batch in the first step than some steps "
            "later.",
            "Adam 自適應學習率的對數，在第一步因批次而異的程度比幾步之後大。",
        ),
        first_to_last("rate"), 2, VARIANCE, "ratio",
    ),
    Statement(
        Said("So does Adam's update.", "Adam 的更新量也是。"), first_to_last("update"), 2, VARIANCE, "ratio",
    ),
    Statement(
        Said(
            "Warm-up lowers the largest variance of the first updates.", "預熱降低最初幾步更新量的最大變異數。"
        ),
        lambda found: max(found["update"]) / max(found["warm update"]), 2, Said("times less variance", "倍的縮小"),
        "ratio",
    ),
    Statement(
        Said(
            "At the start the last layer's gradient of a deep encoder is larger post-norm than pre-norm.",
            "一開始，很深的 encoder 最後一層的梯度，在 post-norm 比 pre-norm 大。",
        ),
        lambda found: found["layers"]["post"][-1] / found["layers"]["pre"][-1], 1.5, Said("times as large", "倍"),
        "ratio",
    ),
    Statement(
        Said(
            "At a large rate a post-norm encoder without warm-up ends with more training loss than with it.",
            "學習率大時，post-norm 的 encoder 沒有預熱，最後的訓練損失比有預熱的大。",
        ),
        at_large_rate("post-norm, without", "post-norm, warm-up"), 1.2, LOSS, "ratio",
    ),
    Statement(
        Said(
            "At the same rate a pre-norm encoder does not need warm-up: its loss is no higher without it.",
            "同樣的學習率，pre-norm 的 encoder 不需要預熱：沒有預熱，訓練損失也不會比較大。",
        ),
        at_large_rate("pre-norm, without", "pre-norm, warm-up"), 1.1, LOSS, "ratio", "at most",
    ),
)  # fmt: skip

COLOURS = {
    "post-norm, without": "tab:red",
    "post-norm, warm-up": "tab:orange",
    "pre-norm, without": "tab:blue",
    "pre-norm, warm-up": "tab:cyan",
}


def figure(measurements: list[Measurements]) -> Figure:
    """Losses by step, variances by step, gradients by layer."""
    drawn = Figure(figsize=(8, 8), layout="constrained")
    parts = drawn.subplot_mosaic([["loss", "loss"], ["variance", "layer"]])
    shortest = min(len(curve) for m in measurements for curve in m["loss"].values())  # folds differ in length
    for name, colour in COLOURS.items():
        curve = np.mean([m["loss"][name][:shortest] for m in measurements], axis=0)
        style = "-" if name.endswith("without") else "--"
        parts["loss"].plot(np.arange(1, shortest + 1), curve, style, color=colour, label=name)
    parts["loss"].axvline(measurements[0]["warmup"], color="0.7", linewidth=0.8, linestyle=":")
    parts["loss"].set(xlabel="step (dotted: the warm-up ends)", ylabel="training loss (nats)",
                      title=f"training with Adam at rate {measurements[0]['rates'][-1]:g}")  # fmt: skip
    steps = range(1, len(measurements[0]["update"]) + 1)
    kinds = (("rate", "tab:purple", "log of 1 / √v"), ("update", "tab:red", "update"),
             ("warm update", "tab:orange", "update, with warm-up"))  # fmt: skip
    for key, colour, label in kinds:
        parts["variance"].semilogy(steps, across(measurements, key).mean(0), "o-", color=colour, markersize=3,
                                   label=label)  # fmt: skip
    parts["variance"].semilogy(steps, [of_pure_noise(step) for step in steps], "--", color="0.4", linewidth=1,
                               label="log of 1 / √v, if all were noise")  # fmt: skip
    parts["variance"].set(xlabel="step", ylabel="variance from batch to batch", title="Adam's first steps")
    for norm in NORMS:
        norms = np.exp(np.mean([np.log(m["layers"][norm]) for m in measurements], axis=0))
        parts["layer"].plot(range(1, len(norms) + 1), norms, "o-", markersize=3, label=f"{norm}-norm",
                            color=COLOURS[f"{norm}-norm, without"])  # fmt: skip
    parts["layer"].set(xlabel="layer", ylabel="norm of the gradient", ylim=(0, None), title="before the first step")
    for axes in parts.values():
        axes.legend(fontsize=9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Loss of the last epoch by rate."""
    rows = []
    for name in COLOURS:
        ends = np.array([m["end"][name] for m in measurements])
        rows.append([*name.split(", "), *map(mean_and_spread, ends.T)])
    return ["layers", "warm-up", *(f"training loss, rate {rate:g}" for rate in measurements[0]["rates"])], rows


STUDY = Study(
    number=10,
    heading=Said("Warm Up", "學習率預熱"),
    lecture=Said(
        "Adam divides by the size that gradients usually have. At the first step it has seen one batch, so it knows "
        "little of that size, and every parameter moves by the whole rate whichever way this batch points. Warm-up "
        "begins with a rate of almost nothing and lets it grow while Adam learns.",
        "Adam 用梯度平常的大小來除。第一步時它只看過一個批次，對「平常的大小」所知很少，每個參數都走滿一個學習率的長"
        "度，方向全看那個批次。預熱讓學習率從幾乎為零開始，在 Adam 累積統計量的時候慢慢變大。",
    ),
    formula="update = −η<sub>t</sub> m̂<sub>t</sub> / (√v̂<sub>t</sub> + ε); warm-up: η<sub>t</sub> = η min(1, t / w)",
    varies=Said(
        "The step and the batches, with weights held still, so that nothing but the batches differs; and Transformer "
        "encoders with the norm after each sum (post-norm) or inside each branch (pre-norm), with and without warm-up, "
        "on HW2's phones.",
        "權重固定、只換批次，來看最初幾步；以及把標準化放在相加之後（post-norm）或分支裡（pre-norm）的 Transformer "
        "encoder，有或沒有預熱，用 HW2 的音素資料。",
    ),
    caption=Said(
        "Above: training loss of the four nets, mean over seeds. Below: variance of Adam's first steps from batch to "
        "batch, and the gradient of each layer of a deep encoder before the first step.",
        "上：四個網路的訓練損失，取各種子的平均。下：Adam 最初幾步因批次而異的變異數，以及很深的 encoder 在第一步之前"
        "各層的梯度。",
    ),
    doubt=Said(
        "Small encoders on small data. Where the rate is small enough, both nets learn without warm-up, only more "
        "slowly.",
        "這是小資料上的小 encoder。學習率夠小時，兩種網路不用預熱也能學，只是比較慢。",
    ),
    again=(
        "leeml fit --config configs/hw4_speaker/medium.yaml --trainer.callbacks.warmup 0 --model.net.norm post",
        Said("HW4 post-norm and without warm-up.", "HW4 用 post-norm、不用預熱。"),
    ),
    source="Lecture 4 of 2021; Vaswani et al. 2017 (arXiv 1706.03762), equation 3; Liu et al. 2020, ICLR (arXiv "
    "1908.03265); Xiong et al. 2020, ICML (arXiv 2002.04745)",
    code=(
        "callbacks/schedules.py:constant",
        "callbacks/warmup.py:WarmupScheduler",
        "modules/nets/transformer.py:EncoderLayer.forward",
        "scripts/studies/adaptive_rates.py:adam",
    ),
    quick=Settings(),
    full=Settings(rates=(3e-3, 1e-2)),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("schedules"),
    data="hw2_phoneme",
)
