"""Dropout by random bits: the share dropped, the scale of what stays, and its gradient."""

import pytest
import torch

from modules.nets.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_scale_and_gradient(p):
    torch.manual_seed(0)
    x = torch.rand(301, 333, requires_grad=True)  # a number of values that four does not divide
    y = Dropout(p)(x)
    kept = y != 0
    count = x.numel()
    assert abs(float(kept.sum()) - (1 - p) * count) < 5 * (p * (1 - p) * count) ** 0.5  # five standard deviations
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), rtol=1e-4, atol=0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, kept / (1 - p), rtol=1e-4, atol=0)
    neighbours = (kept[:, 1:] & kept[:, :-1]).float().mean()  # values decided by the same draw are independent
    assert abs(float(neighbours) - (1 - p) ** 2) < 0.01


def test_edges_and_evaluation():
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.3).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    assert Dropout(0.5)(x.bfloat16()).dtype is torch.bfloat16


def test_compiles_in_one_piece():
    compiled = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)
    y = compiled(torch.ones(100))
    assert set(y.tolist()) == {0.0, 2.0}


def test_the_seed_repeats_it():
    x = torch.randn(50)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)
