"""Focal loss against its definition row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from modules.losses import focal_loss


@given(gamma=st.sampled_from([0.0, 0.5, 2.0]), smoothing=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 2**20))
def test_focal_loss_is_its_formula_for_classes_and_for_shares(gamma, smoothing, seed):
    torch.manual_seed(seed)
    scores, y = 3 * torch.randn(6, 4), torch.randint(4, (6,))
    p = np.exp(scores.double().numpy())
    p /= p.sum(1, keepdims=True)
    q = np.eye(4)[y.numpy()] * (1 - smoothing) + smoothing / 4
    expected = -(q * (1 - p) ** gamma * np.log(p)).sum()
    for target in (y, F.one_hot(y, 4).float()):
        assert focal_loss(scores, target, gamma, smoothing).item() == pytest.approx(expected, rel=1e-4)


def test_a_sure_answer_gives_no_gradient_that_is_not_finite():
    scores = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    focal_loss(scores, torch.tensor([0, 0]), 0.5).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[1].abs().max() > 0.9
