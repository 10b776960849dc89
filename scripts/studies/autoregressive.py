"""Autoregressive or not: words one after the other or all at once, where one translation is right or two are."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import sacrebleu
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.hw5_translation import TranslationData
from datamodules.text.tokenizer import PAD
from modules.hw5_parallel import MaskedTranslator, OneShotTranslator
from modules.hw5_translation import Translator
from modules.translation.parallel_search import mask_predict, repeated_share
from modules.translation.search import greedy
from scripts.studies.lab.recorded import lattice
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Play, Study, Table, mean_and_spread
from scripts.studies.lab.translation import Size, corpus, small_language, trained, write_pairs

TOGETHER = 50  # sentences of a batch
WIDTHS = (1, 2, 3, 5)  # of the beams whose search is recorded
ONCE: dict[str, type[Translator]] = {"token by token": Translator, "one shot": OneShotTranslator}
KINDS: dict[str, type[Translator]] = {**ONCE, "mask-predict, passes: {}": MaskedTranslator}
COLOURS = ("tab:green", "tab:olive", "tab:purple")
ORDERS = (1, 2)
"""Of words, in which each corpus says its sentences: 2 leaves it to a coin where the object stands. Mask-predict learns
the last."""
SLOW, SHOT = ONCE
Way = Callable[[Tensor], list[list[int]]]


@dataclass(frozen=True)
class Settings:
    """Size of net and training, the corpora, the iterations of mask-predict, and what is timed."""

    size: Size = field(default_factory=Size)
    pairs: int = 2000
    """Of the small language."""
    iterations: tuple[int, ...] = (1, 2, 4)
    timed: int = 10
    """Sentences said one by one."""
    repeats: int = 3
    """The fastest counts, as others may use the processor too."""


def told(settings: Settings, orders: int, seed: int, folder: Path) -> dict[str, list[str]]:
    """Write a corpus of the small language below a new data root: the translations that are right for each source."""
    sentences = small_language(settings.pairs, seed)
    coins = np.random.default_rng((seed, orders)).integers(orders, size=len(sentences))
    write_pairs(folder, [(said.source, said[1 + coin]) for said, coin in zip(sentences, coins, strict=True)])
    return {said.source: list(said[1 : 1 + orders]) for said in sentences}


def say(source: Tensor, module: Translator, iterations: int = 1) -> list[list[int]]:
    """Words of a translation of each source (B, S): greedy search, or mask-predict at the likeliest length."""
    mask = source != module.ends.pad
    if isinstance(module, MaskedTranslator):
        found = mask_predict(
            module.net, module.unknown, module.predictor, source, mask, module.ends, iterations, candidates=1
        )
    else:
        found = greedy([module.net], source, mask, module.ends)
    return [best.tokens for best, *_ in found]


class HeldOut(NamedTuple):
    """Pairs to be translated."""

    sources: list[Tensor]
    """(S,) each."""
    words: list[list[int]]
    """Of the references."""
    right: list[list[str]]
    """Translations."""


def held_out(data: TranslationData, right: dict[str, list[str]]) -> HeldOut:
    """The pairs that `data.quick` chose, with what is right for each source."""
    found = HeldOut([], [], [])
    for batch in data.val_dataloader():
        source, target = batch["source"], batch["target"]
        for i in batch["quick"].nonzero()[:, 0].tolist():
            found.sources.append(source[i, source[i] != PAD])
            found.words.append(target[i, target[i] != PAD][:-1].tolist())
            found.right.append(right[batch["text"][i]])
    return found


def bleu(said: list[str], right: list[list[str]]) -> float:
    """sacrebleu's of a Chinese corpus; every sentence has as many translations that are right."""
    return sacrebleu.corpus_bleu(said, list(zip(*right, strict=True)), tokenize="zh").score


def seconds(ways: list[Callable[[Tensor], object]], sources: list[Tensor], repeats: int) -> list[float]:
    """Time that each way takes for a sentence (S,) by itself, the mean over the sources.

    The ways take turns, and the fastest of the repeats counts: other processes may have had the processor in between.
    """
    spent = np.empty((len(ways), len(sources), repeats))
    for place in np.ndindex(len(sources), repeats, len(ways)):
        source, repeat, way = place
        start = time.perf_counter()
        ways[way](sources[source][None])
        spent[way, source, repeat] = time.perf_counter() - start
    return spent.min(2).mean(1).tolist()


def passes(way: Callable[[Tensor], object], module: Translator, sources: list[Tensor]) -> float:
    """How often the decoder is asked for words of a sentence (S,) by itself, the mean over the sources."""
    with mock.patch.object(module.net, "logits", wraps=module.net.logits) as asked:
        for source in sources:
            way(source[None])
    return asked.call_count / len(sources)


