"""Warm-up: how much chance Adam's first steps hold, and post- and pre-norm Transformers with and without it.

Changed after looking: at first all four nets trained at one rate, 0.016 (1e-3 times 512 / 32, for the width), on HW4's
speakers, where post-norm learned nothing with or without warm-up. Now each is tried at several rates on HW2's phones,
of which a step sees hundreds. To save time it runs 3 seeds, not 5, with 8 first steps, not 12, and without a third
rate, 1e-3, which was best for none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, across, effect, mean_and_spread
from scripts.studies.lab.fit import Curve, fit

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
    """

    layers: int = 6
    d_model: int = 32
    rates: tuple[float, ...] = (3e-3, 1e-2)
    warmup: int = 24
    epochs: int = 3
    batch: int = 512
    sequences: int = 6
    first: int = 8


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
        module, gradients = gradients_at_start(settings, norm, steps if norm == "post" else 1, seed, root)
        found["layers"][norm] = by_layer(module, gradients[:1])
        if norm == "post":
            found["update"], found["rate"] = variances(gradients.view(settings.sequences, settings.first, -1))
        for way, warmup in (("without", 0), ("warm-up", settings.warmup)):
            ends, curves = [], []
            for rate in settings.rates:
                curve = Curve()
                optimizer = partial(torch.optim.Adam, lr=rate, fused=True)
                callbacks = [curve, WarmupScheduler("constant", warmup)]
                trained(settings, norm, settings.epochs, seed, root, optimizer, callbacks)
                curves.append(torch.stack(curve.losses).tolist())
                ends.append(curve.by_epoch(settings.epochs)[-1])
            found["end"][f"{norm}-norm, {way}"] = ends
            found["loss"][f"{norm}-norm, {way}"] = curves[int(np.argmin(ends))]
    factors = [constant(step, settings.warmup) for step in range(settings.first)]
    found["warm update"] = [f**2 * v for f, v in zip(factors, found["update"], strict=True)]
    return found


def log_ratio(measurements: list[Measurements], above: str, below: str) -> list[float]:
    """log2 of the ratio of two ways' losses in the last epoch, each at its best rate, one a seed."""
    return [float(np.log2(min(m["end"][above]) / min(m["end"][below]))) for m in measurements]


def judge(measurements: list[Measurements]) -> list[Finding]:
    """A factor of 2 counts for variances, of 1.5 for gradients, of 1.1 for losses."""
    margin = float(np.log2(1.1))
    update, rate, warm = (np.log2(across(measurements, key)) for key in ("update", "rate", "warm update"))
    last = [float(np.log2(m["layers"]["post"][-1] / m["layers"]["pre"][-1])) for m in measurements]
    first = update.shape[1]
    return [
        effect(f"the adaptive rate's logarithm varies more from batch to batch in step 1 than in step {first} (log2 "
               "ratio of variances)", (rate[:, 0] - rate[:, -1]).tolist(), 1.0),
        effect("so does Adam's update (log2 ratio of variances)", (update[:, 0] - update[:, -1]).tolist(), 1.0),
        effect(f"warm-up lowers the largest variance of an update in the first {first} steps (log2 ratio)",
               (update.max(1) - warm.max(1)).tolist(), 1.0),
        effect("at the start the last layer's gradient is larger post-norm than pre-norm (log2 ratio of norms)",
               last, float(np.log2(1.5))),
        effect("post-norm: warm-up lowers the training loss, each at its best rate (log2 ratio)",
               log_ratio(measurements, "post-norm, without", "post-norm, warm-up"), margin),
        effect("pre-norm: without warm-up it is no higher, each at its best rate (log2 ratio, up to 1.1)",
               log_ratio(measurements, "pre-norm, warm-up", "pre-norm, without"), -margin),
    ]  # fmt: skip


COLOURS = {
    "post-norm, without": "tab:red",
    "post-norm, warm-up": "tab:orange",
    "pre-norm, without": "tab:blue",
    "pre-norm, warm-up": "tab:cyan",
}


