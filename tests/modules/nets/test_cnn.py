"""The course's CNN: its published size, and that the network without pooling has none."""

import pytest
import torch
from torch import nn

from modules.nets.cnn import CNN


def test_size_of_the_published_sample():
    net = CNN(11)
    assert sum(p.numel() for p in net.parameters()) == 12_833_803
    assert net.features(torch.zeros(1, 3, 128, 128)).shape == (1, 512, 4, 4)  # so that the 4 x 4 grid changes nothing


def test_equals_the_sample_written_out():
    torch.manual_seed(0)
    net = CNN(11, channels=(4, 6, 8, 10, 12), hidden=(16, 14)).eval()
    layers, before = [], 3
    for out in (4, 6, 8, 10, 12):
        layers += [nn.Conv2d(before, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2, 2, 0)]
        before = out
    linear = [nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 14), nn.ReLU(), nn.Linear(14, 11)]
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
