"""Teacher forcing and scheduled sampling: one wrong word early, and what is said after it.

Changed after looking: BLEU is lost as a share, not in points, because after as many steps scheduled sampling translates
worse and so has fewer points to lose; and one layer was given more steps, where two had not learned to translate.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from callbacks.scheduled_sampling import ScheduledSampling
from datamodules.hw5_translation import TranslationData
from modules.hw5_translation import Translator
from modules.nets.seq2seq import Memory
from modules.translation.parallel_search import cut
from modules.translation.scores import CorpusScore
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, mean_and_spread
from scripts.studies.lab.translation import REAL, Size, corpus, judge_translator, next_words, read_before, trained

KINDS = ("teacher forcing", "scheduled sampling")


@dataclass(frozen=True)
class Settings:
    """Size of corpus, net and training, the least probability of a true word, and where the wrong one stands."""

    size: Size = field(default_factory=Size)
    floor: float = 0.5
    wrong_at: int = 3
    """1 is the first word."""
    distance: int = 8
    """Words after it that are looked at one by one."""


def wrong_words(target: Tensor, at: int, pool: Tensor, generator: torch.Generator) -> Tensor:
    """For each target (B, T) another word than its at-th, drawn from the pool (N,): (B,).

    In a pool that holds hardly another word, one may stay the same.
    """
    drawn = pool[torch.randint(len(pool), (8, len(target)), generator=generator)]
    other = (drawn != target[:, at - 1]).int().argmax(0)  # the first draw that is another
    return drawn.gather(0, other[None])[0]


@torch.no_grad()
def go_on(module: Translator, memory: Memory, read: Tensor, steps: int) -> Tensor:
    """The likeliest word at each of so many steps after the words read (B, t), itself read then: (B, steps)."""
    net, state, said = module.net, module.net.start(memory), []
    for _ in range(steps):
        logits = net.logits(net.step(net.embed(read), state)[:, -1])
        logits[:, [module.ends.pad, module.ends.bos]] = -torch.inf
        read = logits.argmax(1, keepdim=True)
        said.append(read)
    return torch.cat(said, 1)


def text_after(module: Translator, source: Tensor, memory: Memory, read: Tensor) -> list[str]:
    """What it says by itself after the words read (B, t) until EOS, or until the limit of all decoding."""
    limits = module.ends.limits([module.net], source, source != module.ends.pad)
    before = read.shape[1] - 1
    said = go_on(module, memory, read, max(limits) - before).tolist()
    lines = [line[: limit - before] for line, limit in zip(said, limits, strict=True)]
    return [module.text(cut(line, module.ends.eos)) for line in lines]


def stretch(values: Tensor, valid: Tensor, first: int, length: int) -> Tensor:
    """Columns first to first + length of values (B, T), (B, length): NaN where they are not valid (B, T) or end."""
    found = values.where(valid, torch.nan)[:, first : first + length]
    return F.pad(found, (0, length - found.shape[1]), value=torch.nan)


@torch.no_grad()
def after_a_wrong_word(settings: Settings, module: Translator, data: TranslationData, seed: int) -> dict[str, Any]:
    """What one wrong word does to a translator, on held-out pairs that are long enough.

    Returns:
        loss, right: mean over pairs of the rise of the loss and of the fall of the share of right words, by distance
            from the wrong word, where all words but it are true, (distance,).
        clean, corrupted: BLEU of what it says by itself after true words, and after such of which the last is wrong.
    """
    pad, bos, eos = module.ends[:3]
    at, generator = settings.wrong_at, torch.Generator().manual_seed(seed)
    score = {name: CorpusScore("bleu", module.language) for name in ("clean", "corrupted")}
    rises, falls = [], []
    for batch in data.val_dataloader():
        rows = (batch["target"] != pad).sum(1) > at + 1  # at least a word after the wrong one, and EOS
        source, target = batch["source"][rows], batch["target"][rows]
        if not len(target):
            continue
        valid = target != pad
        memory = module.net.encode(source, source != pad)
        read = read_before(target, bos)
        changed = read.clone()
        changed[:, at] = wrong_words(target, at, target[valid & (target != eos)], generator)
        losses, right = next_words(module, memory, read, target)
        worse, still = next_words(module, memory, changed, target)
        rises.append(stretch(worse - losses, valid, at, settings.distance))
        falls.append(stretch(right.float() - still.float(), valid, at, settings.distance))
        references = [module.text(cut(words, eos)) for words in target[:, at:].tolist()]
        for name, words in (("clean", read), ("corrupted", changed)):
            score[name].update(text_after(module, source, memory, words[:, : at + 1]), references)
    return {
        "loss": torch.cat(rises).nanmean(0).tolist(),
        "right": torch.cat(falls).nanmean(0).tolist(),
        **{name: float(own.compute()) for name, own in score.items()},
    }


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """What a wrong word does to a translator of either kind, and how well each translates."""
    callbacks: dict[str, list[Callback]] = {
        "teacher forcing": [],
        "scheduled sampling": [ScheduledSampling("linear", floor=settings.floor)],
    }
    found: Measurements = {"held_out": {}, "bleu": {}, "after": {}}
    for name in KINDS:
        data = corpus(settings.size, seed, root)
        module = trained(settings.size, data, seed, callbacks=callbacks[name])
        found["held_out"][name], found["bleu"][name] = judge_translator(module, data)
        found["after"][name] = after_a_wrong_word(settings, module, data, seed)
    return found


def lost(measurements: list[Measurements], name: str) -> np.ndarray:
    """Share of BLEU that a wrong word costs, one a seed; not finite where there is none to lose."""
    clean, corrupted = (np.array([m["after"][name][key] for m in measurements]) for key in ("clean", "corrupted"))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - corrupted / clean


def judge(measurements: list[Measurements]) -> list[Finding]:
    """A twentieth of BLEU and 2 of 100 words count as a difference."""
    fallen = {name: np.array([m["after"][name]["right"] for m in measurements]) for name in KINDS}
    teacher, scheduled = KINDS
    near = min(3, fallen[teacher].shape[1])
    return [
        effect(f"{teacher}: what is said after a wrong word is worse (share of BLEU lost)",
               lost(measurements, teacher).tolist(), 0.05),
        effect(f"{scheduled} loses less by it (share of BLEU)",
               (lost(measurements, teacher) - lost(measurements, scheduled)).tolist(), 0.05),
        effect(f"and fewer of the next {near} words, the others being true (share)",
               (fallen[teacher][:, :near].mean(1) - fallen[scheduled][:, :near].mean(1)).tolist(), 0.02),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Rise of the loss and fall of right words by distance, and BLEU after true and wrong words."""
    drawn = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    for place, (name, colour) in enumerate(zip(KINDS, ("tab:blue", "tab:orange"), strict=True)):
        for axes, key in ((left, "loss"), (middle, "right")):
            values = np.array([m["after"][name][key] for m in measurements])
            distances = range(1, values.shape[1] + 1)
            axes.plot(distances, values.T, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(distances, values.mean(0), "o-", color=colour, label=name)
        for shift, key in ((-0.18, "clean"), (0.18, "corrupted")):
            values = np.array([m["after"][name][key] for m in measurements])
            bars = right.bar(place + shift, values.mean(), 0.34, color=colour, alpha=0.8 if key == "clean" else 0.4)
            right.bar_label(bars, [f"{key}\n{values.mean():.1f}"], fontsize=8)
            right.plot(np.full(len(values), place + shift), values, ".", color="black", markersize=4)
    left.set(title="all other words true", ylabel="rise of the loss (nats)")
    left.legend(fontsize=8)
    middle.set(title="all other words true", ylabel="fall of the share of right words")
    for axes in (left, middle):
        axes.set_xlabel("words after the wrong one")
        axes.axhline(0, color="black", linewidth=0.6)
    right.set_xticks(range(len(KINDS)), KINDS)
    right.set(title="left to itself after the wrong word", ylabel="BLEU of the rest")
    right.margins(y=0.15)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Translations from the start, and after true and wrong words."""
    rows = [
        [
            name,
            *(mean_and_spread([m[key][name] for m in measurements]) for key in ("held_out", "bleu")),
            *(mean_and_spread([m["after"][name][key] for m in measurements]) for key in ("clean", "corrupted")),
        ]
        for name in KINDS
    ]
    return ["trained by", "held-out loss", "BLEU", "BLEU of the rest after true words", "after a wrong word"], rows


STUDY = Study(
    number=18,
    heading="Training: Teacher Forcing, Scheduled Sampling",
    chinese="訓練：Teacher Forcing 與 Scheduled Sampling",
    claim="A translator that has read only true words goes wrong after one wrong word; one that has read some of its "
    "own in training loses less by it.",
    source="Lecture 5 of 2021 (Transformer); Bengio et al. 2015, NeurIPS (arXiv 1506.03099); Mihaylova and Martins "
    "2019 (arXiv 1906.07651)",
    idea="In training the decoder reads the truth, in use its own words: after a mistake it is where it has never "
    "been. Scheduled sampling lets it read its own words more and more often. Here one early word is replaced by "
    "another of the corpus, the same for both translators; then either true words follow, or it goes on by itself. "
    "Generated sentence pairs; <code>--full</code> takes HW5's.",
    formula="P(y<sub>t</sub> | x, ỹ<sub>1</sub> … ỹ<sub>t−1</sub>), ỹ<sub>i</sub> = y<sub>i</sub> with probability p "
    "(from 1 down to a floor), else argmax P(y<sub>i</sub> | …)",
    varies="training by true words alone, or also by own ones (HW5's module and callback); the same steps",
    code=(
        "callbacks/scheduled_sampling.py:ScheduledSampling",
        "modules/translation/scheduled_sampling.py:in_passes",
        "scripts/studies/scheduled_sampling.py:after_a_wrong_word",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(Size(layers=1, epochs=2, max_tokens=384)),
    full=Settings(REAL),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw5_translation",
    seeds=3,
)
