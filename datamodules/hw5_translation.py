"""HW5: English to Chinese translation, or back, by the course's files or any tables of sentence pairs."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import sacrebleu
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.utils.data import DataLoader, Dataset

from datamodules import course
from datamodules.base import Facts, Fold, HomeworkData
from datamodules.errors import DataError, and_more
from datamodules.files.walk import Account
from datamodules.generated import write_translation
from datamodules.samplers import LengthBucketSampler, ResumableLoader, length_buckets
from datamodules.text import describe
from datamodules.text.bitext import TABLES, Bitext, find_bitext, is_pseudo, read_bitext
from datamodules.text.cleaning import Language
from datamodules.text.corpus import CleanPairs, TokenCorpus, clean_pairs, encode_pairs, trained_tokenizer
from datamodules.text.pairs import JudgedPairs, Pairs, Sources
from datamodules.text.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

TRAIN = ("train_dev.raw", "raw")  # what the course calls its files, before .en and .zh
TEST = ("test.raw", "test", "test/test")
GPU_MULTIPLE = 8  # of padded lengths: tensor cores take numbers of 16 bits by eight
JUDGED = 4096  # tokens of a batch of validation, test and prediction: their scores over the vocabulary need memory
SIDES: tuple[Language, Language] = ("en", "zh")


class TranslationData(HomeworkData):
    """The course's files of HW5, any edition, or other sentence pairs.

    Pairs are cleaned as the course does, cut into pieces by one tokenizer for both languages, which is trained on what
    is not held out, and kept in one memory map; a second run cleans and encodes nothing. The facts for the module:
    tokenizer, size of the vocabulary, reserved pieces, languages, longest sentence.

    Args:
        folds: Number of parts the pairs are cut into; pairs that share a sentence stay together.
        pairs: Tables (.tsv, .txt) or prefixes of two files (<prefix>.en, <prefix>.zh), plain or .gz, to train on
            instead of the course's; relative to the data folder.
        test: Such a table or prefix, to be scored and translated instead of the course's test set.
        source, target: Languages; the other way round for back-translation.
        vocabulary: Pieces of the tokenizer, bytes among them.
        max_tokens: Of a batch over all ranks together: sentences x the longer padded side (fairseq).
        max_length: Tokens of a sentence, with eos. Longer pairs are not trained on; test sentences are cut.
        synthetic: Such a table or prefix of back-translated or distilled pairs; they are only trained on, and those
            with a sentence that is held out are left out.
        synthetic_ratio: Synthetic pairs for each real one, drawn or repeated; null: each once.
        synthetic_only: Train on the synthetic pairs alone, untagged, as on those of `leeml distill`; tokenizer and
            held-out pairs stay those of the real ones.
        tag: Mark the sources of synthetic pairs (Caswell et al. 2019, "Tagged Back-Translation").
        workers: Processes that make the training batches; 0 is the training process itself; null: none on a
            CPU, and beside a GPU as many as there are cores (see HomeworkData.loading).
        multiple: Padded lengths are multiples of it; null: of 8 on a GPU, which suits its products and torch.compile,
            else of 1.
        quick: Held-out pairs in the fixed subset that is decoded at each validation.
    """

    homework: ClassVar[str] = "hw5_translation"
    kaggle: ClassVar[str] = "addresses in docs/hw5_translation.md"
    score_name: ClassVar[str] = "BLEU"
    no_kfold: ClassVar[str | None] = "it averages predictions, and text has no mean; fit --data.fold 0, 1, ... instead"
    submission_name: ClassVar[str] = "submission.txt"
    in_one_folder: ClassVar[bool] = True
    """What the course calls for: a line of text a sentence, no table."""

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | int | None = None,
        folds: int = 100,
        fold: int = 0,
        seed: int = 0,
        pairs: list[str] | None = None,
        test: str | None = None,
        source: Language = "en",
        target: Language = "zh",
        vocabulary: int = 8000,
        max_tokens: int = 4096,
        max_length: int = 256,
        synthetic: str | None = None,
        synthetic_ratio: float | None = None,
        synthetic_only: bool = False,
        tag: bool = True,
        workers: int | None = None,
        multiple: int | None = None,
        quick: int = 500,
    ) -> None:
        super().__init__(root, dir, edition, folds, fold, seed)
        for name, value, least in (
            ("vocabulary", vocabulary, 300), ("max_length", max_length, 2), ("workers", workers or 0, 0),
            ("multiple", 1 if multiple is None else multiple, 1), ("quick", quick, 1),
        ):  # fmt: skip
            if value < least:
                raise DataError(f"data.{name} is {value}: expected at least {least}")
        if source == target:
            raise DataError(f"data.source and data.target are both {source}: expected en and zh, or zh and en")
        if max_length > max_tokens:
            raise DataError(
                f"data.max_length is {max_length}, more than data.max_tokens = {max_tokens}: a sentence so long would "
                "fit no batch; raise the one or lower the other"
            )
        if synthetic_ratio is not None and (synthetic is None or synthetic_ratio < 0):
            raise DataError(f"data.synthetic_ratio is {synthetic_ratio}: expected 0 or more, and data.synthetic named")
        if synthetic_only and (synthetic is None or synthetic_ratio is not None):
            raise DataError(
                "data.synthetic_only is true: expected data.synthetic named, the pairs to train on, and no "
                "data.synthetic_ratio, which counts real pairs"
            )
        self.pair_files, self.test_file, self.source, self.target = pairs, test, source, target
        self.vocabulary, self.max_tokens, self.max_length = vocabulary, max_tokens, max_length
        self.synthetic_file, self.synthetic_ratio, self.synthetic_only = synthetic, synthetic_ratio, synthetic_only
        self.tag = tag and not synthetic_only  # what every source had in training, none would have later
        self.workers, self.multiple, self.quick = workers, multiple, quick
        self.tokenizer: Tokenizer
        self.bitexts: list[Bitext] = []
        self.real: CleanPairs
        self.synthetic: CleanPairs | None = None
        self.leaks = np.zeros(0, bool)
        """Which synthetic pairs have a sentence of a pair that is held out, on either side, (M,)."""
        self.corpus: TokenCorpus
        """Of the real pairs, and after them the synthetic ones."""
        self.folds_of_rows = np.zeros(0, np.int64)
        self.test_bitext: Bitext | None = None
        self.test_corpus: TokenCorpus
        self.test_lines: dict[int, tuple[str, str]] = {}
        self.test_first = 1
        self.scored_test = False

    # files

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Whether the course's files, or at least tables of pairs, lie here."""
        return any(find_bitext(folder, name).files for name in (*TRAIN, *TEST)) or bool(_tables(folder))

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a small generated set in the course's layout."""
        return write_translation(folder, seed)

    def read_files(self, stage: str) -> None:
        """Open what the stage needs, cut the folds and find the facts."""
        folder = self.locate()
        known = self.model_facts()
        if known is not None:
            self._check(known)
        testing = stage in ("test", "predict")
        if testing:
            known = known or self.facts
            self._find_test(folder, stage)
        if not testing or known is None or (stage == "test" and not self.scored_test):
            self._open_train(folder, known, stage)
        else:
            self.tokenizer = Tokenizer.from_tensor(known["tokenizer"])
        if self.test_bitext is not None:
            self._open_test(self.test_bitext)

    def _check(self, known: Facts) -> None:
        """Hold the options against the facts of a trained model."""
        if (known["source"], known["target"]) != (self.source, self.target):
            raise DataError(
                f"data.source and data.target are {self.source} and {self.target}, but the model was trained from "
                f"{known['source']} to {known['target']}"
            )
        if self.max_length > known["max_length"]:
            raise DataError(
                f"data.max_length is {self.max_length}, but the model was trained for sentences of up to "
                f"{known['max_length']} tokens; lower it"
            )

    def _pairs(self, folder: Path, name: str, option: str) -> Bitext:
        """A bitext with both sides, or an error that names the option."""
        bitext = find_bitext(folder, name, alone=True)
        if None in bitext:
            there = f"only {bitext} is there" if bitext.files else "there is no such file"
            raise DataError(
                f"{folder / name}: {there} ({option}); expected a table that ends in .tsv or .txt, or a prefix of two "
                "files that end in .en and .zh, plain or with .gz"
            )
        return bitext

    def _find_test(self, folder: Path, stage: str) -> None:
        """The test set, and whether its lines have translations to be scored against."""
        if self.test_file is not None:
            bitext = self._pairs(folder, self.test_file, "data.test")
        else:
            found = (find_bitext(folder, name) for name in TEST)
            bitext = next((b for b in found if b[SIDES.index(self.source)] is not None), Bitext(None, None))
        if not bitext.files:
            if stage == "predict":
                raise DataError(
                    f"{folder}: no test set here (test.{self.source} or test.raw.{self.source}); name another with "
                    "data.test, or use `leeml translate` for any text"
                )
            return
        lines = read_bitext(bitext)
        pseudo = {"en": is_pseudo(lines.en), "zh": is_pseudo(lines.zh)}
        self.scored_test = not any(pseudo.values())
        if pseudo[self.source] and (stage == "predict" or self.test_file is not None):
            raise DataError(
                f"{bitext}: nothing to translate from {self.source} in it; name another test set (data.test)"
            )
        if stage == "test" and self.test_file is not None and pseudo[self.target]:
            raise DataError(f"{bitext}: nothing in {self.target} in it to score against; name another one (data.test)")
        if stage == "predict" or self.scored_test:
            self.test_bitext, self.test_first = bitext, lines.first
            self.test_lines = dict(enumerate(zip(lines.en, lines.zh, strict=True)))

    def _open_test(self, bitext: Bitext) -> None:
        pairs = clean_pairs([bitext], keep_all=True)
        self._report_script(pairs, [bitext])
        self.test_corpus = encode_pairs([pairs], self.tokenizer)
        lengths = self.test_corpus.lengths
        sides = (0, 1) if self.scored_test else (SIDES.index(self.source),)
        for side in sides:
            if len(long := np.flatnonzero(lengths[:, side] > self.max_length)):
                where = f"{bitext[side]}, line {long[0] + self.test_first}{and_more(long)}"
                rank_zero_warn(f"{where}: {lengths[long[0], side]} tokens, cut to data.max_length = {self.max_length}")

    def _open_train(self, folder: Path, known: Facts | None, stage: str) -> None:
        names = self.pair_files or [n for n in TRAIN if find_bitext(folder, n).files][:1]
        if not names:
            there = ", ".join(_tables(folder))
            raise DataError(
                f"{folder}: no {TRAIN[0]}.en or {TRAIN[1]}.en to train on here; name other pairs with data.pairs"
                f"{there and f' (there are {there})'}"
            )
        self.bitexts = [self._pairs(folder, name, "data.pairs") for name in names]
        self.real = clean_pairs(self.bitexts)
        self._report_script(self.real, self.bitexts)
        if not len(self.real):
            why = describe.dropped(self.real.counts)
            raise DataError(f"{self.bitexts[0]}: no pairs left of {self.real.counts[:, 0].sum()}: {why}")
        self.folds_of_rows = self._cut()
        if not (self.folds_of_rows != self.fold).any():
            raise DataError(
                f"{self.bitexts[0]}: all {len(self.real)} pairs share a sentence, none is left to train on; pairs that "
                "share one are held out together (data.folds), so add others"
            )
        if known is not None:
            self.tokenizer = Tokenizer.from_tensor(known["tokenizer"])
        else:
            rows = np.flatnonzero(self.folds_of_rows != self.fold)
            self.tokenizer = trained_tokenizer(self.real, rows, self.vocabulary, self.seed)
        parts = [self.real]
        if self.synthetic_file is not None:
            bitext = self._pairs(folder, self.synthetic_file, "data.synthetic")
            self.synthetic = clean_pairs([bitext])
            self._report_script(self.synthetic, [bitext])
            parts.append(self.synthetic)
        self.corpus = encode_pairs(parts, self.tokenizer)
        self.leaks = self._find_leaks()
        train, val = self.chosen_folds()[0]
        if not len(train) or not len(val):
            raise DataError(
                f"{self.bitexts[0]}: {len(self.real)} pairs leave {len(train)} to train on and {len(val)} held out "
                f"(data.folds = {self.n_folds}, data.max_length = {self.max_length})"
            )
        if not len(self.train_rows()):
            raise DataError(f"{self.synthetic_file}: no pairs left to train on: {self._synthetic_summary()}")
        self.facts = {
            "tokenizer": self.tokenizer.as_tensor(),
            "vocabulary": len(self.tokenizer),
            "pad": PAD, "unk": UNK, "bos": BOS, "eos": EOS,
            "source": self.source,
            "target": self.target,
            "max_length": self.max_length,
            "held_out": self.held_out(f"{self.bitexts[b].files[0].name}:{line}" for b, line in self.real.place[val]),
        }  # fmt: skip

    def _report_script(self, pairs: CleanPairs, bitexts: Sequence[Bitext]) -> None:
        for number in np.flatnonzero(pairs.simplified).tolist():
            rank_zero_warn(
                f"{bitexts[number].zh}: its Chinese is Simplified, the course's is Traditional; convert it (OpenCC, "
                "s2tw) where both are to be mixed or compared"
            )

    # rows

    def _cut(self) -> np.ndarray:
        """The fold of each real pair, (N,): pairs that share a sentence are in one."""
        count = len(self.real)
        sides = [np.unique(column, return_inverse=True)[1] for column in self.real.hashes.T]
        english = int(sides[0].max()) + 1
        size = english + int(sides[1].max()) + 1
        graph = coo_array((np.ones(count, bool), (sides[0], english + sides[1])), shape=(size, size))
        group = connected_components(graph, directed=False)[1][sides[0]]
        sizes = np.bincount(group)
        order = np.random.default_rng(self.seed).permutation(len(sizes))
        fold = np.empty(len(sizes), np.int64)
        before = np.cumsum(sizes[order]) - sizes[order]
        fold[order] = before * self.n_folds // count
        return fold[group]

    def _fold(self, number: int) -> Fold:
        rows = np.flatnonzero(self._usable()[: len(self.real)])
        held = self.folds_of_rows[rows] == number
        return Fold(rows[~held], rows[held])

    def _usable(self) -> np.ndarray:
        """Which pairs of the corpus are short enough, (N,) bool."""
        return self._lengths().max(1) <= self.max_length

    def _lengths(self) -> np.ndarray:
        """Tokens of both sides of each pair of the corpus, with eos and tag, (N, 2)."""
        lengths = self.corpus.lengths
        if self.tag:
            lengths[len(self.real) :, SIDES.index(self.source)] += 1
        return lengths

    def split(self) -> list[Fold]:
        """Rows of real pairs, all of a sentence on one side."""
        return [self._fold(number) for number in range(self.n_folds)]

    def chosen_folds(self) -> list[Fold]:
        """The fold of this run alone: all 100 would fill memory."""
        assert self.fold is not None
        return [self._fold(self.fold)]

    def train_rows(self) -> np.ndarray:
        """Rows of an epoch: real pairs and their share of synthetic ones, none with a sentence that is held out."""
        train = self.chosen_folds()[0].train
        if self.synthetic is None:
            return train
        rows = len(self.real) + np.flatnonzero(~self.leaks & self._usable()[len(self.real) :])
        if self.synthetic_only:
            return rows
        if self.synthetic_ratio is not None and len(rows):
            order = np.random.default_rng((self.seed, 1)).permutation(rows)
            rows = np.resize(order, round(self.synthetic_ratio * len(train)))
        return np.concatenate([train, rows])

    def _find_leaks(self) -> np.ndarray:
        """See `leaks`. Pieces are compared, not text: what a model says is in lower case, as the tokenizer has it."""
        tokens, ends = np.asarray(self.corpus.tokens), self.corpus.offsets

        def sides(row: int) -> list[bytes]:
            return [tokens[start:end].tobytes() for start, end in pairwise(ends[2 * row : 2 * row + 3].tolist())]

        held = {side for row in np.flatnonzero(self.folds_of_rows == self.fold).tolist() for side in sides(row)}
        synthetic = range(len(self.real), len(self.corpus))
        return np.array([not held.isdisjoint(sides(row)) for row in synthetic], bool)

    def raw_lines(self, rows: np.ndarray) -> dict[int, tuple[str, str]]:
        """English and Chinese of real pairs as they stand in their files."""
        lines: dict[int, tuple[str, str]] = {}
        place = self.real.place[rows]
        for number, bitext in enumerate(self.bitexts):
            en, zh, _ = read_bitext(bitext)
            chosen = place[:, 0] == number
            lines |= {row: (en[n], zh[n]) for row, n in zip(rows[chosen].tolist(), place[chosen, 1], strict=True)}
        return lines

    # loaders

    def _data(self, corpus: TokenCorpus, tagged: int | None = None) -> Pairs:
        tag = self.tokenizer.tag
        return Pairs(corpus, SIDES.index(self.source), self.max_length, self._multiple, tagged, tag)

    @property
    def _multiple(self) -> int:
        return self.multiple or (GPU_MULTIPLE if self.on_gpu else 1)

    def _padded(self, lengths: np.ndarray) -> np.ndarray:
        return -(-lengths // self._multiple) * self._multiple

    def train_dataloader(self) -> DataLoader:
        """Pairs in batches of like length: source (B, S), target (B, T), row (B,)."""
        rank, world = self.rank()
        rows = self.train_rows()
        sampler = LengthBucketSampler(
            rows, self._padded(self._lengths()[rows]), self.max_tokens, self.seed, rank, world
        )
        tagged = len(self.real) if self.tag and self.synthetic is not None else None
        data = self._data(self.corpus, tagged)
        return ResumableLoader(data, sampler, **self.loading(self.workers))

    def val_dataloader(self) -> DataLoader:
        """The held-out pairs, with the lines they are compared with; quick marks the fixed subset."""
        val = self.chosen_folds()[0].val
        noise = np.random.default_rng((self.seed, 2))
        quick = noise.choice(val, min(self.quick, len(val)), replace=False)
        data = JudgedPairs(self._data(self.corpus), self.tokenizer, self.raw_lines(val), quick)
        return self._judged(data, self.corpus, val)

    def test_dataloader(self) -> DataLoader:
        """The test pairs where their translations are known, else those held out."""
        if not self.scored_test:
            return self.val_dataloader()
        rows = np.arange(len(self.test_corpus))
        data = JudgedPairs(self._data(self.test_corpus), self.tokenizer, self.test_lines, rows)
        return self._judged(data, self.test_corpus, rows)

    def predict_dataloader(self) -> DataLoader:
        """All test sentences: source (B, S), row (B,)."""
        return self._judged(Sources(self._data(self.test_corpus)), self.test_corpus, np.arange(len(self.test_corpus)))

    def _judged(self, data: Dataset, corpus: TokenCorpus, chosen: np.ndarray) -> DataLoader:
        """Every one of the chosen pairs once, shared out over ranks."""
        rank, world = self.rank()
        if len(chosen) < world:  # a rank without any would let the others wait for it
            raise DataError(f"{len(chosen)} pairs to judge cannot be shared out over {world} processes; start fewer")
        chosen = chosen[rank::world]
        buckets = length_buckets(self._padded(np.minimum(corpus.lengths[chosen], self.max_length)), JUDGED)
        batches = [torch.from_numpy(np.sort(chosen[b])) for b in buckets]
        return DataLoader(data, sampler=batches, batch_size=None, **self.loading(0))

    # results

    def labels(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """file:number of the pair and reference of real pairs."""
        side = SIDES.index(self.target)
        names = [f"{self.bitexts[b].files[0].name}:{line + 1}" for b, line in self.real.place[rows]]
        found = self.tokenizer.decode([self.corpus.ids(int(row), side) for row in rows])
        return names, np.array(found, object)

    @staticmethod
    def score(true: np.ndarray, predicted: np.ndarray) -> float:
        """BLEU over all sentences, with the tokenizer of the language they are in."""
        chinese = any("\u4e00" <= character <= "\u9fff" for line in true for character in line)
        tokenizer = "zh" if chinese else "13a"
        return sacrebleu.corpus_bleu(list(predicted), [list(true)], tokenize=tokenizer).score

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        if self.scored_test:
            return f"{len(self.test_lines)} test sentences whose translations are known ({self.test_bitext})"
        return "held-out pairs (they also chose the best checkpoint: slightly optimistic)"

    def baselines(self) -> list[course.Baselines]:
        """The course's baselines of the editions that have so many pairs; they are for Chinese."""
        count = int(self.real.counts[:, 0].sum()) if self.bitexts and self.target == "zh" else 0
        return course.baselines_of(self.homework, count)

    def details(self) -> list[str]:
        """Tokens, batches and lengths of the pairs."""
        lengths, loader = self._lengths()[self.train_rows()], self.train_dataloader()
        cells = [len(batch["row"]) * (batch["source"].shape[1] + batch["target"].shape[1]) for batch in loader]
        spelled = self.corpus.count(self.tokenizer.is_byte) / len(self.corpus.tokens)
        return [
            f"characters unknown to the tokenizer: {spelled:.3%} of the tokens are bytes that spell them",
            *describe.batches(lengths, cells, self.max_tokens, SIDES),
        ]

    def summary(self) -> list[str]:
        """What is trained on, and what was left out, in words."""
        train, val = self.chosen_folds()[0]
        long = int((~self._usable()[: len(self.real)]).sum())
        count = 0 if self.synthetic_only else len(train)
        lines = [
            f"{self.locate()}: {count:,} pairs to train on, {len(val):,} held out, {len(self.tokenizer):,} pieces",
            f"left out of {self.real.counts[:, 0].sum():,}: {describe.dropped(self.real.counts)}"
            f"{self._first_dropped()}, {long:,} of more than data.max_length = {self.max_length} tokens",
        ]
        used = {path.name for bitext in self.bitexts for path in bitext.files}
        unused = Account("tables of pairs in the folder", len(used & {*_tables(self.locate())}))
        unused.leave("not named; with data.pairs they are read", [n for n in _tables(self.locate()) if n not in used])
        if unused.left:
            lines.append(str(unused))
        if self.synthetic is not None:
            lines.append(f"and {self._synthetic_summary()}")
        return lines

    def _first_dropped(self) -> str:
        """Where the first pair lies that cleaning left out, in brackets."""
        for number, bitext in enumerate(self.bitexts):
            kept = self.real.place[self.real.place[:, 0] == number, 1]
            if len(kept) < self.real.counts[number, 0]:
                shifted = np.flatnonzero(kept != np.arange(len(kept)))
                first = int(shifted[0]) if len(shifted) else len(kept)
                return f" (first: {bitext.files[0].name}, pair {first + 1})"
        return ""

    def _synthetic_summary(self) -> str:
        assert self.synthetic is not None
        count = (self.train_rows() >= len(self.real)).sum()
        return (
            f"{count:,} synthetic pairs of {self.synthetic.counts[0, 0]:,} ({self.leaks.sum():,} left out, as a "
            "sentence of theirs is held out)"
        )


def _tables(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tsv*") if path.name.endswith(TABLES))
