"""modules/translation/ctc.py against the sum over all paths, one by one."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.translation.ctc import alignment, collapse, ctc_losses, fits

BLANK, V = 0, 3


@pytest.mark.parametrize(
    ("path", "output"),
    [([0, 0], []), ([1, 1, 2], [1, 2]), ([1, 0, 1], [1, 1]), ([0, 2, 2, 0, 0, 2, 1, 1, 0], [2, 2, 1]), ([], [])],
)
def test_neighbours_that_are_alike_are_one_and_blanks_go(path, output):
    assert collapse(path, BLANK) == output


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.lists(st.integers(1, V - 1), max_size=4)), min_size=1, max_size=3
    ),
    st.integers(0, 2**20),
)  # fmt: skip
def test_the_loss_sums_over_all_paths_and_the_alignment_is_the_likeliest_of_them(rows, seed):
    noise = torch.Generator().manual_seed(seed)
    places, outputs = [n for n, _ in rows], [words for _, words in rows]
    logits = 2 * torch.randn(len(rows), max(places) + 1, V, generator=noise)
    words = torch.full((len(rows), 5), 2)  # padded with a word
    for row, output in zip(words, outputs, strict=True):
        row[: len(output)] = torch.tensor(output, dtype=torch.int64)
    args = (logits, torch.tensor(places), words, torch.tensor([len(output) for output in outputs]), BLANK)
    losses, told, enough = ctc_losses(*args), alignment(*args), fits(*args[1:4])
    assert losses.shape == (len(rows),)
    assert told.shape == logits.shape[:2]
    for i, (n, output) in enumerate(rows):
        logs = logits[i].double().log_softmax(1).tolist()
        chances = []
        for path in itertools.product(range(V), repeat=n):
            if collapse(path, BLANK) == output:
                chances.append(math.exp(sum(logs[t][word] for t, word in enumerate(path))))
        assert enough[i] == bool(chances)
        if not chances:
            assert losses[i] == 0  # too few places
            continue
        assert losses[i].item() == pytest.approx(-math.log(sum(chances)), rel=1e-4, abs=1e-5)
        path = told[i].tolist()
        assert collapse(path[:n], BLANK) == output
        assert not any(path[n:])
        chance = math.exp(sum(logs[t][word] for t, word in enumerate(path[:n])))
        assert chance == pytest.approx(max(chances), rel=1e-4)


def test_what_is_too_long_for_its_places_has_no_gradient():
    logits = torch.randn(2, 3, V, requires_grad=True)
    words = torch.tensor([[1, 1, 2], [1, 2, 1]])  # needs 4 places; needs 3
    ctc_losses(logits, torch.tensor([3, 3]), words, torch.tensor([3, 3]), BLANK).sum().backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()
