"""What the studies compute, against closed forms and other libraries; and each of them run with tiny settings."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ran_study
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import nn

from datamodules.generated import write_covid
from datamodules.hw1_covid import CovidData
from modules.nets.mlp import MLP
from scripts.studies import (
    adaptive_rates,
    critical_points,
    cross_validation,
    loss_surface,
    momentum,
    overfitting,
    sigmoids,
)
from scripts.studies.lab import machine
from scripts.studies.lab.fit import Curve, Errors, errors, fit, regressor, rows

pytestmark = pytest.mark.slow

seeds = st.integers(0, 10**6)


@pytest.fixture(scope="session")
def covid(tmp_path_factory):
    """Root of the generated set, whole."""
    root = tmp_path_factory.mktemp("covid")
    write_covid(root / "hw1_covid" / "sample")
    return root


# 1 sigmoids


def test_the_sum_of_sigmoids_is_the_notes_formula():
    x, y = sigmoids.random_function(0)
    net = sigmoids.built(x, y, 6)
    (w, b), (c, last) = ((p.weight.detach().numpy()[0], p.bias.detach().numpy()[0]) for p in (net[0].linear, net[1]))
    by_hand = last[0] + sum(c[i, 0] / (1 + np.exp(-(b[0, i] + w[0, i] * x.numpy()))) for i in range(6))
    np.testing.assert_allclose(net(x.view(1, -1, 1)).detach().view(-1).numpy(), by_hand, atol=1e-10)


def test_heights_are_the_least_squares():
    x, y = sigmoids.random_function(3)
    net = sigmoids.built(x, y, 8)
    (net(x.view(1, -1, 1)).view(-1) - y).square().sum().backward()
    assert float(net[1].weight.grad.abs().max()) < 1e-6
    assert float(net[1].bias.grad.abs().max()) < 1e-6


@given(seed=st.integers(0, 1000))
def test_the_functions_are_continuous_and_fill_their_range(seed):
    _, y = sigmoids.random_function(seed)
    assert (float(y.min()), float(y.max())) == pytest.approx((-1, 1))
    assert float(y.diff().abs().max()) < 0.4


# 3 critical points


def test_derivatives_of_nets_side_by_side_equal_torch_func():
    torch.manual_seed(0)
    net = MLP(3, 1, 1, [2], "tanh").double()
    x, y = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
    loss, gradient, hessian = critical_points.derivatives(net, x, y, 0.01)
    for member in range(3):
        numbers = torch.cat([p[member].detach().reshape(-1) for p in net.parameters()])

        def at(w):
            inner, bias, outer, last = w[:2], w[2:4], w[4:6], w[6]
            said = torch.tanh(x.unsqueeze(1) * inner + bias) @ outer + last
            return (said - y).square().mean() + 0.01 * w.square().sum()

        torch.testing.assert_close(loss[member], at(numbers))
        torch.testing.assert_close(gradient[member], torch.func.grad(at)(numbers))
        torch.testing.assert_close(hessian[member], torch.func.hessian(at)(numbers))


def test_the_search_ends_where_the_gradient_is_zero():
    _, norm, values = critical_points.critical_points(1, 20, 80, 5e-3, 0)
    assert (norm < 1e-8).sum() >= 4
    assert values.shape == (20, 4)


# 4 loss surface


def test_directions_are_as_long_as_each_unit_and_leave_biases_alone():
    net = MLP(1, 5, 1, [4, 4])
    direction = loss_surface.filter_normalised(net, torch.Generator().manual_seed(0))
    for (name, parameter), part in zip(net.named_parameters(), direction, strict=True):
        if "bias" in name:
            assert not part.any()
        else:
            torch.testing.assert_close(part.norm(dim=1), parameter.detach().norm(dim=1))


def test_a_slice_goes_through_the_net_and_leaves_it_as_it_was():
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    before = [p.detach().clone() for p in net.parameters()]
    x, y = torch.randn(10, 2), torch.randn(10, 1)
    directions = [[torch.tensor([[1.0, 0.0]]), torch.zeros(1)], [torch.tensor([[0.0, 1.0]]), torch.ones(1)]]
    steps = np.linspace(-1, 1, 3)
    losses = loss_surface.slice_of(net, x, y, directions, steps)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    for i, a in enumerate(steps):
        for j, b in enumerate(steps):
            weight, bias = before[0] + torch.tensor([[a, b]]).float(), before[1] + float(b)
            assert losses[i, j] == pytest.approx(float((x @ weight.T + bias - y).square().mean()), rel=1e-5)


def test_bowls_saddles_and_waves():
    a, b = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21))
    assert loss_surface.bent_down(a**2 + 3 * b**2 + a * b, 0.1) == 0
    assert loss_surface.bent_down(a**2 - b**2, 0.1) == 1
    assert loss_surface.bent_down(a**2 + 0 * b, 0.1) == 0, "a valley without a slope is no saddle"
    assert loss_surface.pits(a**2 + b**2) == 1
    assert loss_surface.pits(a**2 - b**2) == 0
    assert loss_surface.pits(np.cos(2 * np.pi * a) * np.cos(2 * np.pi * b)) == 4


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


# 8 momentum


@given(momentum_=st.floats(0, 0.99), rate=st.floats(1e-4, 0.1))
def test_the_notes_recursion_is_torch_s_while_the_rate_is_constant(momentum_, rate):
    assert momentum.compare_with_torch([rate] * 30, momentum_) < 1e-12


def test_after_a_change_of_rate_the_memory_keeps_its_own():
    theta, movement = torch.zeros(1), torch.zeros(1)
    for rate in (1.0, 0.0):  # g = 1, then the rate falls to nothing: the notes go on, torch stands still
        theta, movement = momentum.notes_step(theta, movement, torch.ones(1), 0.5, rate)
    assert float(theta) == -1.5
    other = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([other], lr=1.0, momentum=0.5)
    for rate in (1.0, 0.0):
        optimizer.param_groups[0]["lr"] = rate
        other.grad = torch.ones(1)
        optimizer.step()
    assert float(other.detach()) == -1.0


def test_descent_on_a_landscape_is_descent():
    land = momentum.random_landscapes(4, torch.Generator().manual_seed(0))
    places = momentum.descend(land, torch.full((4,), -2.0).double(), 0.0, 0.01, 50)
    heights = torch.stack([land(p) for p in places])
    assert places.shape == (51, 4)
    assert (heights.diff(dim=0) <= 1e-12).all()


# 9 adaptive rates


@pytest.mark.parametrize("name", adaptive_rates.TORCH)
@given(seed=seeds, rate=st.floats(1e-4, 0.5))
def test_rules_of_the_notes_are_torch_s_optimisers(name, seed, rate):
    gradients = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place, rule = torch.zeros(3, dtype=torch.float64), adaptive_rates.RULES[name](rate)
    other = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = adaptive_rates.TORCH[name]([other], rate)
    for gradient in gradients:
        place = place + rule(gradient)
        other.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(place, other.detach(), rtol=1e-9, atol=1e-9)


@given(seed=seeds)
def test_the_lecture_s_mean_with_a_decaying_rate_is_adagrad_s_sum(seed):
    gradients = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, other = adaptive_rates.adagrad(0.1), adaptive_rates.mean_adagrad(0.1, decay=True)
    for gradient in gradients:
        torch.testing.assert_close(one(gradient), other(gradient), rtol=1e-6, atol=1e-9)


def test_arrival_is_where_a_path_stays():
    path = torch.tensor([[1.0, 0.0], [0.001, 0.0], [0.5, 0.0], [0.001, 0.0], [0.002, 0.0]])
    assert adaptive_rates.steps_to(path, 0.01) == 3
    assert adaptive_rates.steps_to(path, 2.0) == 0
    assert adaptive_rates.steps_to(path, 1e-6) == len(path)
    assert adaptive_rates.steps_to(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), 0.01) == 2


def test_a_late_jump_is_measured_from_one_per_cent_of_the_start():
    heights = [1.0, 0.5, 0.005, 0.001, 0.1, 0.01]
    assert adaptive_rates.late_jump(torch.tensor([[0.0, h] for h in heights])) == pytest.approx(1)
    assert adaptive_rates.late_jump(torch.tensor([[0.0, 1.0], [0.0, 0.5]])) == 0


# all of them, end to end

TINY = {
    "sigmoids": {"counts": (2, 4, 8), "steps": 3},
    "general_guide": {"depths": (1, 3), "width": 4, "epochs": 1},
    "critical_points": {"widths": (1, 2), "starts": 6, "iterations": 20},
    "loss_surface": {"depth": 2, "width": 4, "epochs": 1, "points": 5, "used_rows": 20},
    "overfitting": {"sizes": (50, 100), "nets": {"linear": [], "2": [2], "8": [8]}, "steps": 4},
    "cross_validation": {"repeats": 2, "features": (1, 5), "submissions": (1, 10)},
    "momentum": {"landscapes": 4, "steps": 20},
    "adaptive_rates": {"steps": 40, "rates": (0.05, 0.1)},
}


@pytest.mark.parametrize("name", TINY)
def test_a_study_runs_is_judged_drawn_and_told(name, covid, monkeypatch, tmp_path):
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    study = machine.load(name)
    tiny = replace(study.quick, **TINY[name])
    found = ran_study(name, tiny, covid)
    again = machine.measure(name, study, tiny, 0, covid)[0]
    assert again == found[0]
