"""Positional encoding: without it attention sees a set; which of two symbols came first shows the difference.

Settings were changed after looking: with 16 symbols, 250 steps and half the rate the learned positions were still
being learned when the steps were over; later 240 steps in place of 300, for time.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from callbacks.warmup import WarmupScheduler
from modules.hw4_speaker import SpeakerClassifier
from modules.nets.embedder import Embedder
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.positions import Positions
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, fact, mean_and_spread
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.fit import Curve, fit

KINDS: tuple[Positions, ...] = get_args(Positions)
NAMES = {"sinusoidal": "hand-made (sines)", "learned": "learned", "none": "none"}


@dataclass(frozen=True)
class Settings:
    """Length of a sequence and number of symbols, size of the net, examples, and how it is trained."""

    length: int = 12
    symbols: int = 8
    d_model: int = 32
    heads: int = 4
    layers: int = 2
    examples: int = 4096
    judged: int = 1024
    steps: int = 240
    batch_size: int = 64
    rate: float = 4e-3


def sequences(settings: Settings, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols (N, T, symbols) of 0 and 1, and whether symbol 1 stands before symbol 0, (N,).

    Each of the two stands in one place, all others are drawn from the rest. With the two exchanged the answer is the
    other one and the set of symbols the same: whoever sees the set alone is right half of the time.
    """
    symbols = torch.randint(2, settings.symbols, (count, settings.length), generator=generator)
    places = torch.rand(count, settings.length, generator=generator).topk(2, dim=1).indices
    symbols.scatter_(1, places, torch.tensor([[0, 1]]).expand(count, -1))
    return F.one_hot(symbols, settings.symbols).float(), (places[:, 1] < places[:, 0]).long()


