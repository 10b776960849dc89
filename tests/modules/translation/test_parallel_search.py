"""Mask-predict, long outputs and CTC against the same rules in plain Python, one sentence and one place at a time."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.nets.attention import padding_mask
from modules.nets.parallel_seq2seq import LengthPredictor, UnknownWords, Upsampling
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.translation.parallel_search import ctc_paths, cut, long_outputs, mask_predict, refine, repeated_share
from modules.translation.search import Ends

PAD, BOS, EOS, V = 0, 2, 3, 7  # words: 1, 4, 5 and 6
WORDS = (1, 4, 5, 6)
ENDS = Ends(PAD, BOS, EOS, ratio=1.0, extra=2.0)
LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**20)
NETS = {
    "post-norm": {"routing": "same"},
    "pre-norm": {"norm": "pre", "positions": "learned", "max_length": 9, "share": False},
}
KINDS = st.sampled_from(sorted(NETS))


def made(kind, seed, causal=False):
    """Net, unknown words, length predictor and upsampling with random weights, strong enough to prefer some words."""
    torch.manual_seed(seed)
    net = TransformerSeq2Seq(V, 8, 2, 12, 2, causal=causal, **NETS[kind])
    parts = nn.ModuleList([net, UnknownWords(8), LengthPredictor(8, reach=3), Upsampling(8, 2)]).eval()
    for parameter in parts.parameters():
        nn.init.normal_(parameter, std=0.6)
    return parts


def sources(lengths):
    mask = padding_mask(torch.tensor(lengths), max(lengths))
    return torch.randint(4, V, mask.shape).where(mask, PAD), mask


@torch.no_grad()
def said(net, unknown, source, words):
    """Log-probabilities (T, V) of all places of an unpadded source (S,), where None stands for an unknown word."""
    vectors = [unknown.vector if word is None else net.embed(torch.tensor([[word]]))[0, 0] for word in words]
    logits = net.logits(net.decode(torch.stack(vectors).unsqueeze(0), net.encode(source.unsqueeze(0))))
    return logits[0].double().log_softmax(1)


def plain_drafts(net, unknown, source, length, iterations):
    """What `refine` says that it does: (words, which were unknown) after each iteration, and the last logs."""
    words, logs, lacking, drafts = [None] * length, [0.0] * length, list(range(length)), []
    for t in range(1, iterations + 1):
        table = said(net, unknown, source, [None if i in lacking else word for i, word in enumerate(words)]).tolist()
        for i in lacking:
            words[i] = max(WORDS, key=lambda word: table[i][word])
            logs[i] = table[i][words[i]]
        drafts.append((list(words), [i in lacking for i in range(length)]))
        lacking = sorted(range(length), key=lambda i: logs[i])[: length * (iterations - t) // iterations]
        if not lacking:
            break
    return drafts, logs


def assert_same(found, expected):
    assert [[list(h.tokens) for h in group] for group in found] == [
        [list(h.tokens) for h in group] for group in expected
    ]
    for group, other in zip(found, expected, strict=True):
        assert [h.score for h in group] == pytest.approx([h.score for h in other], rel=1e-4, abs=1e-5)


# mask-predict


@settings(max_examples=20)
@given(KINDS, st.integers(1, 6), st.integers(1, 7), SEEDS)
def test_drafts_are_those_of_the_rule(kind, length, iterations, seed):
    net, unknown, _, _ = made(kind, seed)
    source, _ = sources([4])
    with torch.no_grad():
        valid = torch.ones(1, length, dtype=torch.bool)
        drafts = list(refine(net, unknown, net.encode(source), valid, ENDS, iterations))
    plain, logs = plain_drafts(net, unknown, source[0], length, iterations)
    assert [(d.words[0].tolist(), d.asked[0].tolist()) for d in drafts] == plain
    assert drafts[-1].logs[0].tolist() == pytest.approx(logs, rel=1e-4, abs=1e-5)


@settings(max_examples=20)
@given(KINDS, LENGTHS, st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_each_sentence_stands_alone_and_each_candidate_too(kind, lengths, iterations, candidates, seed):
    """With the lengths that the predictor likes best, refined and scored one by one."""
    net, unknown, predictor, _ = made(kind, seed)
    source, mask = sources(lengths)
    found = mask_predict(net, unknown, predictor, source, mask, ENDS, iterations, candidates)
    assert [len(group) for group in found] == [candidates] * len(lengths)
    for row, n, group in zip(source, lengths, found, strict=True):
        (alone,) = mask_predict(net, unknown, predictor, row[None, :n], None, ENDS, iterations, candidates)
        assert_same([group], [alone])
        with torch.no_grad():
            scores = predictor(net.encode(row[None, :n]))[0].log_softmax(0).tolist()
        fits = [m for m in range(max(1, n - 3), n + 4) if m <= min(n + 2, 8)]
        chosen = sorted(fits, key=lambda m: -scores[m - n + 3])[:candidates]
        expected = {}
        for m in chosen:
            drafts, logs = plain_drafts(net, unknown, row[:n], m, iterations)
            expected[tuple(drafts[-1][0])] = (sum(logs) + scores[m - n + 3]) / (m + 1)
        assert {tuple(h.tokens): h.score for h in group} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert [h.score for h in group] == sorted((h.score for h in group), reverse=True)


@settings(max_examples=10)
@given(KINDS, SEEDS)
def test_one_shot_is_the_likeliest_of_all_sequences_of_its_length(kind, seed):
    net, unknown, predictor, _ = made(kind, seed)
    source, _ = sources([2])
    with torch.no_grad():
        numbers = predictor(net.encode(source))[0].log_softmax(0)
    for best in mask_predict(net, unknown, predictor, source, None, ENDS, 1, 4)[0]:
        length = len(best.tokens)
        logs = said(net, unknown, source[0], [None] * length)
        value, words = max(
            (sum(logs[t, word].item() for t, word in enumerate(words)), words)
            for words in itertools.product(WORDS, repeat=length)
        )
        number = numbers[length - 2 + 3].item()  # the source has two tokens
        assert (list(words), pytest.approx((value + number) / (length + 1), rel=1e-4)) == (best.tokens, best.score)


@settings(max_examples=10)
@given(LENGTHS, SEEDS, st.booleans())
def test_a_rescorer_judges_words_and_end_one_after_the_other(lengths, seed, recurrent):
    net, unknown, predictor, _ = made("post-norm", seed)
    judge = RecurrentSeq2Seq(V, 6, 5).eval() if recurrent else made("pre-norm", seed, causal=True)[0]
    source, mask = sources(lengths)
    plain = mask_predict(net, unknown, predictor, source, mask, ENDS, 2, 3)
    found = mask_predict(net, unknown, predictor, source, mask, ENDS, 2, 3, judge)
    for row, n, group, before in zip(source, lengths, found, plain, strict=True):
        assert sorted(h.tokens for h in group) == sorted(h.tokens for h in before)
        assert [h.score for h in group] == sorted((h.score for h in group), reverse=True)
        for words, score in group:
            with torch.no_grad():
                logs = judge(row[None, :n], torch.tensor([[BOS, *words]]))[0].log_softmax(1)
            total = sum(logs[t, word].item() for t, word in enumerate([*words, EOS]))
            assert score == pytest.approx(total / (len(words) + 1), rel=1e-4, abs=1e-5)


def test_no_special_piece_is_said_and_no_output_outgrows_its_limit():
    net, unknown, predictor, _ = made("pre-norm", 0)
    with torch.no_grad():
        net.output_table.weight[[PAD, BOS, EOS]] *= 50
        predictor.scores.weight.zero_()
        predictor.scores.bias.copy_(torch.arange(7.0))  # as long as can be
    source, mask = sources([5, 1, 9])
    found = mask_predict(net, unknown, predictor, source, mask, ENDS, 3, 1)
    assert [len(best.tokens) for (best,) in found] == [7, 3, 8]  # n + 2, and 9 positions with that of EOS
    assert all(set(best.tokens) <= set(WORDS) for (best,) in found)


# a long output


@settings(max_examples=20)
@given(KINDS, LENGTHS, SEEDS)
def test_long_outputs_have_the_likeliest_word_or_end_in_each_place(kind, lengths, seed):
    net, unknown, _, _ = made(kind, seed)
    source, mask = sources(lengths)
    for row, n, output in zip(source, lengths, long_outputs(net, unknown, source, mask, ENDS), strict=True):
        table = said(net, unknown, row[:n], [None] * (n + 3)).tolist()
        assert output == [max((*WORDS, EOS), key=lambda word: place[word]) for place in table]


def test_what_stands_after_the_first_end_is_cut():
    assert cut([5, 4, EOS, 6, EOS], EOS) == [5, 4]
    assert cut([EOS, 4], EOS) == []
    assert cut([5, 4], EOS) == [5, 4]


# CTC


@settings(max_examples=20)
@given(KINDS, LENGTHS, SEEDS)
def test_ctc_paths_have_the_likeliest_word_or_blank_in_each_place(kind, lengths, seed):
    net, _, _, upsampling = made(kind, seed)
    lengths = [min(n, 4) for n in lengths]  # pre-norm has 9 positions
    source, mask = sources(lengths)
    for row, n, path in zip(source, lengths, ctc_paths(net, upsampling, source, mask, ENDS), strict=True):
        with torch.no_grad():
            memory = net.encode(row[None, :n])
            logits = net.logits(net.decode(upsampling(memory)[0], memory))[0].tolist()
        assert path == [max((*WORDS, PAD), key=lambda word: place[word]) for place in logits]
        assert len(path) == 2 * n


# judging


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=4))
def test_repeated_tokens_are_those_that_runs_have_beyond_their_first(outputs):
    runs = sum(len(list(itertools.groupby(output))) for output in outputs)
    tokens = sum(map(len, outputs))
    assert repeated_share(outputs) == pytest.approx((tokens - runs) / tokens if tokens else 0.0)


def test_repeated_words_of_a_text_are_counted():
    assert repeated_share([["a", "a", "b"], ["b"]]) == 0.25
