"""modules/translation/losses.py against the closed form and torch's own cross-entropy."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modules.translation.losses import smoothed_cross_entropy


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
