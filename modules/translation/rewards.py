"""BLEU and chrF of single sentences as rewards, counted by sacrebleu (Post 2018, arXiv 1804.08771)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor

Score = Literal["bleu", "chrf"]


class SentenceReward:
    """Scores from 0 to 1 of several outputs for each sentence, whose reference is taken apart only once.

    bleu is `sacrebleu.sentence_bleu(output, [reference], tokenize=...).score / 100`: n-grams up to the longest that the
    output has (at most 4), and the k-th order without a match counts as 1 / 2^k matches (smoothing "exp", Chen and
    Cherry 2014, method 3). chrf is `sacrebleu.sentence_chrf(output, [reference]).score / 100`.

    Args:
        kind: bleu (Papineni et al. 2002) or chrf (Popović 2015).
        language: Of the text; decides how BLEU finds words: single characters in Chinese.
    """

    def __init__(self, kind: Score, language: str) -> None:
        tokens = "zh" if language == "zh" else "13a"
        self.judge: Any = CHRF() if kind == "chrf" else BLEU(tokenize=tokens, effective_order=True)

    def __call__(self, outputs: Sequence[Sequence[str]], references: Sequence[str]) -> Tensor:
        """n outputs and a reference for each of B sentences -> (B, n) in float32."""
        return torch.tensor([self._scores(*pair) for pair in zip(outputs, references, strict=True)])

    def _scores(self, outputs: Sequence[str], reference: str) -> list[float]:
        """As `Metric.sentence_score` of sacrebleu does it for each output."""
        judge = self.judge
        known = judge._extract_reference_info([judge._preprocess_segment(reference)])
        found: dict[str, float] = {}  # samples of a sure network repeat themselves
        for output in set(outputs):
            counts = judge._compute_segment_statistics(judge._preprocess_segment(output), known)
            found[output] = judge._compute_score_from_stats(counts).score / 100
        return [found[output] for output in outputs]