def judged(module: Translator, way: Way, pairs: HeldOut, timed: int) -> Measurements:
    """BLEU of held-out sentences and what is repeated in them, what is said of the first, and passes of some."""
    said = []
    for first in range(0, len(pairs.sources), TOGETHER):
        said += way(pad_sequence(pairs.sources[first : first + TOGETHER], batch_first=True, padding_value=PAD))
    texts = [module.text(words) for words in said]
    return {
        "bleu": bleu(texts, pairs.right),
        "repeated": repeated_share(said),
        "example": texts[0],
        "passes": passes(way, module, pairs.sources[:timed]),
    }


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """How well and how fast each kind of translator says held-out sentences, after as many steps on the same pairs."""
    found: Measurements = {}
    for orders in ORDERS:
        with TemporaryDirectory() as folder:
            right = told(settings, orders, seed, Path(folder))
            ways: dict[str, tuple[Translator, Way]] = {}
            for name, kind in (KINDS if orders == ORDERS[-1] else ONCE).items():
                data = corpus(settings.size, seed, Path(folder))
                module = trained(settings.size, data, seed, kind=kind, schedule="linear")
                counts = settings.iterations if kind is MaskedTranslator else (1,)
                ways |= {name.format(n): (module, partial(say, module=module, iterations=n)) for n in counts}
            pairs = held_out(data, right)
        spent = seconds([way for _, way in ways.values()], pairs.sources[: settings.timed], settings.repeats)
        module, source = ways["token by token"][0], pairs.sources[0][None]
        lattices = [lattice(module.net, source, module.ends, width, module.pieces.id_to_piece) for width in WIDTHS]
        found[str(orders)] = {
            "lattices": lattices,
            "source": module.text(source[0].tolist()),
            "reference": {"repeated": repeated_share(pairs.words), "text": " or ".join(pairs.right[0])},
            "ways": {
                name: judged(*both, pairs, settings.timed) | {"seconds": time}
                for (name, both), time in zip(ways.items(), spent, strict=True)
            },
        }
    return found


def of(measurements: list[Measurements], orders: str, way: str, key: str) -> np.ndarray:
    """One number of a way to translate, for each seed."""
    return np.array([m[orders]["ways"][way][key] for m in measurements])


def gap(found: Measurements, key: str, more: str, less: str, orders: int = ORDERS[-1]) -> float:
    """By how much a number of one way exceeds that of another, on a corpus."""
    ways = found[str(orders)]["ways"]
    return float(ways[more][key] - ways[less][key])


def refined(found: Measurements, key: str) -> float:
    """By how much a number of mask-predict's last count of passes exceeds that of its first."""
    _, _, first, *_, last = found[str(ORDERS[-1])]["ways"]
    return gap(found, key, last, first)


def quotient(found: Measurements) -> float:
    """Time of a sentence token by token, over that in one shot."""
    ways = found[str(ORDERS[-1])]["ways"]
    return float(ways[SLOW]["seconds"] / ways[SHOT]["seconds"])


