"""BLEU and chrF of a whole set, over batches and ranks, judged by sacrebleu (Post 2018, arXiv 1804.08771)."""

from collections.abc import Sequence
from typing import Literal

import torch
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor
from torchmetrics import Metric


class CorpusScore(Metric):
    """sacrebleu's corpus score, 0 to 100; batches and ranks add up the counts of n-grams and lengths it is made of.

    Args:
        kind: bleu (Papineni et al. 2002) or chrf (Popović 2015).
        language: Of the text; decides how BLEU finds words (single characters in Chinese), and that case does not
            count in English, as the tokenizer folds it.
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, kind: Literal["bleu", "chrf"], language: str) -> None:
        super().__init__()
        folds = language == "en"
        tokenizer = "zh" if language == "zh" else "13a"
        # force: cleaned sentences end in " ." by intent, of which sacrebleu would warn at every validation
        self.judge = CHRF(lowercase=folds) if kind == "chrf" else BLEU(lowercase=folds, force=True, tokenize=tokenizer)
        width = len(self._statistics([""], [""])[0])
        self.add_state("counts", torch.zeros(width, dtype=torch.int64), dist_reduce_fx="sum")

    def _statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
        return self.judge._extract_corpus_statistics(list(hypotheses), [list(references)])

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """One reference a hypothesis."""
        if hypotheses:
            self.counts += torch.tensor(self._statistics(hypotheses, references), device=self.counts.device).sum(0)

    def compute(self) -> Tensor:
        """The score of all that was seen, ()."""
        counts = [int(count) for count in self.counts.tolist()]
        return torch.tensor(self.judge._compute_score_from_stats(counts).score, device=self.counts.device)

    @property
    def signature(self) -> str:
        """What sacrebleu wants to be told beside its score: tokenizer, smoothing, version."""
        return str(self.judge.get_signature())
