"""The member networks against torch.nn, one network at a time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.nets.mlp import ACTIVATIONS, MLP, MemberBatchNorm, MemberLinear


def member_as_torch(mlp: MLP, m: int) -> nn.Sequential:
    """The m-th member as a plain torch.nn network with copied weights."""
    layers: list[nn.Module] = []
    for part in mlp:
        linear = part if isinstance(part, MemberLinear) else part.linear
        plain = nn.Linear(linear.weight.shape[1], linear.weight.shape[2])
        plain.weight.data, plain.bias.data = linear.weight[m].T.clone(), linear.bias[m, 0].clone()
        layers.append(plain)
        if not isinstance(part, MemberLinear):
            if isinstance(part.norm, MemberBatchNorm):
                norm = nn.BatchNorm1d(plain.out_features)
                chosen = slice(m * plain.out_features, (m + 1) * plain.out_features)
                norm.weight.data = part.norm.norm.weight.data[chosen].clone()
                norm.bias.data = part.norm.norm.bias.data[chosen].clone()
                layers.append(norm)
            layers.append(copy.deepcopy(part.activation))
    return nn.Sequential(*layers)


@settings(max_examples=30, deadline=None)
@given(
    members=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    norm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_each_member_equals_its_torch_network(members, hidden, activation, norm, seed):
    torch.manual_seed(seed)
    mlp = MLP(members, 5, 2, hidden, activation, batch_norm=norm)
    x = torch.randn(members, 7, 5)
    plain = [member_as_torch(mlp, m) for m in range(members)]
    for train in (True, False):  # training mode also moves the running statistics that the second pass uses
        out = mlp.train(train)(x)
        for m, net in enumerate(plain):
            torch.testing.assert_close(out[m], net.train(train)(x[m]), atol=1e-5, rtol=1e-4)


def test_initial_weights_have_the_bounds_of_torch_linear():
    torch.manual_seed(0)
    ours, theirs = MemberLinear(50, 16, 8), nn.Linear(16, 8)
    assert ours.weight.abs().max() <= 0.25
    assert ours.weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.03)
    assert theirs.weight.abs().max() <= 0.25


def test_one_hidden_layer_of_sigmoids_is_the_notes_sum():
    torch.manual_seed(0)
    k = 10
    mlp = MLP(1, 1, 1, [k], "sigmoid")
    w, b_i = mlp[0].linear.weight[0, 0], mlp[0].linear.bias[0, 0]
    c, b = mlp[1].weight[0, :, 0], mlp[1].bias[0, 0, 0]
    for x in (-3.0, 0.0, 1.7):
        expected = b + sum(c[i] / (1 + torch.exp(-(b_i[i] + w[i] * x))) for i in range(k))
        torch.testing.assert_close(mlp(torch.full((1, 1, 1), x))[0, 0, 0], expected)


@pytest.mark.parametrize(
    ("sizes", "hidden", "expected"), [(93, [64], 6081), (117, [16, 8], 2033), (116, [16, 8], 2017)]
)
def test_parameter_counts_of_the_course_samples(sizes, hidden, expected):
    assert sum(p.numel() for p in MLP(1, sizes, 1, hidden).parameters()) == expected


def test_residual_adds_the_input_where_widths_agree():
    torch.manual_seed(0)
    plain, residual = (MLP(2, 4, 1, [4, 4, 3], residual=r) for r in (False, True))
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 4)
    first = x + plain[0](x)
    second = first + plain[1](first)
    torch.testing.assert_close(residual(x), plain[3](plain[2](second)))  # 4 -> 3 has nothing to add


def test_training_together_equals_training_apart():
    torch.manual_seed(0)
    together = MLP(3, 4, 1, [8], "tanh")
    apart = [member_as_torch(together, m) for m in range(3)]
    x, y = torch.randn(3, 20, 4), torch.randn(3, 20)
    one = torch.optim.Adam(together.parameters(), lr=0.01)
    many = [torch.optim.Adam(net.parameters(), lr=0.01) for net in apart]
    for _ in range(20):
        one.zero_grad()
        (together(x).squeeze(-1) - y).square().mean(1).sum().backward()
        one.step()
        for m, (net, optimizer) in enumerate(zip(apart, many, strict=True)):
            optimizer.zero_grad()
            (net(x[m]).squeeze(-1) - y[m]).square().mean().backward()
            optimizer.step()
    for m, net in enumerate(apart):
        torch.testing.assert_close(together(x)[m], net(x[m]), atol=1e-5, rtol=1e-4)
