"""Teacher forcing and scheduled sampling: a walk in which each answer builds on the last one, so that errors stay."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.scheduled_sampling import ScheduledSampling
from modules.nets.seq2seq import Memory, Seq2Seq, TransformerSeq2Seq
from modules.translation.scheduled_sampling import OwnWords, by_steps, in_passes
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread

MOVES = (-1, 0, 1)
TEACHER, SCHEDULED = TRAININGS = "teacher forcing", "scheduled sampling"


@dataclass(frozen=True)
class Settings:
    """The walks, the nets, and how they are trained."""

    rooms: int = 8
    length: int = 16
    hidden: float = 0.15
    """Chance that a move is not told."""
    signs: float = 0.5
    """Chance that a sign names the room; else it names any."""
    width: int = 48
    heads: int = 4
    layers: int = 1
    steps: int = 400
    batch_size: int = 64
    rate: float = 3e-3
    decay: float = 0.5
    """Part of the steps in which the chance of a true word falls from 1 to 0."""
    judged: int = 400
    wrong_at: int = 5
    """The answer that is replaced by a wrong one; 1 is the first."""


class Walks(NamedTuple):
    """What is told at each step, and where the walk is after it."""

    told: Tensor
    """(N, T): a move, or that none is told, and a sign, as one number below (moves + 1) x rooms."""
    rooms: Tensor
    """(N, T)."""


def walks(settings: Settings, count: int) -> Walks:
    """Random walks on a ring of rooms from room 0."""
    shape = count, settings.length
    move = torch.randint(len(MOVES), shape)
    rooms = torch.tensor(MOVES)[move].cumsum(1) % settings.rooms
    sign = torch.where(torch.rand(shape) < settings.signs, rooms, torch.randint(settings.rooms, shape))
    seen = move.masked_fill(torch.rand(shape) < settings.hidden, len(MOVES))
    return Walks(seen * settings.rooms + sign, rooms)


def best_guesses(settings: Settings, told: Tensor) -> Tensor:
    """The likeliest room (N, T) after all that was told (N, T) up to each step: nobody can be right more often."""
    rooms = settings.rooms
    belief = F.one_hot(torch.zeros(len(told), dtype=torch.int64), rooms).double()
    found = []
    for seen, sign in zip((told // rooms).T, (told % rooms).T, strict=True):
        moved = torch.stack([belief.roll(move, 1) for move in MOVES])
        moved = torch.cat([moved, moved.mean(0, keepdim=True)])[seen, torch.arange(len(told))]
        belief = moved * (settings.signs * F.one_hot(sign, rooms) + (1 - settings.signs) / rooms)
        found.append(belief.argmax(1))
    return torch.stack(found, 1)


class Follower(Seq2Seq):
    """A GRU whose step t reads the answer before it and what is told at t.

    Args:
        vocabulary: V, of what is told, and more than there are answers.
        width: Of vectors and state.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.source_table, self.target_table = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Memory:
        """(B, T) -> vectors (B, T, D)."""
        return Memory([self.source_table(source)], mask)

    def embed(self, target: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return self.target_table(target)

    def decode(self, embedded: Tensor, memory: Memory) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.step(embedded, self.start(memory))

    def start(self, memory: Memory, room: int = 0) -> dict[str, Any]:
        """What is told from now on, and no state yet."""
        return {"told": memory.outputs[0], "hidden": None}

    def step(self, embedded: Tensor, state: dict[str, Any]) -> Tensor:
        """(B, t, D) -> (B, t, D)."""
        steps = embedded.shape[1]
        now, state["told"] = state["told"][:, :steps], state["told"][:, steps:]
        out, state["hidden"] = self.gru(embedded + now, state["hidden"])
        return out

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.out(states)


def new_net(settings: Settings, kind: str) -> Seq2Seq:
    """A net of a kind, recurrent or Transformer, with random weights."""
    vocabulary = (len(MOVES) + 1) * settings.rooms  # of what is told; answers need less
    if kind == "recurrent":
        return Follower(vocabulary, settings.width)
    return TransformerSeq2Seq(
        vocabulary, settings.width, settings.heads, 2 * settings.width, settings.layers, dropout=0.0, norm="pre",
        share=False,
    )  # fmt: skip


SAMPLERS: dict[str, Callable[[Seq2Seq, Tensor, Memory, float, OwnWords], Tensor]] = {
    "recurrent": by_steps,
    "Transformer": in_passes,
}
"""The paper's way for the net that goes word by word, two passes for the one that does all at once."""


def before(settings: Settings, rooms: Tensor) -> Tensor:
    """What is read at each step: BOS, which is one more than the last room, and all rooms (N, T) but the last."""
    return F.pad(rooms, (1, 0), value=settings.rooms)[:, :-1]


def trained(settings: Settings, kind: str, training: str) -> Seq2Seq:
    """A net after its steps, each on new walks."""
    net = new_net(settings, kind)
    optimizer = torch.optim.AdamW(net.parameters(), settings.rate)
    decay = ScheduledSampling("linear", total=max(1, round(settings.decay * settings.steps)))
    for step in range(settings.steps):
        told, rooms = walks(settings, settings.batch_size)
        memory, read = net.encode(told), before(settings, rooms)
        truth = decay.probability(step, settings.steps) if training == SCHEDULED else 1.0
        if truth < 1:
            states = SAMPLERS[kind](net, read, memory, truth, "sampled")
        else:
            states = net.decode(net.embed(read), memory)
        loss = F.cross_entropy(net.logits(states).flatten(0, 1), rooms.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def by_itself(net: Seq2Seq, told: Tensor, first: Tensor) -> Tensor:
    """Rooms (N, T) of a net that reads what is given first (N, t), BOS at its head, and its own answers after it."""
    state = net.start(net.encode(told))
    said = net.logits(net.step(net.embed(first), state)).argmax(2)
    for _ in range(told.shape[1] - first.shape[1]):
        said = torch.cat([said, net.logits(net.step(net.embed(said[:, -1:]), state)).argmax(2)], 1)
    return said


@torch.no_grad()
def judged(settings: Settings, net: Seq2Seq, held_out: Walks) -> Measurements:
    """Shares of right rooms.

    Returns:
        truth: Of a net that reads the truth; own: one that reads its own answers from the start.
        correct, wrong: of the answers after the first few, which are given, all true or the last one wrong, by distance
            from it.
    """
    told, rooms = held_out
    read = before(settings, rooms)
    given = read[:, : settings.wrong_at + 1]
    replaced = given.clone()
    replaced[:, -1] = (given[:, -1] + settings.rooms // 2) % settings.rooms  # the room opposite
    said = {
        "correct": by_itself(net, told, given),
        "wrong": by_itself(net, told, replaced),
        "truth": net.logits(net.decode(net.embed(read), net.encode(told))).argmax(2),
        "own": by_itself(net, told, read[:, :1]),
    }
    right = {name: (answer == rooms).double().mean(0) for name, answer in said.items()}
    after = {name: right[name][settings.wrong_at :].tolist() for name in ("correct", "wrong")}
    return after | {name: float(right[name].mean()) for name in ("truth", "own")}


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """How each net does after each training, and how often the best guess is right."""
    held_out = walks(settings, settings.judged)
    best = (best_guesses(settings, held_out.told) == held_out.rooms).double().mean()
    found: Measurements = {"best": float(best)}
    for kind in SAMPLERS:
        found[kind] = {}
        for training in TRAININGS:
            torch.manual_seed(seed)
            found[kind][training] = judged(settings, trained(settings, kind, training), held_out)
    return found


def cost(found: Measurements, kind: str, training: str) -> float:
    """Share of right rooms that one wrong answer costs, of all that come after it."""
    own = found[kind][training]
    return float(np.mean(own["correct"]) - np.mean(own["wrong"]))


def less_lost(found: Measurements, kind: str) -> float:
    """By how much less a wrong answer costs after scheduled sampling."""
    return cost(found, kind, TEACHER) - cost(found, kind, SCHEDULED)


def gained(found: Measurements, kind: str) -> float:
    """Share of right rooms that scheduled sampling adds where a net reads its own answers."""
    return float(found[kind][SCHEDULED]["own"] - found[kind][TEACHER]["own"])


OF_ROOMS = Said("percentage points of the answers", "個百分點的答案")
STATEMENTS = (
    Statement(
        Said(
            "After teacher forcing a recurrent net is right less often when it reads its own answers than when it "
            "reads the truth.",
            "用 teacher forcing 訓練的循環網路，讀自己的答案時，比讀正確答案時更常出錯。",
        ),
        lambda found: found["recurrent"][TEACHER]["truth"] - found["recurrent"][TEACHER]["own"], 0.05, OF_ROOMS,
        "share",
    ),
    *(
        Statement(
            Said(
                f"{english} loses less by one wrong answer after scheduled sampling.",
                f"{chinese}用 scheduled sampling 訓練後，錯一個答案的損失比較小。",
            ),
            partial(less_lost, kind=kind), 0.05, OF_ROOMS, "share",
        )
        for kind, english, chinese in (
            ("recurrent", "A recurrent net", "循環網路"),
            ("Transformer", "A Transformer, with two passes,", "Transformer（跑兩遍）"),
        )
    ),
    Statement(
        Said(
            "A recurrent net that reads its own answers is right more often after scheduled sampling.",
            "循環網路讀自己的答案時，用 scheduled sampling 訓練的比較常答對。",
        ),
        lambda found: gained(found, "recurrent"), 0.05, OF_ROOMS, "share",
    ),
    Statement(
        Said(
            "A Transformer gains less by it: two passes show it single mistakes, not one that leads to the next.",
            "Transformer 進步較少：跑兩遍只讓它看到單獨的錯，看不到一步錯、步步錯。",
        ),
        lambda found: gained(found, "recurrent") - gained(found, "Transformer"), 0.02, OF_ROOMS, "share",
    ),
    Statement(
        Said(
            "The price: a recurrent net that reads the truth is right less often after scheduled sampling.",
            "代價：循環網路讀正確答案時，用 scheduled sampling 訓練的比較常出錯。",
        ),
        lambda found: found["recurrent"][TEACHER]["truth"] - found["recurrent"][SCHEDULED]["truth"], 0.02, OF_ROOMS,
        "share",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Right answers after a wrong one, and of nets that read the truth or their own answers."""
    drawn = Figure(figsize=(8, 7), layout="constrained")
    panels = drawn.subplots(2, 2, sharex="row", sharey=True)
    best = 100 * np.mean([m["best"] for m in measurements])
    for kind, above, below in zip(SAMPLERS, *panels, strict=True):
        for place, (training, colour) in enumerate(zip(TRAININGS, ("tab:blue", "tab:orange"), strict=True)):
            own = [m[kind][training] for m in measurements]
            for key, style in (("correct", "--"), ("wrong", "-")):
                values = 100 * np.array([m[key] for m in own])
                label = f"{training}, after a {key} answer"
                above.plot(range(1, values.shape[1] + 1), values.mean(0), style, color=colour, label=label)
            for shift, (key, alpha) in ((-0.2, ("truth", 0.4)), (0.2, ("own", 0.9))):
                values = 100 * np.array([m[key] for m in own])
                bars = below.bar(place + shift, values.mean(), 0.36, color=colour, alpha=alpha)
                below.bar_label(bars, [f"reads\n{key}" if key == "own" else "reads\ntruth"], label_type="center")
                below.plot(np.full(len(values), place + shift), values, ".", color="black", markersize=4)
        above.set(title=kind, xlabel="steps after that answer", ylim=(0, 105))
        below.axhline(best, color="black", linewidth=0.8, linestyle="--")
        below.set_xticks(range(len(TRAININGS)), TRAININGS)
    drawn.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("right rooms (%)")
    panels[1, 0].set_title("all steps; dashed: best possible without the truth", fontsize=10)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Shares of right rooms, and what a wrong answer costs."""
    rows = [
        [
            kind,
            training,
            *(mean_and_spread([100 * m[kind][training][key] for m in measurements]) for key in ("truth", "own")),
            mean_and_spread([100 * cost(m, kind, training) for m in measurements]),
        ]
        for kind in SAMPLERS
        for training in TRAININGS
    ]
    rows.append(["best guess", "", "", mean_and_spread([100 * m["best"] for m in measurements]), ""])
    return ["net", "trained by", "% right, reads the truth", "% right, reads its own", "lost by a wrong answer"], rows


STUDY = Study(
    number=18,
    heading=Said("Training: Teacher Forcing, Scheduled Sampling", "訓練：Teacher Forcing、Scheduled Sampling"),
    lecture=Said(
        "In training the decoder reads the truth (teacher forcing), in use its own words: after a mistake it is where "
        "it has never been, and one wrong word leads to the next (exposure bias). Scheduled sampling lets it read its "
        "own words in training, more and more often.",
        "訓練時 decoder 讀的是正確答案（teacher forcing），使用時讀自己的輸出：一旦出錯，就到了沒去過的地方，一步錯、"
        "步步錯（exposure bias）。"
        "Scheduled sampling 讓它在訓練時就越來越常讀自己的輸出。",
    ),
    formula="P(y<sub>t</sub> | x, ỹ<sub>1</sub> … ỹ<sub>t−1</sub>), ỹ<sub>i</sub> = y<sub>i</sub> with probability p "
    "(from 1 down to 0), else drawn from P(y<sub>i</sub> | …)",
    varies=Said(
        "Training by teacher forcing or by scheduled sampling, as many steps. The task: a walk through eight rooms "
        "in a ring (twelve with --full). Each step tells the move, but not always, and shows a sign with the room's "
        "number, which is often wrong; the net says the room. Who reads the true last room needs no "
        "signs. Who reads its own answers does.",
        "Teacher forcing 或 scheduled sampling，訓練步數相同。任務：在排成一圈的八個房間（--full 時十二個）裡走動，"
        "每一步會告知移動方向（偶爾沒有），"
        "並看到一個房間號碼牌（常常是錯的），網路要說出目前的房間。讀得到正確的上一個房間，就不需要號碼牌；"
        "只讀自己的答案時就需要。",
    ),
    caption=Said(
        "Top: right answers after one that was given, true (dashed) or wrong (solid). Bottom: all steps, reading the "
        "truth (pale) or own answers (dark).",
        "上：給定一個正確（虛線）或錯誤（實線）的答案之後，各步答對的比例。下：所有步的平均；淺色是讀正確答案，"
        "深色是讀自己的答案。",
    ),
    doubt=Said(
        "The task is made for the effect: the right answer can be found without the last one. In translation most "
        "words "
        "are read off the source, and little is gained. And where many outputs are right, scheduled sampling learns "
        "the wrong distribution (Huszár 2015).",
        "這個任務是為了看到效果而設計的：不靠上一個答案也找得到正確答案。翻譯時大部分的字直接看原文就知道，"
        "所以幫助不大。"
        "而且有很多種正確輸出時，scheduled sampling 學到的機率分布其實是錯的（Huszár 2015）。",
    ),
    again=(
        "leeml fit --config configs/hw5_translation/tiny.yaml --trainer.callbacks+=ScheduledSampling "
        "--trainer.callbacks.decay=linear",
        Said("HW5 with scheduled sampling.", "HW5 用 scheduled sampling 訓練。"),
    ),
    source="Lecture 5 of 2021 (Transformer); Bengio et al. 2015, NeurIPS (arXiv 1506.03099); Mihaylova and Martins "
    "2019 (arXiv 1906.07651); Huszár 2015 (arXiv 1511.05101)",
    code=(
        "callbacks/scheduled_sampling.py:ScheduledSampling",
        "modules/translation/scheduled_sampling.py:by_steps",
        "modules/translation/scheduled_sampling.py:in_passes",
        "scripts/studies/scheduled_sampling.py:by_itself",
    ),
    quick=Settings(),
    full=Settings(rooms=12, length=24, width=64, layers=2, steps=1000, judged=1000),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
)
