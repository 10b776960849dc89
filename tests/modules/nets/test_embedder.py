"""Embedder: encoder, pooling and last layer in their order, as computed by hand; its width."""

import pytest
import torch
from torch import nn

from modules.nets.embedder import Embedder
from modules.nets.pooling import POOLINGS


class Linear(nn.Module):
    """The plainest encoder."""

    def __init__(self, out=6):
        super().__init__()
        self.linear, self.out = nn.Linear(4, out), out

    def forward(self, x, mask=None):
        return self.linear(x)


def embedder(pooling="mean", **options):
    torch.manual_seed(0)
    return Embedder(Linear(), POOLINGS[pooling](6), **options)


@pytest.mark.parametrize("hidden", [None, 5])
def test_it_is_the_last_layer_of_the_mean_of_the_valid_frames(hidden):
    net = embedder(hidden=hidden, dropout=0.5).eval()
    x, lengths = torch.randn(3, 7, 4), [7, 2, 5]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    expected = torch.stack([net.encoder.linear(row[:n]).mean(0) for row, n in zip(x, lengths, strict=True)])
    if hidden:
        expected = (expected @ net.last[0].weight.T + net.last[0].bias).clamp(min=0)
    torch.testing.assert_close(net(x, mask), expected)
    assert net(x, mask).shape == (3, net.out)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("hidden", [None, 5])
def test_out_is_the_width(pooling, hidden):
    net = embedder(pooling, hidden=hidden)
    assert net(torch.randn(2, 3, 4)).shape == (2, net.out)
    assert net.out == (hidden or (12 if pooling == "statistics" else 6))


def test_dropout_is_of_the_embedding_and_in_training_alone():
    net, x = embedder(dropout=0.5), torch.randn(200, 3, 4)
    plain = net.eval()(x)
    found = net.train()(x)
    dropped = found == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(found[~dropped], 2 * plain[~dropped])
