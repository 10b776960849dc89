"""The course's CNN: its published size, and that the network without pooling has none."""

import pytest
import torch
from torch import nn

from modules.nets.cnn import CNN


def test_size_of_the_published_sample():
    net = CNN(11)
    assert sum(p.numel() for p in net.parameters()) == 12_833_803
    assert net.features(torch.zeros(1, 3, 128, 128)).shape == (1, 512, 4, 4)  # so that the 4 x 4 grid changes nothing


@pytest.mark.parametrize(
    ("channels", "pools", "grid"), [((4, 6, 8, 10, 12), (2, 2, 2, 2, 2), 4), ((4, 6, 8), (2, 2, 4), 8)]
)
def test_equals_the_samples_written_out(channels, pools, grid):
    torch.manual_seed(0)
    net = CNN(11, channels=channels, hidden=(16, 14), by=pools, grid=grid).eval()
    layers, before = [], 3
    for out, pool in zip(channels, pools, strict=True):
        layers += [nn.Conv2d(before, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(pool, pool, 0)]
        before = out
    linear = [nn.Linear(grid**2 * before, 16), nn.ReLU(), nn.Linear(16, 14), nn.ReLU(), nn.Linear(14, 11)]
    sample = nn.Sequential(*layers, nn.Flatten(), *linear).eval()
    for mine, theirs in zip(net.state_dict().values(), sample.state_dict().values(), strict=True):
        theirs.copy_(mine)
    x = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(net(x), sample(x))


@pytest.mark.parametrize("size", [96, 128, 200])
def test_without_pooling(size):
    net = CNN(11, channels=(4, 6, 8, 10, 12), hidden=(16,), shrink="stride")
    assert not any(isinstance(m, nn.MaxPool2d) for m in net.modules())
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 11)


def test_a_number_for_each_block():
    with pytest.raises(ValueError, match="by has 1 numbers, but channels has 5"):
        CNN(11, by=[2])
