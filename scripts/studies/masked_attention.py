"""Masked self-attention: no word sees a later one, which makes training all steps at once the same as decoding."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.nn import functional as F

from modules.nets.seq2seq import TransformerSeq2Seq
from scripts.studies.lab.recorded import attention_scores
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Play, Study, Table, mean_and_spread

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
        found["scores"][name] = attention_scores(learner.eval(), torch.zeros_like(read[:, :1]), read)
    return found


def above(found: Measurements, key: str, name: str) -> np.ndarray:
    """Entries (pairs,) of a matrix above its diagonal: what a later word does to an earlier step."""
    matrix = np.array(found[key][name])
    return matrix[np.triu_indices(len(matrix), 1)]


def last_loss(found: Measurements, name: str) -> float:
    """Mean of the last tenth of the losses."""
    losses = found["losses"][name]
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


LARGEST = Said("is the largest change of a score", "（分數最大的變化）")
LESS = Said("% less loss than by chance", "%（損失比亂猜少）")
STATEMENTS = (
    Statement(
        Said("With the mask a later word changes no earlier score.", "有遮罩時，後面的字不會改變前面的分數。"),
        lambda found: above(found, "changes", "masked").max(), 0.0, LARGEST, kind="exact",
    ),
    Statement(
        Said("With the mask no gradient comes from a later word.", "有遮罩時，後面的字沒有梯度傳到前面。"),
        lambda found: above(found, "influence", "masked").max(), 0.0,
        Said("is the largest norm of a gradient", "（梯度最大的長度）"), kind="exact",
    ),
    Statement(
        Said(
            "With the mask all steps at once give what step by step gives.",
            "有遮罩時，一次算完所有位置，與一個一個算的結果相同。",
        ),
        lambda found: found["prefix"]["masked"], 1e-10, LARGEST, kind="exact",
    ),
    Statement(
        Said(
            "Without the mask every later word changes every earlier score.",
            "沒有遮罩時，每個後面的字都會改變每個前面的分數。",
        ),
        lambda found: above(found, "changes", "not masked").min(), 1e-6,
        Said("is the smallest change of a score", "（分數最小的變化）"),
    ),
    Statement(
        Said("Without the mask all at once and step by step differ.", "沒有遮罩時，一次算完與一個一個算的結果不同。"),
        lambda found: found["prefix"]["not masked"], 0.01, LARGEST,
    ),
    Statement(
        Said("With the mask random words cannot be guessed.", "有遮罩時，隨機抽的字猜不出來。"),
        lambda found: 1 - last_loss(found, "masked"), 0.02, LESS, "share", "at most",
    ),
    Statement(
        Said("Without the mask the net reads random words off its input.", "沒有遮罩時，網路直接從輸入抄出隨機的字。"),
        lambda found: 1 - last_loss(found, "not masked"), 0.5, LESS, "share",
    ),
)  # fmt: skip


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
    drawn = Figure(figsize=(8, 7), layout="constrained")
    grid = drawn.add_gridspec(2, 2, height_ratios=(1.2, 1))
    squares, below = [drawn.add_subplot(grid[0, column]) for column in range(2)], drawn.add_subplot(grid[1, :])
    matrices = {name: np.array(measurements[0]["influence"][name]) for name in KINDS}
    seen = np.concatenate([matrix[matrix > 0] for matrix in matrices.values()])
    for axes, (name, matrix) in zip(squares, matrices.items(), strict=True):
        image = draw_matrix(axes, matrix, LogNorm(seen.min(), seen.max()))
        axes.set_title(name + (" (white: exactly 0)" if KINDS[name] else ""))
    bar = drawn.colorbar(image, ax=squares, shrink=0.8, ticks=[0.01, 0.03, 0.1, 0.3, 1, 3], format="%g")
    bar.minorticks_off()
    bar.set_label("length of the gradient")
    for name, colour in zip(KINDS, ("tab:blue", "tab:red"), strict=True):
        losses = np.array([m["losses"][name] for m in measurements])
        below.plot(losses.T, color=colour, alpha=0.2, linewidth=0.6)
        below.plot(losses.mean(0), color=colour, label=name)
    below.axhline(1, color="black", linewidth=0.8, linestyle="--", label="chance")
    below.set(xlabel="training step", ylabel="loss (chance = 1)", title="guessing random words", ylim=(0, None))
    below.legend(fontsize=9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """What later words do, with and without the mask."""
    rows = [
        [
            name,
            max(float(above(m, "changes", name).max()) for m in measurements),
            max(float(above(m, "influence", name).max()) for m in measurements),
            max(m["prefix"][name] for m in measurements),
            mean_and_spread([last_loss(m, name) for m in measurements]),
        ]
        for name in KINDS
    ]
    return [
        "decoder", "change by a later word, largest", "gradient from one, largest", "at once against step by step",
        "loss of random words (chance = 1)",
    ], rows  # fmt: skip


def looks(measurements: list[Measurements]) -> Any:
    """What the nets of the first seed read in one sentence, and where they look."""
    first = measurements[0]
    return {"words": ["BOS", *map(str, first["read"][1:])], "scores": first["scores"]}


STUDY = Study(
    number=15,
    heading=Said("Masked Self-attention", "遮罩自注意力"),
    lecture=Said(
        "The decoder says one word after the other, so no word may depend on a later one. In training it gets the "
        "whole sentence at once, and each word is the answer to the step before. The mask gives all later words a "
        "weight of exactly 0, so that the answer cannot be copied.",
        "Decoder 一個字一個字地說，所以每個字不能看後面的字。訓練時它一次拿到整個句子，而每個字正是前一步的答案。"
        "遮罩讓後面的字權重剛好是 0，答案就抄不到。",
    ),
    formula="a<sub>ij</sub> = exp(q<sub>i</sub> · k<sub>j</sub> / √d) / Σ<sub>l ≤ i</sub> exp(q<sub>i</sub> · "
    "k<sub>l</sub> / √d) for j ≤ i, else 0 &nbsp; ⇒ &nbsp; ∂ state<sub>i</sub> / ∂ word<sub>j</sub> = 0 for j &gt; i",
    varies=Said(
        "The mask of the decoder's self-attention. First nets of random weights: who sees whom? Then nets that learn "
        "to say random words, which cannot be guessed from those before them.",
        "Decoder 自注意力的遮罩。先用隨機權重的網路，看誰影響誰；再訓練網路說出隨機抽的字，這些字無法從前面的字猜到。",
    ),
    caption=Said(
        "Top: how much word j moves step i, one net of random weights. Bottom: the loss of random words while "
        "training; below the dashed line the answer was seen.",
        "上：第 j 個字對第 i 步的影響（隨機權重）。下：訓練時猜隨機字的損失；低於虛線就表示偷看了答案。",
    ),
    doubt=Said(
        "Nothing is left open where a number is exactly 0. How much a net without the mask copies depends on how long "
        "it is trained; the last word is never in its input, so a little loss stays.",
        "剛好是 0 的部分沒有疑問。沒有遮罩時抄多少，取決於訓練多久；最後一個字從不在輸入裡，所以損失不會到 0。",
    ),
    again=(
        "leeml study masked_attention --full",
        Said("Longer sentences, deeper nets and more steps.", "更長的句子、更深的網路、更多步。"),
    ),
    source="Lecture 5 of 2021 (Transformer); Vaswani et al. 2017, NeurIPS (arXiv 1706.03762), section 3.2.3",
    code=("modules/nets/attention.py:MultiHeadAttention.forward", "modules/nets/transformer.py:DecoderLayer"),
    quick=Settings(),
    full=Settings(words=20, d_model=64, layers=2, steps=800),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("attention", looks),
)
