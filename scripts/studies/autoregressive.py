"""Autoregressive or not: words said one after the other, or all at once, where a sentence has one translation or two.

Changed after looking: the language of `leeml data sample`, which has 100 words of two characters each, was too much for
the time: one shot had not learned it even where nothing was to be agreed on. A smaller one took its place.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
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
from scripts.studies.lab import recorded
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, mean_and_spread
from scripts.studies.lab.translation import REAL, Size, corpus, small_language, trained, write_pairs

TOGETHER = 50  # sentences of a batch
WIDTHS = (1, 2, 3, 5)  # of the beams whose search is recorded
ONCE: dict[str, type[Translator]] = {"token by token": Translator, "one shot": OneShotTranslator}
KINDS: dict[str, type[Translator]] = {**ONCE, "mask-predict, passes: {}": MaskedTranslator}
COLOURS = ("tab:green", "tab:olive", "tab:purple")
Way = Callable[[Tensor], list[list[int]]]


@dataclass(frozen=True)
class Settings:
    """Size of net and training, the corpora, the iterations of mask-predict, and what is timed."""

    size: Size = field(default_factory=Size)
    pairs: int = 2000
    """Of the small language; 0: HW5's own."""
    orders: tuple[int, ...] = (1, 2)
    """Of words, in which each corpus says its sentences: 2 leaves it to a coin where the object stands. Mask-predict
    learns the last."""
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
    """The pairs that `data.quick` chose, with what is right for each source; where nothing is known, the reference."""
    found = HeldOut([], [], [])
    for batch in data.val_dataloader():
        source, target = batch["source"], batch["target"]
        for i in batch["quick"].nonzero()[:, 0].tolist():
            found.sources.append(source[i, source[i] != PAD])
            found.words.append(target[i, target[i] != PAD][:-1].tolist())
            found.right.append(right[batch["text"][i]] if right else [batch["reference"][i]])
    return found


