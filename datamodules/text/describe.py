"""Counts, lengths and batches of sentence pairs in words, for the log and `leeml data describe`."""

from collections.abc import Sequence

import numpy as np

from datamodules.text.cleaning import Language

BARS = 12  # of the histogram, and one for the longest hundredth


def dropped(counts: np.ndarray) -> str:
    """What cleaning left out.

    Args:
        counts: Of each bitext, (B, 4): all pairs, and those dropped as empty, too long, and of unlike sides.
    """
    empty, long, ratio = (f"{count:,}" for count in counts[:, 1:].sum(0).tolist())
    return f"{empty} with an empty side, {long} too long to clean, {ratio} with one side 9 times as long"


def batches(lengths: np.ndarray, cells: Sequence[int], max_tokens: int, sides: Sequence[Language]) -> list[str]:
    """Tokens of each language, batches and padding, and a histogram of the lengths.

    Args:
        lengths: Tokens of both sides of each pair with eos, (N, 2).
        cells: Tokens of each batch, padding among them, both sides together.
        max_tokens: Of a batch, at most.
        sides: Languages of the two sides.
    """
    full, padding = lengths.sum() / len(cells), 1 - lengths.sum() / sum(cells)
    return [
        *(
            f"{language}: {lengths[:, side].sum():,} tokens with eos, {lengths[:, side].mean():.1f} a sentence, "
            f"{lengths[:, side].max()} in the longest"
            for side, language in enumerate(sides)
        ),
        f"{len(cells):,} batches of up to data.max_tokens = {max_tokens:,}: {full:,.0f} tokens of both sides "
        f"in each, {padding:.1%} padding",
        "pairs by tokens of the longer side:",
        *histogram(lengths.max(1)),
    ]


def histogram(lengths: np.ndarray) -> list[str]:
    """Bars in text of lengths (N,); the last one holds the longest hundredth."""
    width = -(-int(np.quantile(lengths, 0.99)) // BARS)
    counts = np.bincount(np.minimum((lengths - 1) // width, BARS))
    spans = [f"{n * width + 1} to {(n + 1) * width}" for n in range(BARS)] + [f"{BARS * width + 1} or more"]
    return [
        f"  {span:<11} {'#' * round(50 * count / counts.max()):<50} {count:,}"
        for span, count in zip(spans, counts.tolist(), strict=False)
    ]
