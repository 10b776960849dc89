"""What the studies compute, against closed forms and other libraries; and each of them run with tiny settings."""

import numpy as np
import pytest
import torch
from conftest import check_study
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from datamodules.hw1_covid import CovidData
from scripts.studies import (
    cross_validation,
    overfitting,
)
from scripts.studies.lab.fit import Curve, Errors, errors, fit, regressor, rows

pytestmark = pytest.mark.slow

seeds = st.integers(0, 10**6)


# 5 overfitting


def test_few_rows_are_some_of_the_training_rows(covid):
    whole, few = CovidData(str(covid), seed=1), overfitting.FewRows(50, root=str(covid), seed=1)
    for data in (whole, few):
        data.setup("fit")
    for a, b in zip(whole.split(), few.split(), strict=True):
        assert len(b.train) == 50
        assert set(b.train) < set(a.train)
        assert (a.val == b.val).all()
    x, _ = rows(few, "train")
    assert len(x) == 50
    torch.testing.assert_close(few.facts["mean"][0, 40:], x.mean(0)[40:], rtol=1e-4, atol=1e-4)


def test_wrong_targets_are_others_of_the_rows_to_train_on(covid):
    right, wrong = (overfitting.FewRows(50, share, root=str(covid), seed=1) for share in (0.0, 0.4))
    for data in (right, wrong):
        data.setup("fit")
    ((train, val),) = right.chosen_folds()
    before, after = right.train.target, wrong.train.target
    assert sorted(after[train]) == sorted(before[train])
    assert 10 <= (after[train] != before[train]).sum() <= 20
    assert (after[val] == before[val]).all()
    assert torch.equal(right.facts["target_mean"], wrong.facts["target_mean"])


def test_noise_is_as_wide_as_features_and_leaves_marks_alone(covid):
    data, module = overfitting.FewRows(400, root=str(covid)), regressor(torch.optim.SGD, 0.0, hidden=[2])
    data.setup("fit")
    module.expect(data.facts)
    module.configure_model()
    scale, marks = overfitting.noise_scale(module)[0], data.facts["is_state"][0]
    assert not scale[marks].any()
    torch.testing.assert_close(scale[~marks], rows(data, "train")[0].std(0, correction=0)[~marks], rtol=1e-3, atol=1e-5)


def test_the_best_is_the_least_held_out_of_steps_1_2_4_and_the_last(covid, monkeypatch):
    held_out = iter([3.0, 2.0, 1.0, 5.0])
    monkeypatch.setattr(overfitting, "errors", lambda module, _: Errors(0.0, next(held_out)))
    last, best = overfitting.trained(overfitting.Settings(steps=6), 0, covid, hidden=[2])
    assert (last.held_out, best.held_out) == (5.0, 1.0)
    assert not list(held_out), "judged four times"


def test_a_net_overfits_and_weight_decay_and_dropout_hold_it_back(covid):
    settings = overfitting.Settings(steps=100)
    (plain, _), (decay, _), (dropout, _) = (
        overfitting.trained(settings, 0, covid, hidden=[64, 64], wrong=0.3, **options)
        for options in ({}, {"decay": 10.0}, {"dropout": 0.5})
    )
    assert plain.held_out > 5 * plain.train
    assert min(decay.train, dropout.train) > plain.train


def test_a_fit_takes_the_accelerator_it_is_given(covid):
    module = regressor(torch.optim.SGD, 0.0, hidden=[2])
    with pytest.raises(ValueError, match="abacus"):
        fit(module, CovidData(str(covid)), 1, accelerator="abacus")
    fit(module, CovidData(str(covid)), 1, accelerator="auto")
    assert module.device.type == "cpu", "afterwards"


def test_errors_and_curves_of_a_fit(covid):
    data = CovidData(str(covid), batch_size=512, members=2)
    module, curve = regressor(torch.optim.AdamW, 0.01, hidden=[8]), Curve()
    fit(module, data, 6, [curve])
    epochs = curve.by_epoch(6)
    assert epochs[-1] < epochs[0] / 2, "it learned"
    found = errors(module, data)
    x, y = rows(data, "val")
    with torch.no_grad():
        each = [(module(x.expand(2, *x.shape))[m] - y).square().mean() for m in range(2)]
    assert found.held_out == pytest.approx(float(sum(each) / 2), rel=1e-5)


# 6 cross-validation


@given(seed=seeds, count=st.integers(1, 6))
def test_the_linear_model_is_ridge_on_the_best_features(seed, count):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(2, 3, (40, 6)), rng.normal(size=40)
    other = rng.normal(2, 3, (10, 6)), rng.normal(size=10)
    best = np.argsort([-abs(np.corrcoef(x[:, i], y)[0, 1]) for i in range(6)])[:count]
    mean, scale = x.mean(0)[best], x.std(0)[best]
    model = Ridge(alpha=0.01 * 40).fit((x[:, best] - mean) / scale, y)
    wanted = (model.predict((other[0][:, best] - mean) / scale) - other[1]) ** 2
    np.testing.assert_allclose(
        cross_validation.squared_errors((x, y), other, count, 0.01), wanted, rtol=1e-5, atol=1e-9
    )


def test_every_row_is_held_out_once():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    found = cross_validation.fold_errors(x, y, 3, (1, 2), 0.01)
    held = np.arange(30) % 3 == 1
    wanted = cross_validation.squared_errors((x[~held], y[~held]), (x[held], y[held]), 2, 0.01).mean()
    assert found.shape == (3, 2)
    assert found[1, 1] == pytest.approx(wanted)


def test_the_leaderboard_s_winner_is_the_luckiest_of_equals():
    public, private = cross_validation.leaderboard(
        np.random.default_rng(0).normal(size=2000), 100, (1, 500), np.random.default_rng(1)
    )
    assert public[1] < 0.8
    assert private[1] == pytest.approx(1, abs=0.1)
    assert public[1] <= public[0]


# all of them, end to end

TINY = {
    "overfitting": {"sizes": (50, 100), "nets": {"linear": [], "2": [2], "8": [8]}, "steps": 4},
    "cross_validation": {"repeats": 2, "features": (1, 5), "submissions": (1, 10)},
}


@pytest.mark.parametrize("name", TINY)
def test_a_study_runs_is_judged_drawn_and_told(name, covid):
    check_study(name, TINY[name], covid)
