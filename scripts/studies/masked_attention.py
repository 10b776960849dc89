"""Masked self-attention: no word sees a later one, which makes training all steps at once the same as decoding."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.nn import functional as F

from modules.nets.seq2seq import TransformerSeq2Seq
from scripts.studies.lab import recorded
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, fact, mean_and_spread

KINDS = {"masked": True, "not masked": False}
BOS = 0


@dataclass(frozen=True)
class Settings:
    """Size of the translator, words of a sentence, and steps and sentences a step of the guessing game."""

    vocabulary: int = 16
    words: int = 10
    d_model: int = 32
    heads: int = 4
    layers: int = 1
    steps: int = 300
    batch_size: int = 32
    rate: float = 3e-3


def translator(settings: Settings, causal: bool) -> TransformerSeq2Seq:
    """Random weights, no dropout."""
    return TransformerSeq2Seq(
        settings.vocabulary, settings.d_model, settings.heads, 2 * settings.d_model, settings.layers, dropout=0.0,
        norm="pre", causal=causal,
    )  # fmt: skip


def sentences(settings: Settings, count: int) -> Tensor:
    """Random words (count, T), none of them BOS."""
    return torch.randint(1, settings.vocabulary, (count, settings.words))


def before(target: Tensor) -> Tensor:
    """What the decoder reads to say the target: BOS and all words but the last, (B, T)."""
    return F.pad(target, (1, 0), value=BOS)[:, :-1]


def influence(net: TransformerSeq2Seq, source: Tensor, read: Tensor) -> Tensor:
    """Norm of d state_i / d word_j for every step i and word j of one sentence, (T, T)."""
    memory = net.encode(source)
    jacobian: Tensor = torch.autograd.functional.jacobian(
        lambda x: net.decode(x, memory)[0], net.embed(read), vectorize=True
    )
    return jacobian[:, :, 0].square().sum((1, 3)).sqrt()  # (T, D, T, D)


@torch.no_grad()
def changes(net: TransformerSeq2Seq, source: Tensor, read: Tensor) -> Tensor:
    """Largest change of step i's scores when word j of one sentence becomes another, (T, T).

    One sentence after the other: side by side their rows would be rounded differently.
    """
    others = read % (net.source_table.num_embeddings - 1) + 1  # the number after it; the last becomes 1
    chosen = torch.eye(read.shape[1], dtype=torch.bool)
    scores = net(source, read)
    changed = [net(source, others.where(one, read)) for one in chosen]
    return torch.stack([(other - scores).abs().amax(2)[0] for other in changed], 1)


@torch.no_grad()
def apart_from_prefix(net: TransformerSeq2Seq, source: Tensor, read: Tensor) -> float:
    """Largest distance between scores of all steps at once and those of each step from the words before it alone."""
    at_once = net(source, read)
    each = [net(source, read[:, : t + 1])[:, -1] for t in range(read.shape[1])]
    return float((torch.stack(each, 1) - at_once).abs().max())


def guessing(settings: Settings, net: TransformerSeq2Seq) -> list[float]:
    """Losses, as shares of log(words), of a net that learns to guess random words, new ones in every step.

    Nothing before a random word tells which it is: a loss below 1 means that the word itself was seen. The last one is
    never in the input, so that a loss of 1 / T is left at least.
    """
    optimizer = torch.optim.AdamW(net.parameters(), settings.rate)
    losses = []
    for _ in range(settings.steps):
        target = sentences(settings, settings.batch_size)
        scores = net(torch.zeros_like(target[:, :1]), before(target))[..., 1:]  # one of the words, never BOS
        loss = F.cross_entropy(scores.flatten(0, 1), target.flatten() - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return (torch.stack(losses) / math.log(settings.vocabulary - 1)).tolist()


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Who sees whom in nets of random weights, and what a net without a mask learns."""
    found: Measurements = {"influence": {}, "changes": {}, "prefix": {}, "losses": {}, "scores": {}}
    for name, causal in KINDS.items():
        torch.manual_seed(seed)
        net = translator(settings, causal).double().eval()
        source, read = sentences(settings, 1), before(sentences(settings, 1))
        found["influence"][name] = influence(net, source, read).tolist()
        found["changes"][name] = changes(net, source, read).tolist()
        found["prefix"][name] = apart_from_prefix(net, source, read)
        learner = translator(settings, causal)
        found["losses"][name] = guessing(settings, learner)
        found["read"] = read[0].tolist()
        found["scores"][name] = recorded.attention_scores(learner.eval(), torch.zeros_like(read[:, :1]), read)
    return found


def above(measurements: list[Measurements], key: str, name: str) -> np.ndarray:
    """Entries (seeds, pairs) of a matrix above its diagonal: what a later word does to an earlier step."""
    matrices = np.array([m[key][name] for m in measurements])
    return matrices[:, *np.triu_indices(matrices.shape[1], 1)]


