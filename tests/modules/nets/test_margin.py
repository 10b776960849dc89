"""Margin softmax against the closed forms of its papers, from angles; its gradients, at the poles too."""

import math
from itertools import pairwise

import pytest
import torch

from modules.nets.margin import MarginSoftmax

KINDS = ["additive", "angular"]


def head(kind, margin=0.35, scale=30.0, d=5, classes=4):
    torch.manual_seed(0)
    return MarginSoftmax(d, classes, scale, margin, kind).double()


def at_angle(theta, length=2.0):
    """An embedding and a head of two classes in the plane; the angle to class 0 is theta."""
    module = head("angular", d=2, classes=2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    x = length * torch.tensor([[math.cos(theta), math.sin(theta)]], dtype=torch.float64)
    return module, x.requires_grad_()


def test_without_targets_it_is_scaled_cosines():
    module, x = head("angular", scale=12.0), torch.randn(6, 5, dtype=torch.float64)
    expected = torch.empty(6, 4, dtype=torch.float64)
    for b in range(6):
        for c in range(4):
            w = module.weight[c].detach()
            expected[b, c] = 12 * (x[b] @ w) / math.sqrt((x[b] @ x[b]) * (w @ w))
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(7 * x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_the_margin_is_on_the_target_alone(kind, margin):
    module, x = head(kind, margin, 20.0, d=2), torch.randn(200, 2, dtype=torch.float64)
    target = torch.arange(200) % 4
    plain, logits = module(x), module(x, target)
    chosen = torch.nn.functional.one_hot(target, 4).bool()
    torch.testing.assert_close(logits[~chosen], plain[~chosen])
    theta = (plain[chosen] / 20).arccos()
    if kind == "additive":
        torch.testing.assert_close(logits[chosen], 20 * (theta.cos() - margin))
    else:
        near = theta + margin < math.pi
        assert 100 < near.sum() < 200 or margin == 0
        torch.testing.assert_close(logits[chosen][near], 20 * (theta + margin).cos()[near])
        past = theta.cos() - margin * math.sin(margin)
        torch.testing.assert_close(logits[chosen][~near], 20 * past[~near])


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_centres_the_nearest_counts_and_learns(kind):
    torch.manual_seed(0)
    module = MarginSoftmax(5, 4, 20.0, 0.3, kind, centres=3).double()
    x, target = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    logits, nearest = module(x, target), []
    for b in range(6):
        for c in range(4):
            own = module.weight[3 * c : 3 * c + 3]
            values = [
                MarginSoftmax.forward(one_of(w, kind), x[b : b + 1], (target[b : b + 1] != c).long()) for w in own
            ]
            best = max(range(3), key=lambda k: values[k][0, 0].item())
            nearest.append(3 * c + best)
            torch.testing.assert_close(logits[b, c], values[best][0, 0])
    logits.sum().backward()
    assert {k for k, row in enumerate(module.weight.grad) if row.any()} == set(nearest)


def one_of(centre, kind):
    """A head whose class 0 has this centre alone; class 1 is somewhere."""
    module = MarginSoftmax(len(centre), 2, 20.0, 0.3, kind).double()
    with torch.no_grad():
        module.weight[0].copy_(centre)
    return module


def test_the_angular_logit_falls_from_0_to_pi():
    logits = []
    for theta in torch.linspace(0, math.pi, 200).tolist():
        module, x = at_angle(theta)
        logits.append(module(x, torch.tensor([0]))[0, 0].item())
    assert all(a > b for a, b in pairwise(logits))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind):
    module, target = head(kind, 0.5), torch.tensor([0, 3, 1])
    x = torch.randn(3, 5, dtype=torch.float64)
    x[2] = -module.weight[1].detach() + 0.1 * x[2]  # beyond pi - m
    assert module(x)[2, 1] < -30 * math.cos(0.5)
    weight = module.weight.detach().clone().requires_grad_()

    def logits(x, weight):
        return torch.func.functional_call(module, {"weight": weight}, (x, target))

    assert torch.autograd.gradcheck(logits, (x.requires_grad_(), weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("off", [0.0, 1e-8, 1e-5, 1e-3])
@pytest.mark.parametrize("pole", [0.0, math.pi])
def test_gradients_at_the_poles_are_finite_and_small(kind, dtype, off, pole):
    module, x = at_angle(pole + off)
    module.kind = kind
    x = x.detach().to(dtype).requires_grad_()
    module.to(dtype)(x, torch.tensor([0])).sum().backward()
    for grad in (x.grad, module.weight.grad):
        assert grad.isfinite().all()
        assert grad.abs().max() < 100  # no cosine changes faster than 1 / length, times the scale of 30


@pytest.mark.parametrize("theta", [0.01, 0.5, 2.0])
def test_the_angular_gradient_is_that_of_the_angle(theta):
    module, x = at_angle(theta)
    module(x, torch.tensor([0]))[0, 0].backward()
    turned = torch.tensor([-math.sin(theta), math.cos(theta)], dtype=torch.float64)  # d theta = dx / length
    torch.testing.assert_close(x.grad[0], -30 * math.sin(theta + 0.35) / 2 * turned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aimed", [False, True])
def test_several_heads_at_once_are_each_alone(kind, aimed):
    heads = [head(kind), head(kind)]
    torch.nn.init.normal_(heads[1].weight)
    x, target = torch.randn(2, 6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1]) if aimed else None
    together = heads[0].logits(x, torch.stack([h.weight for h in heads]), target)
    torch.testing.assert_close(together, torch.stack([h(e, target) for h, e in zip(heads, x, strict=True)]))


def test_cosines_stay_exact_under_autocast():
    module, x, target = head("angular", 0.5).float(), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, target)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x, target), out)
    torch.testing.assert_close(out.double(), module.double()(x.double(), target), atol=1e-4, rtol=1e-4)
