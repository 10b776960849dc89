"""How studies translate: HW5's module and data at a small size, and what they measure of a trained translator."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F

from callbacks.warmup import ScheduleName, WarmupScheduler
from datamodules.hw5_translation import TranslationData
from modules.hw5_parallel import ParallelTranslator
from modules.hw5_translation import Translator
from modules.nets.routing import Routing
from modules.nets.seq2seq import Memory, TransformerSeq2Seq
from modules.translation.scores import CorpusScore
from scripts.studies.lab.fit import fit


@dataclass(frozen=True)
class Size:
    """Of corpus and net, and how it is trained: small enough for the generated corpus and seconds."""

    vocabulary: int = 600
    folds: int = 10
    judged: int = 200
    """Held-out pairs that are translated."""
    max_tokens: int = 256
    max_length: int = 256
    """Of the sentences that it learns from, in tokens."""
    epochs: int = 1
    d_model: int = 64
    heads: int = 4
    d_ff: int = 128
    layers: int = 2
    dropout: float = 0.0
    rate: float = 5e-3
    accelerator: str = "cpu"
    """See `fit`."""


REAL = Size(
    vocabulary=6000, folds=100, judged=500, max_tokens=1024, max_length=14, epochs=2, d_model=64, d_ff=128,
    layers=3, rate=4e-3, accelerator="auto",
)  # fmt: skip
"""For the shorter ones of HW5's own pairs: a minute a fit on a CPU core."""


class Judged(NamedTuple):
    """How well a translator does on held-out pairs."""

    loss: float
    """Cross-entropy of a token, in nats."""
    bleu: float
    """Of greedy translations."""


WORDS = {
    "noun": "a 貓 b 狗 c 鳥 d 魚 e 馬 f 羊 g 虎 h 鼠",
    "adjective": "i 老 j 紅 k 白 l 大 m 小 n 胖",
    "verb": "o 看 p 愛 q 打 r 怕 s 找 t 聽",
    "place": "u 園 v 屋 w 林 x 村 y 田 z 船",
}
"""Of a language so small that seconds are enough to learn it: its words are letters."""


class Said(NamedTuple):
    """A sentence, and its translations with the object last or first, which are equally right."""

    source: str
    last: str
    first: str


def small_language(count: int, seed: int) -> list[Said]:
    """So many of the 131,712 sentences, no two alike, such as iaobu: 老貓在園看狗 or 狗老貓在園看 (old cat, dog)."""
    rng = np.random.default_rng(seed)
    words = {kind: list(zip(text.split()[::2], text.split()[1::2], strict=True)) for kind, text in WORDS.items()}

    def pick(kind: str, chance: float = 1.0) -> tuple[str, str]:
        return words[kind][rng.integers(len(words[kind]))] if rng.random() < chance else ("", "")

    found: dict[str, Said] = {}
    while len(found) < count:
        kinds = (("adjective", 0.5), ("noun", 1.0), ("verb", 1.0), ("adjective", 0.5), ("noun", 1.0), ("place", 0.5))
        letters, (how, who, does, what_kind, what, where) = zip(*(pick(*kind) for kind in kinds), strict=True)
        subject, target, where = how + who, what_kind + what, where and f"在{where}"
        said = Said("".join(letters), subject + where + does + target, target + subject + where + does)
        found[said.source] = said
    return list(found.values())


def write_pairs(folder: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Sources and translations as HW5's English and Chinese files below a new data root."""
    (folder / "hw5_translation").mkdir(parents=True)
    for language, lines in zip(("en", "zh"), zip(*pairs, strict=True), strict=True):
        text = "".join(f"{line}\n" for line in lines)
        (folder / "hw5_translation" / f"raw.{language}").write_text(text, encoding="utf-8")


@contextmanager
def told_once(pairs: int, seed: int, root: Path) -> Iterator[Path]:
    """A data root with so many pairs of the small language, the object last; for 0 the root itself, with HW5's own."""
    with TemporaryDirectory() as folder:
        if pairs:
            write_pairs(Path(folder), [(said.source, said.last) for said in small_language(pairs, seed)])
        yield Path(folder) if pairs else root


def corpus(size: Size, seed: int, root: Path) -> TranslationData:
    """The pairs, to be set up by a fit; the seed tells which are held out and the order of the others."""
    return TranslationData(
        str(root), vocabulary=size.vocabulary, folds=size.folds, max_tokens=size.max_tokens,
        max_length=size.max_length, quick=size.judged, seed=seed,
    )  # fmt: skip


def trained(
    size: Size,
    data: TranslationData,
    seed: int,
    routing: Routing = "last",
    callbacks: Iterable[Callback] = (),
    kind: type[Translator] = Translator,
    schedule: ScheduleName = "constant",
    smoothing: float = 0.1,
) -> Translator:
    """A pre-norm Transformer after its epochs, in evaluation mode, with the decoder that this kind of translator has.

    Its rate follows the schedule, after a tenth of the steps; smoothing is of the labels.
    """
    torch.manual_seed(seed)
    net = partial(
        TransformerSeq2Seq, d_model=size.d_model, heads=size.heads, d_ff=size.d_ff, layers=size.layers,
        dropout=size.dropout, norm="pre", routing=routing, causal=not issubclass(kind, ParallelTranslator),
    )  # fmt: skip
    module = kind(
        partial(torch.optim.AdamW, lr=size.rate, betas=(0.9, 0.98), fused=True), net, label_smoothing=smoothing
    )
    fit(module, data, size.epochs, [WarmupScheduler(schedule, warmup=0.1), *callbacks], size.accelerator)
    return module.eval()


def read_before(target: Tensor, bos: int) -> Tensor:
    """The true words before each step: BOS and the target (B, T) but for its last."""
    return F.pad(target, (1, 0), value=bos)[:, :-1]


@torch.no_grad()
def next_words(module: Translator, memory: Memory, read: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target word (B, T) after the words read (B, T), in nats, and whether it was the likeliest.

    What stands at padding means nothing.
    """
    logits = module.net.logits(module.net.decode(module.net.embed(read), memory))
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none"), logits.argmax(2) == target


def everything(batch: dict[str, Any]) -> Tensor:
    """All rows of a batch: True (B,)."""
    return torch.ones_like(batch["quick"])


@torch.no_grad()
def judge_translator(
    module: Translator, data: TranslationData, part: Callable[[dict[str, Any]], Tensor] = everything
) -> Judged:
    """Loss of held-out pairs, and BLEU of those among them that `data.quick` chose.

    Args:
        module, data: The translator, and whose held-out pairs.
        part: Which rows of a batch are looked at, bool (B,).
    """
    pad, bos, _ = module.ends[:3]
    total, count, bleu = 0.0, 0, CorpusScore("bleu", module.language)
    for batch in data.val_dataloader():
        batch = module.transfer_batch_to_device(batch, module.device, 0)
        rows = part(batch)
        if not rows.any():
            continue
        source, target, quick = batch["source"][rows], batch["target"][rows], batch["quick"][rows]
        losses, _ = next_words(module, module.net.encode(source, source != pad), read_before(target, bos), target)
        total += float(losses[target != pad].sum())
        count += int((target != pad).sum())
        if quick.any():
            references = [batch["reference"][i] for i in (rows & batch["quick"]).nonzero()[:, 0].tolist()]
            bleu.update(module.translate(source[quick], 1), references)
    return Judged(total / count, float(bleu.compute()))
