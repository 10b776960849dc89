"""WindowMLP: the course's sample networks, to the parameter, and equal to what torch.nn gives when put together."""

import pytest
import torch
from torch import nn

from modules.nets.mlp import ACTIVATIONS
from modules.nets.window_mlp import WindowMLP


@pytest.mark.parametrize(
    ("features", "hidden", "classes", "count"),
    [
        (39, (256, 256), 41, 86_569),  # 2022, as the course prints it
        (429, (1024, 512, 128), 39, 429 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 128 + 128 + 128 * 39 + 39),  # 2021
    ],
)
def test_parameters_of_the_samples(features, hidden, classes, count):
    net = WindowMLP(features, hidden)
    whole = nn.Sequential(net, nn.Linear(net.out, classes))
    assert sum(p.numel() for p in whole.parameters()) == count


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_linear_norm_activation_dropout(activation, batch_norm, training):
    torch.manual_seed(0)
    net = WindowMLP(3 * 4, (7, 5), activation, batch_norm, 0.4).train(training)
    norm = [[nn.BatchNorm1d(7)], [nn.BatchNorm1d(5)]] if batch_norm else [[], []]
    act = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[activation]
    plain = nn.Sequential(
        nn.Linear(12, 7), *norm[0], act(), nn.Dropout(0.4), nn.Linear(7, 5), *norm[1], act(), nn.Dropout(0.4)
    ).train(training)
    for mine, other in zip(plain.parameters(), net.parameters(), strict=True):
        mine.data.normal_()
        other.data.copy_(mine)
    x = torch.randn(6, 3, 4)
    torch.manual_seed(1)
    expected = plain(torch.cat([x[:, i] for i in range(3)], 1))
    torch.manual_seed(1)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


def test_no_layer_is_left_out():
    assert [type(layer) for layer in WindowMLP(4, (3,), dropout=0.0)] == [nn.Flatten, nn.Linear, ACTIVATIONS["relu"]]
