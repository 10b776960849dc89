"""Datasets of sentence pairs, and of sentences to be translated."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.text.corpus import TokenCorpus
from datamodules.text.tokenizer import PAD, Tokenizer


def pair_batch(source: Tensor, target: Tensor, rows: Tensor) -> dict[str, Any]:
    """What a translator trains on, from padded tokens (B, S) and (B, T) and the numbers of their rows (B,).

    Returns:
        source, target and row as they came; places (n,), the n tokens of the targets as numbers into the flattened
        (B, T); lengths, two lists of B numbers, the tokens of each source and of each target, eos among them. Lists
        stay on the host, so that nobody waits for the device to learn them.
    """
    there = target != PAD
    return {
        "source": source,
        "target": target,
        "row": rows,
        "places": there.flatten().nonzero().squeeze(1),
        "lengths": [(source != PAD).sum(1).tolist(), there.sum(1).tolist()],
    }


class Pairs(Dataset):
    """Padded batches of pairs (`pair_batch`), all int64; tokens end in eos and then 0.

    Args:
        corpus: All pairs.
        source: 0 where English is the source, 1 where it is Chinese.
        longest: Tokens of a sentence, with eos; longer ones are cut.
        multiple: Of S and T.
        tagged: Pairs from this row on have `tag` before their source; None: none.
        tag: Number of its piece.
    """

    def __init__(
        self, corpus: TokenCorpus, source: int, longest: int, multiple: int, tagged: int | None = None, tag: int = PAD
    ) -> None:
        self.corpus, self.source, self.longest, self.multiple = corpus, source, longest, multiple
        self.tagged, self.tag = tagged, tag

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        index = rows.numpy()
        first = None if self.tagged is None else np.where(index >= self.tagged, self.tag, PAD)
        source = self.corpus.padded(index, self.source, self.longest, self.multiple, first)
        return pair_batch(source, self.corpus.padded(index, 1 - self.source, self.longest, self.multiple), rows)


class JudgedPairs(Dataset):
    """The same with what is compared: lists of strings text, reference and raw_reference, and quick (B,) bool.

    text and raw_reference are lines as in the file; reference is the cleaned line as the tokenizer gives it back, which
    is what the course's code measures against.
    """

    def __init__(
        self, pairs: Pairs, tokenizer: Tokenizer, lines: dict[int, tuple[str, str]], quick: np.ndarray
    ) -> None:
        self.pairs, self.tokenizer, self.lines, self.quick = pairs, tokenizer, lines, quick

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        numbers = rows.tolist()
        side = self.pairs.source
        return self.pairs[rows] | {
            "quick": torch.from_numpy(np.isin(rows.numpy(), self.quick)),
            "text": [self.lines[row][side] for row in numbers],
            "raw_reference": [self.lines[row][1 - side] for row in numbers],
            "reference": self.tokenizer.decode([self.pairs.corpus.ids(row, 1 - side) for row in numbers]),
        }


class Sources(Dataset):
    """Batches to translate: source (B, S) and row (B,)."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        pairs = self.pairs
        return {"source": pairs.corpus.padded(rows.numpy(), pairs.source, pairs.longest, pairs.multiple), "row": rows}
