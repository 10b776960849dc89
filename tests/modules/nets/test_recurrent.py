"""Recurrent: a padded batch is what each sequence gives alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.nets.recurrent import Recurrent


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    cell=st.sampled_from(["lstm", "gru"]),
    both=st.booleans(),
    layers=st.integers(1, 2),
)
def test_padding_changes_nothing(lengths, extra, cell, both, layers):
    torch.manual_seed(0)
    net = Recurrent(3, 5, layers, cell, both).double()
    length = max(lengths) + extra
    x = torch.randn(len(lengths), length, 3, dtype=torch.float64)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    junk = torch.where(mask[..., None], x, torch.full_like(x, 1e6))
    found = net(junk, mask)
    assert found.shape == (len(lengths), length, net.out)
    assert not found[~mask].any()
    for i, n in enumerate(lengths):
        torch.testing.assert_close(found[i, :n], net(x[i : i + 1, :n])[0])


@pytest.mark.parametrize(("both", "reach"), [(True, True), (False, False)])
def test_both_directions_know_the_end(both, reach):
    torch.manual_seed(0)
    net = Recurrent(2, 4, bidirectional=both)
    x = torch.randn(1, 6, 2)
    other = x.clone()
    other[0, -1] += 1
    assert bool((net(x)[0, 0] != net(other)[0, 0]).any()) is reach
