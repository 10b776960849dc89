"""modules/translation/losses.py against the closed form and torch's own cross-entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modules.translation import losses as module
from modules.translation.losses import linear_cross_entropy, smoothed_cross_entropy


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(2, 9), st.floats(0, 0.9), st.integers(0, 10**6))
def test_value_and_gradient_equal_torch_and_the_closed_form(rows, words, smoothing, seed):
    noise = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(rows, words, generator=noise, dtype=torch.float64)).float().requires_grad_()
    targets = torch.randint(words, (rows,), generator=noise)
    weights = torch.randn(rows, generator=noise)  # of both signs, as in reinforcement learning
    losses = smoothed_cross_entropy(logits, targets, smoothing)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    gold = (1 - smoothing) * F.one_hot(targets, words) + smoothing / words
    torch.testing.assert_close(losses, -(gold * logits.log_softmax(1)).sum(1), atol=1e-5, rtol=1e-5)
    found, wanted = (torch.autograd.grad((weights * x).sum(), logits)[0] for x in (losses, expected))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, weights.unsqueeze(1) * (logits.softmax(1) - gold), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 7, 8])
def test_the_product_and_its_loss_equal_torch_for_any_blocks(monkeypatch, rows):
    """Blocks of three rows; the loss is scaled, as a mean of several processes is."""
    monkeypatch.setattr(module, "ROWS", 3)
    noise = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, 4, generator=noise, dtype=torch.float64).requires_grad_()
    weight = torch.randn(9, 4, generator=noise, dtype=torch.float64).requires_grad_()
    targets = torch.randint(9, (rows,), generator=noise)
    total, right = linear_cross_entropy(states, weight, targets, 0.1)
    logits = states @ weight.T
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert torch.equal(right, logits.argmax(1) == targets)
    for found, wanted in zip(
        torch.autograd.grad(0.3 * total, (states, weight)),
        torch.autograd.grad(0.3 * expected, (states, weight)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_under_autocast_products_are_bfloat16_and_sums_are_not():
    """As near the float32 gradient as bfloat16's products allow."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(1500, 16, generator=noise).requires_grad_()
    weight = (0.3 * torch.randn(50, 16, generator=noise)).requires_grad_()
    targets = torch.randint(50, (1500,), generator=noise)
    expected = F.cross_entropy(states @ weight.T, targets, label_smoothing=0.1, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(states, weight, targets, 0.1)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(total, (states, weight)), torch.autograd.grad(expected, (states, weight)), strict=True
    ):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.01 * wanted.norm()
