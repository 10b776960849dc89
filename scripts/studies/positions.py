"""Positional encoding: without it attention sees a set; which of two symbols came first shows the difference."""

from collections.abc import Callable
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
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.fit import Curve, fit
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread

KINDS: tuple[Positions, ...] = get_args(Positions)
NAMES = {"sinusoidal": "sines", "learned": "learned", "none": "none"}


@dataclass(frozen=True)
class Settings:
    """Length of a sequence and number of symbols, size of the net, examples, and how it is trained."""

    length: int = 8
    symbols: int = 8
    d_model: int = 32
    heads: int = 4
    layers: int = 1
    examples: int = 4096
    judged: int = 1024
    steps: int = 200
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


def steps_until_known(found: Measurements, kind: str) -> int:
    """Steps after which the mean of the last ten losses is first below half of a guess's; all where it never is."""
    means = np.convolve(found["curves"][kind], np.full(10, 0.1), "valid")
    below = np.flatnonzero(means < np.log(2) / 2)
    return int(below[0]) + 10 if len(below) else len(found["curves"][kind])


def above_a_guess(kind: str) -> Callable[[Measurements], float]:
    """Share of new sequences that are right, over one half."""
    return lambda found: found["accuracy"][kind] - 0.5


OF_A_GUESS = Said("percentage points above a guess", "個百分點（比亂猜高）")
CHANGE = Said("is the largest change", "（最大的變化）")
STATEMENTS = (
    Statement(
        Said(
            "Without positions, other order of the inputs gives the same states in that order.",
            "沒有位置編碼時，輸入換順序，各狀態只是跟著換順序。",
        ),
        lambda found: found["states"]["none"], 1e-12, CHANGE, kind="exact",
    ),
    Statement(
        Said("Without positions, the mean of the states stays the same.", "沒有位置編碼時，所有狀態的平均完全不變。"),
        lambda found: found["pooled"]["none"], 1e-12, CHANGE, kind="exact",
    ),
    Statement(
        Said(
            "Without positions, the net can only guess which symbol came first.",
            "沒有位置編碼時，哪個符號先出現只能用猜的。",
        ),
        above_a_guess("none"), 0.05, OF_A_GUESS, "share", "at most",
    ),
    Statement(
        Said("With sines as positions, it sees which came first.", "用 sin、cos 當位置編碼，就看得出誰先出現。"),
        above_a_guess("sinusoidal"), 0.4, OF_A_GUESS, "share",
    ),
    Statement(
        Said("With learned positions, it sees which came first.", "用學出來的位置編碼，也看得出誰先出現。"),
        above_a_guess("learned"), 0.4, OF_A_GUESS, "share",
    ),
    Statement(
        Said("In the end learned positions do as well as sines.", "訓練結束時，學出來的位置編碼與 sin、cos 一樣好。"),
        lambda found: found["accuracy"]["sinusoidal"] - found["accuracy"]["learned"], 0.05,
        Said("percentage points fewer right", "個百分點（少答對的）"), "share", "at most",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Loss while training, share right at the end, and how alike every two positions are."""
    drawn = Figure(figsize=(8, 7.2), layout="constrained")
    (left, right), below = drawn.subplots(2, 2)
    colours = dict(zip(KINDS, ("tab:blue", "tab:green", "tab:red"), strict=True))
    for place, kind in enumerate(KINDS):
        curves = np.array([m["curves"][kind] for m in measurements])
        left.plot(curves.T, color=colours[kind], alpha=0.15, linewidth=0.5)
        left.plot(curves.mean(0), color=colours[kind], label=NAMES[kind])
        shares = 100 * np.array([m["accuracy"][kind] for m in measurements])
        right.bar(place, shares.mean(), 0.6, color=colours[kind], alpha=0.5)
        right.plot(np.full(len(shares), place), shares, "o", color=colours[kind], markersize=4)
    left.axhline(np.log(2), color="black", linewidth=0.8, linestyle="--", label="a guess")
    left.set(xlabel="step", ylabel="training loss (nats)", title="which of two symbols comes first?")
    left.legend(fontsize=9)
    right.axhline(50, color="black", linewidth=0.8, linestyle="--")
    right.set_xticks(range(len(KINDS)), [NAMES[kind] for kind in KINDS])
    right.set(ylabel="right (%)", ylim=(0, 105), title="new sequences")
    for axes, kind in zip(below, measurements[0]["alike"], strict=True):
        image = axes.imshow(measurements[0]["alike"][kind], cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
        axes.set(xlabel="position", ylabel="position", title=f"{NAMES[kind]}: how alike two positions are")
        axes.xaxis.get_major_locator().set_params(integer=True)
    drawn.colorbar(image, ax=below, label="cosine")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Accuracy and what reordering changes, by kind."""
    rows = [
        [
            NAMES[kind],
            mean_and_spread([m["accuracy"][kind] for m in measurements]),
            max(m["states"][kind] for m in measurements),
            max(m["pooled"][kind] for m in measurements),
            mean_and_spread([steps_until_known(m, kind) for m in measurements]) if kind != "none" else "never",
        ]
        for kind in KINDS
    ]
    return [
        "positions", "share right", "states not reordered alike, largest change", "pooled, largest change",
        "steps until the loss is half of a guess's",
    ], rows  # fmt: skip


STUDY = Study(
    number=14,
    heading=Said("Positional Encoding", "位置編碼"),
    lecture=Said(
        "Attention weighs by content, whatever the distance: put its inputs in another order, and its outputs are the "
        "same, in that order. So it does not know which word came first. A vector for each place, added to the input, "
        "tells it; the vector can be made by hand, of sines, or be learned.",
        "自注意力只看內容，不看距離：輸入換個順序，輸出也只是跟著換順序，所以它不知道哪個字在前面。"
        "在每個位置加上一個向量，它就知道了；這個向量可以用 sin、cos 人工設計，也可以從資料學出來。",
    ),
    formula="f(P X) = P f(X) for every permutation P; x<sub>t</sub> ← x<sub>t</sub> + e<sub>t</sub>, by hand: "
    "e<sub>t,2i</sub> = sin(t / 10000<sup>2i/d</sup>), e<sub>t,2i+1</sub> = cos(t / 10000<sup>2i/d</sup>)",
    varies=Said(
        "HW4's net with sines, with learned positions and without any. Task: symbol 0 and symbol 1 each stand once "
        "among other symbols; which of the two comes first?",
        "HW4 的網路，分別用 sin、cos、學出來的位置編碼，以及完全不用。任務：符號 0 和符號 1 各出現一次，"
        "混在其他符號之間，哪一個在前面？",
    ),
    caption=Said(
        "Top: the loss while training, thin lines are single seeds; and how many new sequences are right. Bottom: "
        "red squares are positions whose vectors point the same way.",
        "上：訓練時的損失（細線是各個種子），以及新序列答對的比例。下：紅色代表兩個位置的向量方向相近。",
    ),
    doubt=Said(
        "Eight places are few. With longer sequences than in training a learned table has no vector at all, and sines "
        "are often no better. Which of both needs fewer steps is not decided here: see the last column of the table.",
        "這裡的序列很短。比訓練時更長的序列，學出來的表根本沒有向量，而 sin、cos 也常常不夠好。"
        "兩者誰需要比較少步，這裡沒有定論：請看表格的最後一欄。",
    ),
    again=(
        "leeml fit --config configs/hw4_speaker/medium.yaml --model.net.positions none",
        Said("HW4 without positions: does a speaker's voice need the order?", "HW4 不用位置編碼：認語者需要順序嗎？"),
    ),
    source="Lecture 5 of 2021 (self-attention); Vaswani et al. 2017, NeurIPS (arXiv 1706.03762), section 3.5, where "
    "both kinds gave nearly identical results",
    code=("modules/nets/positions.py:sinusoid", "modules/nets/positions.py:LearnedPositions"),
    quick=Settings(),
    full=Settings(length=16, d_model=64, layers=2, examples=16384, steps=500, rate=2e-3),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
)