@torch.no_grad()
def moved(net: Embedder, x: Tensor, order: Tensor) -> tuple[float, float]:
    """Largest change when sequences (N, T, D) are put in another order (T,): of states put back, and of the pooled."""
    states, reordered = net.encoder(x), net.encoder(x[:, order])
    pooled, other = net(x), net(x[:, order])
    return float((reordered - states[:, order]).abs().max()), float((other - pooled).abs().max())


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Accuracy of each kind on new sequences, what reordering does to its net, and how alike its positions are."""
    generator = torch.Generator().manual_seed(seed)
    x, y = sequences(settings, settings.examples, generator)
    new, answers = sequences(settings, settings.judged, generator)
    order = torch.randperm(settings.length, generator=generator)
    facts = {"classes": ["0 first", "1 first"], "features": settings.symbols}
    found: Measurements = {"accuracy": {}, "curves": {}, "states": {}, "pooled": {}, "alike": {}}
    for kind in KINDS:
        torch.manual_seed(seed)
        net = partial(
            TransformerFrames, d_model=settings.d_model, heads=settings.heads, d_ff=2 * settings.d_model,
            layers=settings.layers, dropout=0.0, norm="pre", positions=kind, max_length=settings.length,
        )  # fmt: skip
        module: Any = SpeakerClassifier(partial(torch.optim.AdamW, lr=settings.rate, fused=True), net)
        curve = Curve()
        module.expect(facts)
        data: Any = Examples(x, y, settings.steps, settings.batch_size, seed)
        fit(module, data, 1, [curve, WarmupScheduler("cosine", warmup=0.1)])
        module.eval()
        with torch.no_grad():
            found["accuracy"][kind] = float((module(new).argmax(1) == answers).double().mean())
        found["curves"][kind] = torch.stack(curve.losses).tolist()
        (trained,) = module.nets.double()
        found["states"][kind], found["pooled"][kind] = moved(trained, new[:64].double(), order)
        if kind != "none":
            none = torch.zeros(1, settings.length, settings.d_model, dtype=torch.float64)
            unit = F.normalize(trained.encoder.positions(none)[0].detach(), dim=1)
            found["alike"][kind] = (unit @ unit.T).tolist()
    return found


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Blindness is exact; a twentieth right or wrong counts as a difference."""
    accuracy = {kind: np.array([m["accuracy"][kind] for m in measurements]) for kind in KINDS}
    return [
        fact("without positions the states are reordered as their inputs (largest change)",
             max(m["states"]["none"] for m in measurements), 1e-12),
        fact("and what is pooled of them stays the same (largest change)",
             max(m["pooled"]["none"] for m in measurements), 1e-12),
        *(effect(f"positions {NAMES[kind]}: it changes (largest change)",
                 [m["pooled"][kind] for m in measurements], 0.01) for kind in KINDS if kind != "none"),
        effect("without positions the order is guessed (0.5 - share right, up to 0.05)",
               (0.5 - accuracy["none"]).tolist(), -0.05),
        *(effect(f"positions {NAMES[kind]}: the order is seen (share right)", accuracy[kind].tolist(), 0.9)
          for kind in KINDS if kind != "none"),
        effect("learned positions do as well as hand-made ones (difference of the shares, up to 0.05)",
               (accuracy["learned"] - accuracy["sinusoidal"]).tolist(), -0.05),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Loss while training, share right at the end, and how alike every two positions are."""
    drawn = Figure(figsize=(11, 6.2), layout="constrained")
    (left, middle), below = drawn.subplots(2, 2)
    colours = dict(zip(KINDS, ("tab:blue", "tab:green", "tab:red"), strict=True))
    for place, kind in enumerate(KINDS):
        curves = np.array([m["curves"][kind] for m in measurements])
        left.plot(curves.T, color=colours[kind], alpha=0.15, linewidth=0.5)
        left.plot(curves.mean(0), color=colours[kind], label=NAMES[kind])
        shares = np.array([m["accuracy"][kind] for m in measurements])
        middle.bar(place, shares.mean(), 0.6, color=colours[kind], alpha=0.5)
        middle.plot(np.full(len(shares), place), shares, "o", color=colours[kind], markersize=4)
    left.axhline(np.log(2), color="black", linewidth=0.8, linestyle="--")
    left.set(xlabel="step", ylabel="training loss", title="which of two symbols comes first; dashed: a guess")
    left.legend(fontsize=8)
    middle.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    middle.set_xticks(range(len(KINDS)), [NAMES[kind] for kind in KINDS])
    middle.set(ylabel="share right", ylim=(0, 1.05), title="new sequences")
    for axes, kind in zip(below, measurements[0]["alike"], strict=True):
        image = axes.imshow(measurements[0]["alike"][kind], cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
        axes.set(xlabel="position", ylabel="position", title=f"{NAMES[kind]}: cosine of every two positions")
        axes.xaxis.get_major_locator().set_params(integer=True)
        drawn.colorbar(image, ax=axes)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Accuracy and what reordering changes, by kind."""
    rows = [
        [
            NAMES[kind],
            mean_and_spread([m["accuracy"][kind] for m in measurements]),
            max(m["states"][kind] for m in measurements),
            max(m["pooled"][kind] for m in measurements),
        ]
        for kind in KINDS
    ]
    return ["positions", "share right", "states not reordered alike, largest change", "pooled, largest change"], rows


STUDY = Study(
    number=14,
    heading="Positional Encoding",
    chinese="位置編碼：人造的與學出來的",
    claim="Without positions self-attention cannot tell orders apart; with hand-made or learned ones it can, equally "
    "well.",
    source="Lecture 5 of 2021 (self-attention); Vaswani et al. 2017, NeurIPS (arXiv 1706.03762), section 3.5, where "
    "both kinds gave nearly identical results",
    idea="Attention weighs by content, whatever the distance: put its inputs in another order, and its outputs are "
    "the same, in that order; their mean does not change at all. A vector for each place, added to the input, breaks "
    "the symmetry. The task: which of two symbols comes first among others.",
    formula="f(P X) = P f(X) for every permutation P; x<sub>t</sub> ← x<sub>t</sub> + e<sub>t</sub>, hand-made: "
    "e<sub>t,2i</sub> = sin(t / 10000<sup>2i/d</sup>), e<sub>t,2i+1</sub> = cos(t / 10000<sup>2i/d</sup>)",
    varies="positions: sines, a learned table, none; HW4's module",
    code=("modules/nets/positions.py:sinusoid", "modules/nets/positions.py:LearnedPositions"),
    quick=Settings(),
    full=Settings(length=64, d_model=64, examples=65536, steps=5000, rate=1e-3),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    seeds=5,
)