def last_losses(measurements: list[Measurements], name: str) -> np.ndarray:
    """Mean of the last tenth of the losses, one a seed."""
    losses = np.array([m["losses"][name] for m in measurements])
    return losses[:, -max(1, losses.shape[1] // 10) :].mean(1)


def judge(measurements: list[Measurements]) -> list[Finding]:
    """With the mask exactly nothing comes from later words; without it they matter, and are what is learned."""
    prefix = {name: [m["prefix"][name] for m in measurements] for name in KINDS}
    return [
        fact("masked: a later word changes no earlier score (largest change)",
             float(above(measurements, "changes", "masked").max()), 0.0),
        fact("masked: no gradient comes from a later word (largest norm)",
             float(above(measurements, "influence", "masked").max()), 0.0),
        fact("not masked: every earlier score changes (minus the smallest change)",
             -float(above(measurements, "changes", "not masked").min()), -1e-6),
        fact("masked: all steps at once give what step by step gives (distance)", max(prefix["masked"]), 1e-10),
        fact("not masked: they differ (minus the distance)", -min(prefix["not masked"]), -0.01),
        effect("masked: random words are guessed no better than by chance (1 - loss / log V, up to 0.02)",
               (last_losses(measurements, "masked") - 1).tolist(), -0.02),
        effect("not masked: they are read off the input (1 - loss / log V)",
               (1 - last_losses(measurements, "not masked")).tolist(), 0.5),
    ]  # fmt: skip


def draw_matrix(axes: Axes, matrix: np.ndarray, norm: LogNorm) -> AxesImage:
    """A square of colours by size, white where it is exactly 0."""
    image = axes.imshow(np.where(matrix == 0, np.nan, matrix), cmap="viridis", norm=norm)
    ticks = range(0, len(matrix), 3)
    axes.set_xticks(ticks, [str(t + 1) for t in ticks])
    axes.set_yticks(ticks, [str(t + 1) for t in ticks])
    axes.set(xlabel="word j", ylabel="step i")
    return image


def figure(measurements: list[Measurements]) -> Figure:
    """Gradients from word to step with and without the mask, and the loss of guessing random words."""
    drawn = Figure(figsize=(11, 3.5), layout="constrained")
    *squares, right = drawn.subplots(1, 3)
    matrices = {name: np.array(measurements[0]["influence"][name]) for name in KINDS}
    seen = np.concatenate([matrix[matrix > 0] for matrix in matrices.values()])
    for axes, (name, matrix) in zip(squares, matrices.items(), strict=True):
        image = draw_matrix(axes, matrix, LogNorm(seen.min(), seen.max()))
        axes.set_title(f"{name}: ‖∂ state i / ∂ word j‖" + (", white: 0" if KINDS[name] else ""), fontsize=10)
    drawn.colorbar(image, ax=squares, shrink=0.8, ticks=[0.01, 0.03, 0.1, 0.3, 1, 3], format="%g").minorticks_off()
    for name, colour in zip(KINDS, ("tab:blue", "tab:red"), strict=True):
        losses = np.array([m["losses"][name] for m in measurements])
        right.plot(losses.T, color=colour, alpha=0.2, linewidth=0.6)
        right.plot(losses.mean(0), color=colour, label=name)
    right.axhline(1, color="black", linewidth=0.8, linestyle="--", label="chance")
    right.set(xlabel="step", ylabel="loss / log V", title="guessing random words", ylim=(0, None))
    right.legend(fontsize=8)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """What later words do, with and without the mask."""
    rows = [
        [
            name,
            float(above(measurements, "changes", name).max()),
            float(above(measurements, "influence", name).max()),
            max(m["prefix"][name] for m in measurements),
            mean_and_spread(last_losses(measurements, name)),
        ]
        for name in KINDS
    ]
    return [
        "decoder", "change by a later word, largest", "gradient from one, largest", "at once against step by step",
        "loss of random words / log V",
    ], rows  # fmt: skip


STUDY = Study(
    number=15,
    heading="Masked Self-attention",
    chinese="遮罩自注意力：不能提前看答案",
    claim="With the mask no word of the decoder sees a later one, so all steps can be trained at once as if said one "
    "by one; without it the net reads the answer off its input.",
    source="Lecture 5 of 2021 (Transformer); Vaswani et al. 2017, NeurIPS (arXiv 1706.03762), section 3.2.3",
    idea="In training the decoder gets the whole sentence, each word of which is the answer to the step before. What "
    "may not be seen gets a weight of exactly 0, so its gradient is exactly 0, too: the triangle. Words drawn by "
    "chance cannot be guessed from those before them, so a loss below log V shows that the answer was seen.",
    formula="a<sub>ij</sub> = exp(q<sub>i</sub> · k<sub>j</sub> / √d) / Σ<sub>l ≤ i</sub> exp(q<sub>i</sub> · "
    "k<sub>l</sub> / √d) for j ≤ i, else 0 &nbsp; ⇒ &nbsp; ∂ state<sub>i</sub> / ∂ word<sub>j</sub> = 0 for j &gt; i",
    varies="the mask of the decoder's self-attention; random weights, random words",
    code=("modules/nets/attention.py:MultiHeadAttention.forward", "modules/nets/transformer.py:DecoderLayer"),
    quick=Settings(),
    full=Settings(words=20, d_model=64, layers=3, steps=2000),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    seeds=5,
)
