"""Cleaned sentence pairs and the tokens of all of them end to end in one memory map; made once, found by content."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.files.cache import content_digests, digest, make_once
from datamodules.files.places import cache_folder
from datamodules.files.progress import progress
from datamodules.text.bitext import Bitext, read_bitext
from datamodules.text.cleaning import VERSION, clean_en, clean_zh, is_simplified, why_dropped
from datamodules.text.tokenizer import EOS, PAD, Tokenizer, train_tokenizer

FORMAT = 1  # of the files in the cache; another number makes them all again
CHUNK = 50_000  # sentences encoded at once
LONGEST = 100_000  # characters of a sentence to be translated; longer ones for training are dropped anyway
REASONS = ("empty", "long", "ratio")  # why_dropped


class CleanPairs(NamedTuple):
    """The pairs that cleaning keeps, N of those in F bitexts.

    place: (N, 2) number of the bitext and of the pair in it, both from 0.
    hashes: (N, 2) uint64, of the English and the Chinese sentence: the same for the same sentence.
    counts: (F, 4) pairs read, and of them dropped for each of REASONS.
    simplified: (F,) bool, whether the Chinese is mostly in Simplified script.
    path: Where all this and the text lie.
    """

    place: np.ndarray
    hashes: np.ndarray
    counts: np.ndarray
    simplified: np.ndarray
    path: Path

    def __len__(self) -> int:
        return len(self.place)

    def text(self) -> list[str]:
        """English and Chinese sentences in turn, 2 N of them."""
        with np.load(self.path) as file:
            return file["text"].tobytes().decode().split("\n")[:-1]


def text_folder() -> Path:
    """Where cleaned text, tokenizers and tokens are kept."""
    return cache_folder() / "text"


def clean_pairs(bitexts: Sequence[Bitext], keep_all: bool = False) -> CleanPairs:
    """Cleaned pairs of the files; read only where the same contents have not been read before.

    Args:
        bitexts: At least one.
        keep_all: Drop nothing, as of a test set.

    Raises:
        DataError: see `read_bitext`.
        OSError: a file cannot be read, or the cache not be written; `filename` says which.
    """
    folder = text_folder()
    folder.mkdir(parents=True, exist_ok=True)
    names = [os.path.abspath(path) for bitext in bitexts for path in bitext.files]
    contents = dict(zip(names, content_digests(folder, names), strict=True))
    sides = [contents[os.path.abspath(path)] if path else "" for bitext in bitexts for path in bitext]
    tables = [str(bitext.en == bitext.zh) for bitext in bitexts]
    target = folder / f"pairs-{digest([str(FORMAT), str(VERSION), str(keep_all), *sides, *tables])}.npz"
    make_once(target, lambda part: _clean(part, bitexts, keep_all))
    with np.load(target) as file:
        return CleanPairs(file["place"], file["hashes"], file["counts"], file["simplified"], target)


def _clean(part: Path, bitexts: Sequence[Bitext], keep_all: bool) -> None:
    place: list[tuple[int, int]] = []
    hashes: list[bytes] = []
    counts = np.zeros((len(bitexts), 1 + len(REASONS)), np.int64)
    simplified = np.zeros(len(bitexts), bool)
    text = bytearray()
    for number, bitext in enumerate(bitexts):
        english, chinese, _ = read_bitext(bitext)
        counts[number, 0] = len(english)
        simplified[number] = is_simplified(chinese)
        bar = progress("cleaning", zip(english, chinese, strict=True), len(english))
        for line, (en, zh) in enumerate(bar):
            if keep_all and (length := max(len(en), len(zh))) > LONGEST:
                raise DataError(
                    f"{bitext}: pair {line + 1} has a sentence of {length:,} characters, at most {LONGEST:,} are "
                    "translated; cut it into sentences"
                )
            en, zh = clean_en(en), clean_zh(zh)
            if not keep_all and (reason := why_dropped(en, zh)):
                counts[number, 1 + REASONS.index(reason)] += 1
                continue
            place.append((number, line))
            for sentence in (en.encode(), zh.encode()):
                hashes.append(hashlib.blake2b(sentence, digest_size=8).digest())
                text += sentence + b"\n"
    with part.open("wb") as file:
        np.savez(
            file, place=np.array(place, np.int64).reshape(-1, 2), counts=counts, simplified=simplified,
            hashes=np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2), text=np.frombuffer(text, np.uint8),
        )  # fmt: skip


def trained_tokenizer(pairs: CleanPairs, rows: np.ndarray, vocabulary: int, seed: int) -> Tokenizer:
    """The tokenizer of both sides of some of the pairs, trained only where it was not before."""
    key = [str(FORMAT), pairs.path.name, digest([rows.tobytes().hex()]), str(vocabulary), str(seed)]
    target = text_folder() / f"{digest(key)}.model"

    def make(part: Path) -> None:
        text = pairs.text()
        sentences = (text[2 * row + side] for row in rows.tolist() for side in (0, 1))
        what = f"training the tokenizer on {len(rows):,} pairs (a minute for 400,000)"
        with progress(what, bar_format="{desc}"):  # SentencePiece does not say how far it is
            part.write_bytes(train_tokenizer(sentences, vocabulary, seed))

    return Tokenizer(make_once(target, make).read_bytes())


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Sentence s is tokens[offsets[s] : offsets[s + 1]]; of pair p, s is 2 p in English and 2 p + 1 in Chinese.

    tokens: (K,) uint16, or uint32 for more than 65,536 pieces. offsets: (2 N + 1,) int64. A copy in another process
    opens the map again.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    path: Path

    def __len__(self) -> int:
        return len(self.offsets) // 2

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path,)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the English and the Chinese side of each pair with their eos, (N, 2) int64."""
        return np.diff(self.offsets).reshape(-1, 2) + 1

    def count(self, chosen: np.ndarray) -> int:
        """How many of all tokens are of the pieces that are True, (V,) bool."""
        return int(np.bincount(self.tokens, minlength=len(chosen))[chosen].sum())

    def ids(self, row: int, side: int) -> list[int]:
        """Tokens of one side of a pair, without eos."""
        start, end = self.offsets[2 * row + side :][:2].tolist()
        return self.tokens[start:end].tolist()

    def padded(
        self, rows: np.ndarray, side: int, longest: int, multiple: int = 1, first: np.ndarray | None = None
    ) -> Tensor:
        """Tokens and eos of one side of the pairs, (B, T) int64, padded to a multiple.

        Args:
            rows: Of the pairs, (B,).
            side: 0 for English, 1 for Chinese.
            longest: Tokens with eos to which a sentence is cut.
            multiple: Of T.
            first: A token to begin with, (B,), or PAD where there is none.
        """
        sentence = 2 * rows + side
        start = self.offsets[sentence]
        shift = np.zeros(len(rows), np.int64) if first is None else (first != PAD).astype(np.int64)
        length = np.minimum(self.offsets[sentence + 1] - start + shift, longest - 1)
        width = -(-(int(length.max()) + 1) // multiple) * multiple
        place = np.arange(width)
        index = (start - shift)[:, None] + place
        inside = place < length[:, None]
        inside[:, 0] &= shift == 0
        padded = np.full(index.shape, PAD, np.int64)
        padded[inside] = self.tokens[index[inside]]
        padded[np.arange(len(rows)), length] = EOS
        if first is not None:
            padded[shift == 1, 0] = first[shift == 1]
        return torch.from_numpy(padded)


def encode_pairs(parts: Sequence[CleanPairs], tokenizer: Tokenizer) -> TokenCorpus:
    """Tokens of all pairs, part after part; encoded only where the same text was not with the same tokenizer."""
    model = hashlib.blake2b(tokenizer.model, digest_size=16).hexdigest()
    key = [str(FORMAT), model, *(part.path.name for part in parts)]
    target = text_folder() / f"tokens-{digest(key)}.npy"
    return _open(make_once(target, lambda part: _encode(part, parts, tokenizer)))


def _encode(path: Path, parts: Sequence[CleanPairs], tokenizer: Tokenizer) -> None:
    kind = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    lengths = np.zeros(1 + 2 * sum(map(len, parts)), np.int64)
    with path.open("wb") as file, progress("encoding", total=len(lengths) - 1) as bar:
        _write_header(file, 0, kind)
        for sentences in _chunks(parts):
            ids = tokenizer.encode(sentences, threads=os.cpu_count() or 1)
            lengths[bar.n + 1 : bar.n + 1 + len(ids)] = [len(sentence) for sentence in ids]
            file.write(np.concatenate([np.array(sentence, kind) for sentence in ids]).data)
            bar.update(len(ids))
        np.save(file, np.cumsum(lengths))  # behind the tokens, where np.load does not look
        file.seek(0)
        _write_header(file, int(lengths.sum()), kind)  # NumPy leaves room in it for any number


def _chunks(parts: Sequence[CleanPairs]) -> Iterator[list[str]]:
    for part in parts:
        text = part.text()
        yield from (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))


def _write_header(file: BinaryIO, count: int, kind: np.dtype) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": (count,)})


def _open(path: Path) -> TokenCorpus:
    tokens = np.load(path, mmap_mode="r")
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        file.seek(tokens.nbytes, os.SEEK_CUR)
        return TokenCorpus(tokens, np.load(file), path)
