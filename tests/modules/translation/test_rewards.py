"""Rewards are sacrebleu's scores of sentences, to the last bit."""

import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.translation.rewards import SentenceReward

TEXTS = st.one_of(st.text("我你他很愛貓狗。, ab1.5-&", max_size=14), st.text(max_size=8))
GROUPS = st.lists(st.tuples(st.lists(TEXTS, min_size=3, max_size=3), TEXTS), min_size=1, max_size=4)


def expected(kind, language, output, reference):
    if kind == "chrf":
        return sacrebleu.sentence_chrf(output, [reference]).score / 100
    return sacrebleu.sentence_bleu(output, [reference], tokenize={"zh": "zh", "en": "13a"}[language]).score / 100


@settings(max_examples=60)
@given(GROUPS, st.sampled_from(["bleu", "chrf"]), st.sampled_from(["zh", "en"]))
def test_equals_sacrebleu_for_every_output(groups, kind, language):
    outputs, references = ([*said, said[0], reference] for said, reference in groups), [r for _, r in groups]
    outputs = list(outputs)
    found = SentenceReward(kind, language)(outputs, references)
    wanted = [
        [expected(kind, language, one, reference) for one in said]
        for said, reference in zip(outputs, references, strict=True)
    ]
    assert torch.equal(found, torch.tensor(wanted))


def test_a_perfect_output_earns_1_and_nothing_in_common_0():
    for kind in ("bleu", "chrf"):
        found = SentenceReward(kind, "zh")([["我 很 愛 貓 。", "狗", ""]], ["我 很 愛 貓 。"])
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0]]))
