"""Corpus scores over batches and ranks equal sacrebleu's over the whole."""

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from modules.translation.scores import CorpusScore

LINES = st.lists(st.tuples(*[st.text("我你他很愛貓狗。 ,abAB", max_size=12)] * 2), min_size=1, max_size=8)


@settings(max_examples=40)
@given(LINES, st.integers(1, 8), st.sampled_from(["zh", "en"]))
def test_batches_and_ranks_add_up_to_sacrebleu(pairs, size, language):
    said, references = (list(side) for side in zip(*pairs, strict=True))
    english = language == "en"
    expected = {
        "bleu": sacrebleu.corpus_bleu(said, [references], tokenize="13a" if english else "zh", lowercase=english).score,
        "chrf": CHRF(lowercase=english).corpus_score(said, [references]).score,
    }
    for kind, score in expected.items():
        ranks = [CorpusScore(kind, language) for _ in range(2)]
        for number, start in enumerate(range(0, len(said), size)):
            part = slice(start, start + size)
            ranks[number % 2].update(said[part], references[part])
        ranks[0].counts += ranks[1].counts  # what the reduction over ranks does
        assert float(ranks[0].compute()) == pytest.approx(score, abs=1e-4)


def test_nothing_seen_is_zero_and_the_signature_names_the_tokenizer():
    score = CorpusScore("bleu", "zh")
    assert float(score.compute()) == 0
    assert "tok:zh" in score.signature
    assert score.counts.dtype is torch.int64


def test_cleaned_sentences_earn_no_warning(caplog):
    lines = [f"this is sentence {n} ." for n in range(200)]
    score = CorpusScore("bleu", "en")
    score.update(lines, lines)
    assert float(score.compute()) == pytest.approx(100)
    assert not caplog.records
