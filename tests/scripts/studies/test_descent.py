"""Studies of functions, surfaces and descent: their maths, and each of them run with tiny settings."""

import math

import numpy as np
import pytest
import torch
from conftest import check_study
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modules.nets.mlp import MLP
from scripts.studies import adaptive_rates, critical_points, loss_surface, momentum, sigmoids

pytestmark = pytest.mark.slow

seeds = st.integers(0, 10**6)


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
    assert adaptive_rates.late_jump(torch.tensor([[0.0, h] for h in heights])) == pytest.approx(10)
    assert adaptive_rates.late_jump(torch.tensor([[0.0, 1.0], [0.0, 0.5]])) == 1


# all of them, end to end

TINY = {
    "sigmoids": {"counts": (2, 4, 8), "steps": 3},
    "general_guide": {"depths": (1, 3), "width": 4, "epochs": 1},
    "critical_points": {"widths": (1, 2), "starts": 6, "iterations": 20},
    "loss_surface": {"depth": 2, "width": 4, "epochs": 1, "points": 5, "used_rows": 20},
    "momentum": {"landscapes": 4, "steps": 20},
    "adaptive_rates": {"steps": 40, "rates": (0.05, 0.1)},
}


@pytest.mark.parametrize("name", TINY)
def test_a_study_runs_is_judged_drawn_and_told(name, covid):
    check_study(name, TINY[name], covid)
