"""Poolings against their definitions row by row; what padded frames hold counts for nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.nets.attention import padding_mask
from modules.nets.pooling import POOLINGS

D = 3


def pooling(kind):
    torch.manual_seed(0)
    return POOLINGS[kind](D).double()


def definition(kind, module, frames):
    """The pooling of (T, D) valid frames."""
    if kind == "mean":
        return frames.sum(0) / len(frames)
    if kind == "max":
        return torch.stack([max(column) for column in frames.T])
    if kind == "statistics":
        std = frames.std(0, correction=0).clamp(min=1e-3)
        return torch.cat([frames.mean(0), std])
    weight = (frames @ module.score.weight[0]).exp()
    return (weight[:, None] * frames).sum(0) / weight.sum()


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), more=st.integers(0, 3))
def test_only_valid_frames_count(kind, junk, lengths, more):
    module = pooling(kind)
    x = torch.randn(len(lengths), max(lengths) + more, D, dtype=torch.float64)
    valid = padding_mask(torch.tensor(lengths), x.shape[1])
    dirty = x.masked_fill(~valid[..., None], junk).requires_grad_()
    out = module(dirty, valid)
    expected = torch.stack([definition(kind, module, row[:n]) for row, n in zip(x, lengths, strict=True)])
    torch.testing.assert_close(out, expected)
    assert out.shape == (len(lengths), module.out)
    out.square().sum().backward()
    assert not dirty.grad[~valid].any()
    assert dirty.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", POOLINGS)
def test_gaps_are_as_good_as_ends_and_no_mask_is_all_valid(kind):
    module, x = pooling(kind), torch.randn(2, 5, D, dtype=torch.float64)
    torch.testing.assert_close(module(x), module(x, torch.ones(2, 5, dtype=torch.bool)))
    valid = torch.tensor([[True, False, True, True, False], [False, True, False, True, True]])
    torch.testing.assert_close(module(x, valid), module(x[valid].view(2, 3, D)))


@pytest.mark.parametrize("kind", POOLINGS)
def test_gradient(kind):
    module, valid = pooling(kind), padding_mask(torch.tensor([4, 2]), 4)
    x = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x, valid), x)


@pytest.mark.parametrize("kind", POOLINGS)
def test_frames_all_alike_and_rows_without_a_frame_are_finite(kind):
    module, valid = pooling(kind), padding_mask(torch.tensor([3, 0]), 3)
    x = torch.full((2, 3, D), 2.5, dtype=torch.float64, requires_grad=True)
    out = module(x, valid)
    torch.testing.assert_close(out[0, :D], x[0, 0])
    assert not out[1, :D].any()
    assert out.isfinite().all()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_attentive_weights_sum_to_one_over_the_valid_frames():
    module, valid = pooling("attentive"), padding_mask(torch.tensor([4, 2]), 4)
    weights = module.weights(torch.randn(2, 4, D, dtype=torch.float64), valid)
    assert weights.shape == (2, 4)
    assert not weights[~valid].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", POOLINGS)
def test_bfloat16(kind):
    module, valid = pooling(kind).float(), padding_mask(torch.tensor([4, 2]), 4)
    x = torch.randn(2, 4, D)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(x.bfloat16(), valid)
    torch.testing.assert_close(low.float(), module(x, valid), atol=0.05, rtol=0.05)
