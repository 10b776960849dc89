"""Equal error rate against scikit-learn's ROC, ties included, and against the closed form of two normals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_curve

from modules import verification
from modules.verification import EqualErrorRate, equal_error_rate


def candidates(scores, same):
    """Rates at every threshold of the ROC where misses and false alarms come closest; several where they are tied."""
    wrongly, accepted, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = abs(1 - accepted - wrongly)
    return ((1 - accepted + wrongly) / 2)[gap <= gap.min() + 1e-9]


@settings(max_examples=300)
@given(
    pairs=st.lists(
        st.tuples(st.integers(-4, 4) | st.floats(-4, 4, width=32), st.booleans()), min_size=2, max_size=40
    ).filter(lambda pairs: len({same for _, same in pairs}) == 2)
)
def test_it_is_the_rate_of_the_roc_with_ties_too(pairs):
    scores = torch.tensor([float(score) for score, _ in pairs])
    same = torch.tensor([same for _, same in pairs])
    found = equal_error_rate(scores, same).item()
    assert abs(candidates(scores.numpy(), same.numpy()) - found).min() < 1e-6


def test_two_normals():
    """Means d deviations apart: the rates meet in the middle, at Phi(-d / 2)."""
    torch.manual_seed(0)
    for d in (0.0, 1.0, 2.5):
        scores = torch.cat([torch.randn(200_000) + d, torch.randn(100_000)])
        same = torch.arange(300_000) < 200_000
        assert equal_error_rate(scores, same).item() == pytest.approx(norm.cdf(-d / 2), abs=0.004)


@pytest.mark.parametrize(
    ("scores", "same", "rate"),
    [
        ([0.9, 0.8, 0.1, 0.0], [True, True, False, False], 0.0),
        ([0.9, 0.8, 0.1, 0.0], [False, False, True, True], 1.0),
        ([0.5, 0.5, 0.5], [True, False, False], 0.5),
        ([0.9, 0.4, 0.6, 0.1], [True, True, False, False], 0.5),
        ([0.9, 0.1], [True, True], math.nan),
        ([0.9, 0.1], [False, False], math.nan),
    ],
)
def test_by_hand(scores, same, rate):
    found = equal_error_rate(torch.tensor(scores), torch.tensor(same)).item()
    assert found == pytest.approx(rate, nan_ok=True)


def test_the_metric_scores_every_pair_once_whatever_the_batches():
    torch.manual_seed(0)
    y = torch.randint(0, 4, (30,))
    x = torch.randn(4, 6)[y] + torch.randn(30, 6)
    cosines, same = [], []
    for i in range(30):
        for j in range(i):
            cosines.append(float(x[i] @ x[j] / x[i].norm() / x[j].norm()))
            same.append(bool(y[i] == y[j]))
    wanted = candidates(cosines, same)
    for size in (1, 7, 30):
        metric = EqualErrorRate()
        for start in range(0, 30, size):
            metric.update(x[start : start + size], y[start : start + size])
        assert abs(wanted - metric.compute().item()).min() < 1e-6
    metric.reset()
    metric.update(x[:2] * 7, torch.tensor([0, 1]))
    assert math.isnan(metric.compute())


def test_of_many_utterances_some_are_taken_from_all_over(monkeypatch):
    """The first half is hopeless, the second is perfect: what is kept holds both."""
    monkeypatch.setattr(verification, "MOST", 100)
    torch.manual_seed(0)
    y = torch.arange(1000) % 2
    clear = torch.eye(2)[y] + 0.01 * torch.randn(1000, 2)
    x = torch.where(torch.arange(1000)[:, None] < 500, torch.randn(1000, 2), clear)
    metric = EqualErrorRate()
    metric.update(x, y)
    whole = EqualErrorRate()
    monkeypatch.setattr(verification, "MOST", 3000)
    whole.update(x, y)
    rate = whole.compute().item()
    monkeypatch.setattr(verification, "MOST", 100)
    assert 0.1 < rate < 0.5
    assert metric.compute().item() == pytest.approx(rate, abs=0.08)
