"""Translations against all sequences one by one, and searches against the same rules in plain Python."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn

from modules.nets.attention import padding_mask
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import Memory, Seq2Seq, TransformerSeq2Seq
from modules.translation.search import Ends, beam_search, draw_outputs, greedy

PAD, BOS, EOS = 0, 2, 3
V = 6  # words: 1, 4 and 5
ENDS = Ends(PAD, BOS, EOS, ratio=0.5, extra=1.0)  # sources of 1 to 4 tokens have up to 1, 2, 2, 3 words


KINDS = {
    "transformer": lambda: TransformerSeq2Seq(V, 8, 2, 12, 2, routing="same"),
    "pre-norm": lambda: TransformerSeq2Seq(V, 8, 2, 12, 1, norm="pre", positions="learned", max_length=30),
    "gru": lambda: RecurrentSeq2Seq(V, 6, 4, 2),
}
TEAMS = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=2)
LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**20)
PENALTIES = st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0])


def a_team(kinds, seed):
    """Translators with random weights, strong enough to prefer some words."""
    torch.manual_seed(seed)
    nets = [KINDS[kind]().eval() for kind in kinds]
    for net in nets:
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.6)
    return nets


def sources(lengths):
    mask = padding_mask(torch.tensor(lengths), max(lengths))
    return torch.randint(4, V, mask.shape).where(mask, PAD), mask


def log_probabilities(nets, source, words):
    """Of all that may follow each of BOS and words, (T + 1, V), for an unpadded source (S,): one full pass."""
    with torch.no_grad():
        logits = [net(source[None], torch.tensor([[BOS, *words]]))[0].double() for net in nets]
    return torch.stack([one.softmax(1) for one in logits]).mean(0).log()


def score(nets, source, words, penalty=0.0):
    logs = log_probabilities(nets, source, words)
    return sum(logs[t, word].item() for t, word in enumerate([*words, EOS])) / (len(words) + 1) ** penalty


def all_outputs(limit, words=(1, 4, 5)):
    return itertools.chain.from_iterable(itertools.product(words, repeat=n) for n in range(limit))


def clearly_ranked(scores):
    """What float32 cannot tell apart may be ranked either way: such an example shows nothing."""
    assume(all(a - b > 1e-4 for a, b in itertools.pairwise(scores)))


def plain_beam(nets, source, limit, width, penalty):
    """What `beam_search` says that it does, for one sentence and without tensors."""
    beams, done = [((), 0.0)], []
    for length in range(1, limit + 1):
        candidates = []
        for words, total in beams:
            logs = log_probabilities(nets, source, words)[-1].tolist()
            for word in (EOS,) if length == limit else (1, EOS, 4, 5):
                candidates.append((total + logs[word], (*words, word)))
        candidates.sort(reverse=True)
        clearly_ranked([total for total, _ in candidates])
        done += [(total / length**penalty, words[:-1]) for total, words in candidates[:width] if words[-1] == EOS]
        if len(done) >= width:
            break
        beams = [(words, total) for total, words in candidates if words[-1] != EOS][:width]
    return sorted(done, reverse=True)


def assert_same(found, expected):
    """Two lists of hypotheses for each sentence."""
    assert [[list(h[0]) for h in group] for group in found] == [[list(h[0]) for h in group] for group in expected]
    for group, other in zip(found, expected, strict=True):
        assert [h[1] for h in group] == pytest.approx(
            [h[1] for h in other], rel=1e-5, abs=1e-5
        )  # float32, sums of up to 100


@settings(max_examples=25)
@given(TEAMS, LENGTHS, PENALTIES, SEEDS)
def test_a_beam_of_all_sequences_finds_the_best_of_them(kinds, lengths, penalty, seed):
    nets = a_team(kinds, seed)
    source, mask = sources(lengths)
    found = beam_search(nets, source, mask, ENDS, width=40, n_best=40, penalty=penalty)
    for group, row, n in zip(found, source, lengths, strict=True):
        limit = int(0.5 * n + 1.0) + 1
        expected = [(words, score(nets, row[:n], words, penalty)) for words in all_outputs(limit)]
        expected.sort(key=lambda hypothesis: -hypothesis[1])
        clearly_ranked([total for _, total in expected])
        assert len(group) == len(expected)
        assert_same([group], [expected])


@settings(max_examples=25)
@given(TEAMS, LENGTHS, st.integers(1, 4), PENALTIES, SEEDS)
def test_a_narrow_beam_over_a_batch_does_as_told_for_each_sentence(kinds, lengths, width, penalty, seed):
    nets = a_team(kinds, seed)
    source, mask = sources(lengths)
    ends = Ends(PAD, BOS, EOS, 1.2, 2.0)
    found = beam_search(nets, source, mask, ends, width, width, penalty)
    plain = []
    for row, n in zip(source, lengths, strict=True):
        done = plain_beam(nets, row[:n], int(1.2 * n + 2.0) + 1, width, penalty)
        clearly_ranked([total for total, _ in done])
        plain.append([(words, total) for total, words in done[:width]])
    assert_same(found, plain)
    assert all(len({tuple(h.tokens) for h in group}) == len(group) == width for group in found)
    best = beam_search(nets, source, mask, ends, width, 1, penalty)
    assert best == [group[:1] for group in found]


def repeats(words, size):
    """Whether an n-gram of so many words comes twice."""
    grams = Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
    return any(count > 1 for count in grams.values())


@settings(max_examples=25)
@given(TEAMS, LENGTHS, st.integers(1, 3), SEEDS)
def test_with_blocked_repeats_a_wide_beam_finds_the_best_outputs_that_repeat_nothing(kinds, lengths, size, seed):
    nets = a_team(kinds, seed)
    source, mask = sources(lengths)
    ends = Ends(PAD, BOS, EOS, ratio=0.5, extra=2.0)
    found = beam_search(nets, source, mask, ends, width=121, n_best=121, penalty=0.0, no_repeat=size)
    first = greedy(nets, source, mask, ends, no_repeat=size)
    for group, (greedy_best,), row, n in zip(found, first, source, lengths, strict=True):
        limit = int(0.5 * n + 2.0) + 1
        allowed = [words for words in all_outputs(limit) if not repeats(words, size)]
        expected = [(words, score(nets, row[:n], words)) for words in allowed]
        expected.sort(key=lambda hypothesis: -hypothesis[1])
        clearly_ranked([total for _, total in expected])
        assert_same([group], [expected])
        words = []
        while len(words) < limit - 1:
            logs = log_probabilities(nets, row[:n], words)[-1].tolist()
            best = max((w for w in (1, EOS, 4, 5) if not repeats([*words, w], size)), key=lambda w: logs[w])
            if best == EOS:
                break
            words.append(best)
        assert greedy_best.tokens == words


@settings(max_examples=25)
@given(TEAMS, LENGTHS, st.integers(1, 4), SEEDS)
def test_the_cache_changes_nothing(kinds, lengths, width, seed):
    nets = a_team(kinds, seed)
    source, mask = sources(lengths)
    ends = Ends(PAD, BOS, EOS)
    search = {"width": width, "n_best": width}
    assert_same(
        beam_search(nets, source, mask, ends, **search), beam_search(nets, source, mask, ends, **search, cached=False)
    )


@settings(max_examples=25)
@given(TEAMS, LENGTHS, st.integers(1, 4), st.integers(2, 9), SEEDS)
def test_looking_seldom_for_sentences_that_are_done_changes_nothing(kinds, lengths, width, look, seed):
    """As on a GPU, where each look is a wait."""
    nets, (source, mask), ends = a_team(kinds, seed), sources(lengths), Ends(PAD, BOS, EOS)
    often = [greedy(nets, source, mask, ends), beam_search(nets, source, mask, ends, width, width)]
    with mock.patch.dict("modules.translation.search.LOOK", {"cpu": look}):
        assert_same(often[0], greedy(nets, source, mask, ends))
        assert_same(often[1], beam_search(nets, source, mask, ends, width, width))


@settings(max_examples=25)
@given(TEAMS, LENGTHS, PENALTIES, SEEDS)
def test_greedy_is_a_beam_of_one_and_each_sentence_stands_alone(kinds, lengths, penalty, seed):
    nets = a_team(kinds, seed)
    source, mask = sources(lengths)
    ends = Ends(PAD, BOS, EOS)
    found = greedy(nets, source, mask, ends, penalty)
    assert_same(found, beam_search(nets, source, mask, ends, 1, 1, penalty))
    alone = [greedy(nets, row[None, :n], None, ends, penalty)[0] for row, n in zip(source, lengths, strict=True)]
    assert_same(found, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_with_itself_is_the_net(kind):
    nets = a_team([kind], 3)
    source, mask = sources([4, 1, 3])
    search = (source, mask, Ends(PAD, BOS, EOS), 3, 3)
    assert_same(beam_search(nets * 3, *search), beam_search(nets, *search))


# how outputs end


class Markov(Seq2Seq):
    """The next word depends on the last alone, by a table (V, V) of logits; counts the rows of every step."""

    def __init__(self, table):
        super().__init__()
        self.table, self.rows = table, []

    def encode(self, source, mask=None):
        return Memory([source], mask)

    def embed(self, target):
        return F.one_hot(target, V).to(self.table.dtype)

    def decode(self, embedded, memory):
        return embedded

    def start(self, memory, room=0):
        return SimpleNamespace(reorder=lambda rows, sentences: None)

    def step(self, embedded, state):
        self.rows.append(len(embedded))
        return embedded

    def logits(self, states):
        return states @ self.table


def test_limits_are_those_of_fairseq_and_of_the_positions():
    source, mask = sources([1, 4, 3, 25])
    nets = a_team(["gru"], 0)
    assert Ends(PAD, BOS, EOS).limits(nets, source, mask) == [12, 15, 14, 41]  # 1.2 n + 10 words, and EOS
    assert Ends(PAD, BOS, EOS).limits(nets, source, None) == [41] * 4
    shorter = TransformerSeq2Seq(V, 8, 2, 12, 1, positions="learned", max_length=13)
    nets += a_team(["pre-norm"], 0)
    assert Ends(PAD, BOS, EOS).limits(nets, source, mask) == [12, 15, 14, 30]
    assert Ends(PAD, BOS, EOS).limits([*nets, shorter], source, mask) == [12, 13, 13, 13]


@pytest.mark.parametrize("cached", [True, False])
def test_no_output_outgrows_the_learned_positions(cached):
    nets = a_team(["pre-norm"], 0)
    nets[0].output_table.weight.data[EOS] = 0.0  # would go on for ever
    nets[0].output_table.weight.data[4] = 3.0
    nets[0].decoder.norm.weight.data.zero_()
    nets[0].decoder.norm.bias.data.fill_(1.0)
    source, mask = sources([4, 25])
    assert [h.tokens for (h,) in beam_search(nets, source, mask, Ends(PAD, BOS, EOS), 3, cached=cached)] == [
        [4] * 14, [4] * 29,
    ]  # fmt: skip
    assert [h.tokens for (h,) in greedy(nets, source, mask, Ends(PAD, BOS, EOS))] == [[4] * 14, [4] * 29]


def test_padding_and_bos_are_never_put_out_and_the_end_is_forced():
    table = torch.zeros(V, V)
    table[:, [PAD, BOS]], table[:, EOS] = 50.0, -50.0
    source, mask = sources([4, 1])
    outputs = [h.tokens for group in beam_search([Markov(table)], source, mask, ENDS, 3, 3) for h in group]
    outputs += [h.tokens for group in greedy([Markov(table)], source, mask, ENDS) for h in group]
    drawn = draw_outputs([Markov(table)], source, mask, ENDS, 8)
    outputs += [
        row[valid][:-1].tolist()
        for row, valid in zip(drawn.tokens.flatten(0, 1), drawn.mask.flatten(0, 1), strict=True)
    ]
    assert len(outputs) == 6 + 2 + 16
    assert all(set(words) <= {1, 4, 5} for words in outputs)
    assert [len(words) for words in outputs] == [3] * 3 + [1] * 3 + [3, 1] + [3] * 8 + [1] * 8


def test_sentences_that_are_done_leave_the_batch():
    table = torch.full((V, V), -9.0)
    table[BOS, 4] = table[4, 5] = table[5, 4] = 9.0  # EOS only at the limit
    source, mask = sources([4, 1, 3])  # 3, 1 and 2 words
    for search, rows in (
        (lambda net: beam_search([net], source, mask, ENDS, 2), 2),
        (lambda net: greedy([net], source, mask, ENDS), 1),
        (lambda net: draw_outputs([net], source, mask, ENDS, 5, temperature=0.1), 5),
    ):
        net = Markov(table)
        search(net)
        assert net.rows == [3 * rows, 3 * rows, 2 * rows, rows]


def test_a_beam_wider_than_there_are_sequences_returns_them_all():
    source, mask = sources([1])
    (found,) = beam_search([Markov(torch.randn(V, V))], source, mask, ENDS, 30, 30)
    assert sorted(h.tokens for h in found) == [[], [1], [4], [5]]


def test_the_wish_for_more_than_the_beam_holds_is_refused():
    with pytest.raises(ValueError, match="beam of 2 cannot give the 3 best"):
        beam_search([Markov(torch.zeros(V, V))], *sources([1]), ENDS, 2, 3)


# sampling


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
@pytest.mark.parametrize("kinds", [["transformer"], ["gru", "pre-norm"]])
def test_outputs_come_as_often_as_they_should(kinds, temperature):
    nets, count = a_team(kinds, 5), 5000
    source, mask = sources([3, 2])  # up to 2 words
    torch.manual_seed(1)
    drawn = draw_outputs(nets, source, mask, ENDS, count, temperature)
    for i, n in enumerate([3, 2]):
        expected = {}
        for words in all_outputs(3):
            logs, chance = log_probabilities(nets, source[i, :n], words), 1.0
            for t, word in enumerate([*words, EOS][:2]):  # the third can only be EOS
                powered = [math.exp(log / temperature) for log in logs[t].tolist()]
                chance *= powered[word] / sum(p for w, p in enumerate(powered) if w not in (PAD, BOS))
            expected[words] = chance
        assert sum(expected.values()) == pytest.approx(1.0)
        seen = Counter(
            tuple(row[valid][:-1].tolist()) for row, valid in zip(drawn.tokens[i], drawn.mask[i], strict=True)
        )
        assert set(seen) <= {words for words, chance in expected.items() if chance > 0}
        common = [words for words, chance in expected.items() if chance * count > 5]
        distance = sum((seen[words] - count * expected[words]) ** 2 / (count * expected[words]) for words in common)
        assert len(common) > 2
        assert distance < chi2.ppf(0.999, len(common))


@settings(max_examples=25)
@given(TEAMS, LENGTHS, SEEDS)
def test_samples_are_words_then_the_end_then_padding_with_their_log_probability(kinds, lengths, seed):
    nets = a_team(kinds, seed)
    source, mask = sources(lengths)
    tokens, valid, scores = draw_outputs(nets, source, mask, ENDS, 4, temperature=2.0)
    assert tokens.shape == valid.shape == (*scores.shape, tokens.shape[2]) == (len(lengths), 4, valid.sum(2).max())
    for i, n in enumerate(lengths):
        for row, there, total in zip(tokens[i], valid[i], scores[i], strict=True):
            end = row.tolist().index(EOS)
            assert there.tolist() == [t <= end for t in range(len(row))]
            assert not row[end + 1 :].any()
            assert total.item() == pytest.approx(score(nets, source[i, :n], row[:end].tolist()), abs=1e-4)


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"temperature=0\.0: expected more than 0"):
        draw_outputs([Markov(torch.zeros(V, V))], *sources([1]), ENDS, temperature=0.0)


def test_scores_of_half_precision_logits_are_summed_in_float32():
    net = Markov(torch.randn(V, V).bfloat16())
    source, mask = sources([4])
    for (found,) in (greedy([net], source, mask, ENDS)[0], beam_search([net], source, mask, ENDS)[0]):
        assert found.score == pytest.approx(score([net], source[0], found.tokens, 1.0), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_scores_are_float32_and_samples_can_be_learned_from(kind):
    nets = a_team([kind], 0)
    source, mask = sources([4, 2])
    with torch.autocast("cpu", torch.bfloat16):
        best = beam_search(nets, source, mask, ENDS)
        tokens, valid, scores = draw_outputs(nets, source, mask, ENDS, 3)
        assert scores.dtype == torch.float32
        before = F.pad(tokens[:, 0, :-1], (1, 0), value=BOS)
        logs = nets[0](source, before, mask).float().log_softmax(2).gather(2, tokens[:, :1].transpose(1, 2))
        (-logs[valid[:, 0]].sum()).backward()  # in the same autocast, whose cache holds weights of the search
    torch.testing.assert_close(logs.squeeze(2).where(valid[:, 0], 0.0).sum(1), scores[:, 0], atol=0.1, rtol=0.05)
    assert all(parameter.grad is not None for parameter in nets[0].parameters())
    assert all(math.isfinite(group[0].score) for group in best)
