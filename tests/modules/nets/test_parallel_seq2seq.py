"""What parallel translators add: the vector of unknown words, lengths against a plain search, places for CTC."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.nets.attention import padding_mask
from modules.nets.parallel_seq2seq import LengthPredictor, UnknownWords, Upsampling
from modules.nets.seq2seq import Memory

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def memory(lengths, junk=0.0):
    """Of sources of these lengths, D = 4; junk stands in the padding."""
    mask = padding_mask(torch.tensor(lengths), max(lengths) + 1)
    outputs = torch.randn(*mask.shape, 4, generator=torch.Generator().manual_seed(0))
    return Memory([outputs * 9, outputs.masked_fill(~mask.unsqueeze(2), junk)], mask)


def test_known_words_keep_their_vectors_and_the_others_share_one():
    unknown = UnknownWords(4)
    words, known = torch.randn(2, 3, 4), torch.tensor([[True, False, True], [False, False, True]])
    read = unknown(words, known)
    assert torch.equal(read[known], words[known])
    assert torch.equal(read[~known], unknown.vector.expand(3, 4))
    read.sum().backward()
    assert unknown.vector.grad.tolist() == [3.0] * 4


@settings(max_examples=20)
@given(LENGTHS)
def test_lengths_and_places_do_not_see_padding(lengths):
    predictor, upsampling = LengthPredictor(4), Upsampling(4, 3)
    scores = predictor(memory(lengths, 50.0))
    places, mask = upsampling(memory(lengths, 50.0))
    assert mask.sum(1).tolist() == [3 * n for n in lengths]
    top = memory(lengths).outputs[-1]
    for i, n in enumerate(lengths):
        alone = Memory([top[i : i + 1, :n]], None)
        torch.testing.assert_close(scores[i], predictor(alone)[0])
        torch.testing.assert_close(scores[i], predictor.scores(top[i, :n].mean(0)))
        torch.testing.assert_close(places[i, : 3 * n], upsampling(alone)[0][0])
        for s in range(n):  # place 3 s + k is part k of the projection of state s
            torch.testing.assert_close(places[i, 3 * s : 3 * s + 3].flatten(), upsampling.project(top[i, s]))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 15)), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(0, 2**20),
)
def test_the_likeliest_lengths_are_those_of_a_plain_search(pairs, count, seed):
    predictor = LengthPredictor(4, reach=3)
    source, limits = torch.tensor(pairs).T
    logits = torch.randn(len(pairs), 7, generator=torch.Generator().manual_seed(seed))
    found = predictor.likeliest(logits, source, limits, count)
    assert found.shape == (len(pairs), count)
    for row, (n, limit), chosen in zip(logits.tolist(), pairs, found.tolist(), strict=True):
        fits = [n + d for d in range(-3, 4) if 1 <= n + d <= limit]
        best = sorted(fits, key=lambda length: -row[length - n + 3])
        assert chosen[: len(best)] == best[:count]
        assert all(1 <= length <= limit for length in chosen)


@given(st.integers(1, 20), st.integers(0, 40))
def test_a_class_is_a_difference_of_lengths_within_reach(source, target):
    predictor = LengthPredictor(4, reach=5)
    found = predictor.classes(torch.tensor([source]), torch.tensor([target])).item()
    assert found == min(max(target - source, -5), 5) + 5