def figure(measurements: list[Measurements]) -> Figure:
    """Variances by step, gradients by layer, losses by step and by rate."""
    drawn = Figure(figsize=(10, 7), layout="constrained")
    (variance, layer), (loss, end) = drawn.subplots(2, 2)
    steps = range(1, len(measurements[0]["update"]) + 1)
    kinds = (("rate", "tab:purple", "log of the adaptive rate 1 / √v"), ("update", "tab:red", "update / rate"),
             ("warm update", "tab:orange", "update / rate, with warm-up"))  # fmt: skip
    for key, colour, label in kinds:
        variance.semilogy(steps, across(measurements, key).mean(0), "o-", color=colour, markersize=3, label=label)
    variance.semilogy(steps, [of_pure_noise(step) for step in steps], "--", color="0.4", linewidth=1,
                      label="the first, if gradients were all noise")  # fmt: skip
    variance.set(xlabel="step", title="Adam's first steps: variance from batch to batch")
    for norm in NORMS:
        norms = np.array([m["layers"][norm] for m in measurements])
        layer.plot(range(1, norms.shape[1] + 1), np.exp(np.log(norms).mean(0)), "o-", label=f"{norm}-norm",
                   color=COLOURS[f"{norm}-norm, without"])  # fmt: skip
    layer.set_ylim(0, 1.1 * layer.get_ylim()[1])
    layer.set(xlabel="layer", title="gradient norm of each layer's last matrix at the start")
    rates = measurements[0]["rates"]
    shortest = min(len(curve) for m in measurements for curve in m["loss"].values())  # folds differ in length
    for name, colour in COLOURS.items():
        curves = np.array([m["loss"][name][:shortest] for m in measurements])
        style = "-" if name.endswith("without") else "--"
        loss.plot(np.arange(1, curves.shape[1] + 1), curves.mean(0), style, color=colour, label=name)
        ends = np.array([m["end"][name] for m in measurements])
        end.errorbar(rates, ends.mean(0), ends.std(0), fmt="o" + style, color=colour, capsize=3, label=name)
    loss.axvline(measurements[0]["warmup"], color="0.7", linewidth=0.8, linestyle=":")
    loss.set(xlabel="step (dotted: the warm-up ends)", ylabel="training loss", title="each at its best rate")
    end.set(xlabel="rate of Adam", ylabel="training loss of the last epoch", xscale="log", title="all rates")
    end.set_xticks(rates, [f"{rate:g}" for rate in rates])
    end.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    for axes in (variance, layer, loss, end):
        axes.legend(fontsize=8)
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
    heading="Warm Up",
    chinese="學習率預熱",
    claim="Adam's first steps follow statistics of few batches and vary most; a rate that grows from almost nothing "
    "keeps them short. A post-norm Transformer, whose last layers have larger gradients at first, needs that; a "
    "pre-norm one does not.",
    source="Lecture 4 of 2021; Vaswani et al. 2017 (arXiv 1706.03762), equation 3; Liu et al. 2020, ICLR (arXiv "
    "1908.03265); Xiong et al. 2020, ICML (arXiv 2002.04745)",
    idea="At the first step Adam's v is the square of one gradient, so that every parameter moves by the whole rate, "
    "whichever way a single batch points. The first steps are looked at with weights held still, so that nothing but "
    "the batches differs. Xiong et al. prove for wide nets that with a norm after each sum (post-norm) gradients near "
    "the output are large when training begins, and with one inside each branch (pre-norm) the smaller the more layers "
    "there are; ours are measured.",
    formula="update = −η<sub>t</sub> m̂<sub>t</sub> / (√v̂<sub>t</sub> + ε); warm-up: η<sub>t</sub> = η min(1, t / w)",
    varies="step and batches; post- or pre-norm, with and without warm-up, each at the best of two rates (HW2's "
    "module)",
    code=(
        "callbacks/schedules.py:constant",
        "callbacks/warmup.py:WarmupScheduler",
        "modules/nets/transformer.py:EncoderLayer.forward",
        "scripts/studies/adaptive_rates.py:adam",
    ),
    quick=Settings(),
    full=Settings(d_model=64, rates=(1e-3, 3e-3, 1e-2), warmup=100),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw2_phoneme",
    seeds=3,
)