def bleu(said: list[str], right: list[list[str]], language: str) -> float:
    """sacrebleu's of the corpus; every sentence has as many translations that are right."""
    streams = list(zip(*right, strict=True))
    return sacrebleu.corpus_bleu(said, streams, tokenize="zh" if language == "zh" else "13a").score


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
        "bleu": bleu(texts, pairs.right, module.language),
        "repeated": repeated_share(said),
        "example": texts[0],
        "passes": passes(way, module, pairs.sources[:timed]),
    }


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """How well and how fast each kind of translator says held-out sentences, after as many steps on the same pairs."""
    found: Measurements = {}
    for orders in settings.orders:
        with TemporaryDirectory() as folder:
            place = Path(folder) if settings.pairs else root
            right = told(settings, orders, seed, place) if settings.pairs else {}
            ways: dict[str, tuple[Translator, Way]] = {}
            asked = KINDS if orders == settings.orders[-1] else ONCE
            for name, kind in asked.items():
                data = corpus(settings.size, seed, place)
                module = trained(settings.size, data, seed, kind=kind, schedule="linear")
                counts = settings.iterations if kind is MaskedTranslator else (1,)
                ways |= {name.format(n): (module, partial(say, module=module, iterations=n)) for n in counts}
            pairs = held_out(data, right)
        spent = seconds([way for _, way in ways.values()], pairs.sources[: settings.timed], settings.repeats)
        module, source = ways["token by token"][0], pairs.sources[0][None]
        lattices = [
            recorded.lattice(module.net, source, module.ends, width, module.pieces.id_to_piece) for width in WIDTHS
        ]
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


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Half the time, 2 points of BLEU and 1 of 100 words count as a difference; of the corpus with the most orders."""
    corpora = list(measurements[0])
    few, most = corpora[0], corpora[-1]
    slow, shot, first, *_, last = measurements[0][most]["ways"]

    def gap(key: str, more: str, less: str, orders: str = most) -> np.ndarray:
        return of(measurements, orders, more, key) - of(measurements, orders, less, key)

    time = np.log2(of(measurements, most, slow, "seconds") / of(measurements, most, shot, "seconds"))
    findings = [
        effect(f"{shot} is faster than {slow} (log2 of the ratio of times)", time.tolist(), 1.0),
        effect("and worse (points of BLEU)", gap("bleu", slow, shot).tolist(), 2.0),
        effect("and says more words twice in a row (share of words)", gap("repeated", shot, slow).tolist(), 0.01),
        effect(f"{last} is better than {first} (points of BLEU)", gap("bleu", last, first).tolist(), 2.0),
        effect("and says fewer words twice in a row (share of words)", gap("repeated", first, last).tolist(), 0.01),
    ]
    if most != few:
        more = gap("bleu", slow, shot) - gap("bleu", slow, shot, few)
        twice = gap("repeated", shot, slow) - gap("repeated", shot, slow, few)
        findings += [
            effect(f"{shot} is worse by more where two orders are right than where one is (points of BLEU)",
                   more.tolist(), 2.0),
            effect("and says more words twice there (share of words)", twice.tolist(), 0.01),
        ]  # fmt: skip
    return findings


def figure(measurements: list[Measurements]) -> Figure:
    """BLEU against time for each corpus, and what is said twice in a row."""
    corpora = list(measurements[0])
    drawn = Figure(figsize=(4 * len(corpora) + 4.6, 3.8), layout="constrained")
    *plots, bars = drawn.subplots(1, len(corpora) + 1)
    ways = list(measurements[0][corpora[-1]]["ways"])
    colours = dict(zip(ways, ("tab:blue", "tab:red", *COLOURS), strict=False))
    for axes, orders in zip(plots, corpora, strict=True):
        slow = of(measurements, orders, ways[0], "seconds")
        for way in measurements[0][orders]["ways"]:
            time, score = of(measurements, orders, way, "seconds") / slow, of(measurements, orders, way, "bleu")
            axes.plot(time, score, "o", color=colours[way], alpha=0.35, markersize=4)
            axes.plot(time.mean(), score.mean(), "o", color=colours[way], markersize=9, label=way)
        axes.set(xlim=(0, 1.1), ylim=(0, 105), xlabel=f"time of one sentence ({ways[0]} = 1)", ylabel="BLEU, held out")
        axes.set_title(f"{orders} order{'s' * (orders != '1')} of words" if len(corpora) > 1 else "")
    plots[-1].legend(fontsize=8, loc="upper left")
    for place, orders in enumerate(corpora):
        for x, way in enumerate(measurements[0][orders]["ways"]):
            share = 100 * of(measurements, orders, way, "repeated")
            at = x + 0.4 * (place - (len(corpora) - 1) / 2)
            bars.bar(at, share.mean(), 0.4, color=colours[way], alpha=1 if orders == corpora[-1] else 0.4)
            bars.plot(np.full(len(share), at), share, ".", color="black", markersize=4)
    bars.set_xticks(range(len(ways)), [way.replace(" ", "\n").replace("mask-", "mask-\n") for way in ways], fontsize=8)
    pale = "; pale: one order" if len(corpora) > 1 else ""
    bars.set(title=f"words said twice in a row{pale}", ylabel="% of the words said")
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


STUDY = Study(
    number=16,
    heading="Autoregressive and Non-autoregressive",
    chinese="自迴歸與非自迴歸：一個字一個字說，還是一次說完",
    claim="Producing all tokens at once is faster than token by token and worse: where several translations are right "
    "it mixes them and repeats words, which further passes fix in part.",
    source="Lecture 5 of 2021 (Transformer); Gu et al. 2018, ICLR (arXiv 1711.02281); Ghazvininejad et al. 2019, EMNLP "
    "(arXiv 1904.09324)",
    idea="A decoder without the causal mask gives all words in one pass, as many as another predictor says. But no "
    "place knows what the others choose: if two orders of words are equally right, one place may speak in the one and "
    "its neighbour in the other (the multi-modality problem). Mask-predict says the least sure words again, in sight "
    "of the others. A small made-up language is told twice: with the object always last, so that there is nothing to "
    "agree on, and with the object last or first, by a coin for every sentence; BLEU then takes both for right. "
    "<code>--full</code> takes HW5's pairs as they are.",
    formula="token by token: P(y | x) = Π<sub>t</sub> P(y<sub>t</sub> | y<sub>1</sub> … y<sub>t−1</sub>, x); "
    "all at once: P(y | x) = P(T | x) Π<sub>t</sub> P(y<sub>t</sub> | T, x)",
    varies="how words are said, and in how many orders the corpus says them; the same sources, as many steps",
    code=(
        "modules/hw5_parallel.py:MaskedTranslator",
        "modules/translation/parallel_search.py:mask_predict",
        "modules/translation/parallel_search.py:repeated_share",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(Size(vocabulary=320, layers=1, epochs=5)),
    full=Settings(REAL, pairs=0, orders=(1,), iterations=(1, 4, 10)),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw5_translation",
    seeds=3,
)
