"""The likeliest path against all paths one by one."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.viterbi import viterbi


def value(scores, transitions, path):
    return sum(scores[t, y] for t, y in enumerate(path)) + sum(transitions[a, b] for a, b in itertools.pairwise(path))


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3), classes=st.integers(1, 3), seed=st.integers(0, 2**20)
)
def test_is_the_best_of_all_sequences(lengths, classes, seed):
    torch.manual_seed(seed)
    length = max(lengths) + 1
    scores = torch.randn(len(lengths), length, classes, dtype=torch.float64)
    transitions = torch.randn(classes, classes, dtype=torch.float64)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    junk = torch.where(mask[..., None], scores, torch.full_like(scores, 1e3))
    found = viterbi(junk, transitions, mask)
    assert not found[~mask].any()
    for i, n in enumerate(lengths):
        paths = itertools.product(range(classes), repeat=n)
        best = max(paths, key=lambda path: value(scores[i], transitions, path))
        assert found[i, :n].tolist() == list(best)


def test_transitions_smooth_a_flicker():
    shares = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8]]).log()[None]
    sticky = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert shares.argmax(2).tolist() == [[0, 0, 1, 0, 1, 1]]
    assert viterbi(shares, sticky, mask).tolist() == [[0, 0, 0, 0, 1, 1]]