POINTS = Said("points of BLEU", "分 BLEU")
TWICE = Said("percentage points of the words", "個百分點的字")
STATEMENTS = (
    Statement(
        Said("One shot is faster than token by token.", "一次說完比一個一個說快。"),
        quotient, 2.0, Said("times as fast", "倍快"), "ratio",
    ),
    Statement(
        Said("Where two word orders are right, one shot has lower BLEU.", "兩種語序都對時，一次說完的 BLEU 比較低。"),
        lambda found: gap(found, "bleu", SLOW, SHOT), 2.0, POINTS,
    ),
    Statement(
        Said(
            "Where two word orders are right, one shot loses more BLEU than where one is.",
            "兩種語序都對時，一次說完損失的 BLEU 比只有一種對時多。",
        ),
        lambda found: gap(found, "bleu", SLOW, SHOT) - gap(found, "bleu", SLOW, SHOT, ORDERS[0]), 2.0, POINTS,
    ),
    Statement(
        Said(
            "Where two word orders are right, one shot says more words twice in a row.",
            "兩種語序都對時，一次說完更常連說兩次同一個字。",
        ),
        lambda found: gap(found, "repeated", SHOT, SLOW), 0.01, TWICE, "share",
    ),
    Statement(
        Said("Further passes of mask-predict raise BLEU.", "Mask-predict 多修正幾次，BLEU 會提高。"),
        lambda found: refined(found, "bleu"), 2.0, POINTS,
    ),
    Statement(
        Said("Further passes of mask-predict remove repeated words.", "Mask-predict 多修正幾次，重複的字會變少。"),
        lambda found: -refined(found, "repeated"), 0.01, TWICE, "share",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """BLEU against time for each corpus, and what is said twice in a row."""
    drawn = Figure(figsize=(8, 7), layout="constrained")
    grid = drawn.add_gridspec(2, 2)
    plots, below = [drawn.add_subplot(grid[0, column]) for column in range(2)], drawn.add_subplot(grid[1, :])
    ways = list(measurements[0][str(ORDERS[-1])]["ways"])
    colours = dict(zip(ways, ("tab:blue", "tab:red", *COLOURS), strict=False))
    titles = ("one word order is right", "two word orders are right")
    for place, (orders, axes, title) in enumerate(zip(map(str, ORDERS), plots, titles, strict=True)):
        slow = of(measurements, orders, SLOW, "seconds")
        for x, way in enumerate(measurements[0][orders]["ways"]):
            time, score = of(measurements, orders, way, "seconds") / slow, of(measurements, orders, way, "bleu")
            axes.plot(time, score, "o", color=colours[way], alpha=0.35, markersize=4)
            axes.plot(time.mean(), score.mean(), "o", color=colours[way], markersize=9, label=way)
            share = 100 * of(measurements, orders, way, "repeated")
            at = x + 0.4 * (place - 0.5)
            below.bar(at, share.mean(), 0.4, color=colours[way], alpha=(0.4, 1)[place])
            below.plot(np.full(len(share), at), share, ".", color="black", markersize=4)
        axes.set(xlim=(0, None), ylim=(0, 105), xlabel=f"time of a sentence ({SLOW} = 1)", ylabel="BLEU", title=title)
    plots[-1].legend(fontsize=9, loc="lower right")
    below.set_xticks(range(len(ways)), [way.replace(", ", "\n") for way in ways])
    below.set(title="words said twice in a row (pale: where one order is right)", ylabel="% of the words")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Every way on every corpus, and the reference."""
    rows = []
    for orders, found in measurements[0].items():
        slow = of(measurements, orders, next(iter(found["ways"])), "seconds")
        for way, first in found["ways"].items():
            time = of(measurements, orders, way, "seconds") / slow
            cells = [mean_and_spread(of(measurements, orders, way, key)) for key in ("bleu", "passes")]
            twice = mean_and_spread(100 * of(measurements, orders, way, "repeated"))
            rows.append([orders, way, cells[0], mean_and_spread(time), cells[1], twice, first["example"]])
        true = mean_and_spread([100 * m[orders]["reference"]["repeated"] for m in measurements])
        rows.append([orders, "reference", "", "", "", true, found["reference"]["text"]])
    return ["orders", "said", "BLEU", "time", "decoder passes", "% twice in a row", "a sentence"], rows


def searched(measurements: list[Measurements]) -> Any:
    """The first held-out sentence of the first seed and its beam searches, where most orders are right."""
    found = measurements[0][list(measurements[0])[-1]]
    return {"source": found["source"], "lattices": found["lattices"]}


STUDY = Study(
    number=16,
    heading=Said("Autoregressive, Non-autoregressive", "自迴歸與非自迴歸"),
    lecture=Said(
        "An autoregressive decoder says one word, reads it, and says the next: as many passes as words. A "
        "non-autoregressive one says all words in one pass, as many as another predictor tells. It is fast, but no "
        "place knows what the others say: where two translations are right, one place may speak in the one and its "
        "neighbour in the other.",
        "自迴歸的 decoder 說一個字、讀進來、再說下一個，有幾個字就要跑幾次。非自迴歸的一次說完所有的字，"
        "字數由另一個預測器決定。"
        "它很快，但每個位置不知道別的位置說了什麼：有兩種正確翻譯時，相鄰的兩個位置可能各說各的（multi-modality "
        "問題）。",
    ),
    formula="token by token: P(y | x) = Π<sub>t</sub> P(y<sub>t</sub> | y<sub>1</sub> … y<sub>t−1</sub>, x); "
    "all at once: P(y | x) = P(T | x) Π<sub>t</sub> P(y<sub>t</sub> | T, x)",
    varies=Said(
        "How words are said: token by token, all in one shot, or by mask-predict, which says the least sure words "
        "again in sight of the others. A small made-up language is told twice: with the object always last, and with "
        "the object last or first, by a coin for every sentence; BLEU then takes both for right.",
        "說話的方式：一個一個、一次說完，或 mask-predict（看著其他的字，把最沒把握的字重說）。"
        "用自創的小語言做兩份語料：受詞永遠在後，以及每句擲硬幣決定受詞在前或在後；後者兩種語序都算對。",
    ),
    caption=Said(
        "Top: BLEU against time; large dots are means over seeds. Bottom: how many words repeat the one before.",
        "上：BLEU 與時間，大點是各種子的平均。下：與前一個字重複的字所佔的比例。",
    ),
    doubt=Said(
        "One sentence at a time on one core: with large batches on a GPU the gain in time is smaller. Real languages "
        "have more than two right orders, but rarely so evenly.",
        "這裡一次只翻一句、只用一個核心；在 GPU 上翻一大批時，省下的時間較少。真實語言的正確說法不只兩種，"
        "但很少這麼平均。",
    ),
    again=(
        "leeml fit --config configs/hw5_translation/nat_masked.yaml",
        Said("Mask-predict on HW5's own pairs.", "用 HW5 的句對訓練 mask-predict。"),
    ),
    source="Lecture 5 of 2021 (Transformer); Gu et al. 2018, ICLR (arXiv 1711.02281); Ghazvininejad et al. 2019, EMNLP "
    "(arXiv 1904.09324)",
    code=(
        "modules/hw5_parallel.py:MaskedTranslator",
        "modules/translation/parallel_search.py:mask_predict",
        "modules/translation/parallel_search.py:repeated_share",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(Size(vocabulary=320, layers=1, epochs=5)),
    full=Settings(Size(vocabulary=320, layers=2, epochs=20), pairs=4000, iterations=(1, 4, 10)),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("beam", searched),
)
