"""Weights cast once a step: losses and gradients as under autocast alone, and the parameters stay as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.cast_weights import weights_cast
from modules.nets.attention import padding_mask
from modules.nets.frame_encoders import ConformerFrames


def _net() -> ConformerFrames:
    torch.manual_seed(0)
    return ConformerFrames(5, 8, 2, 16, layers=2, dropout=0.0, kernel=3)


def _step(net: nn.Module, cast: bool) -> tuple[Tensor, list[Tensor]]:
    x, mask = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1)), padding_mask(torch.tensor([6, 4]), 6)
    parameters = list(net.parameters())

    def loss() -> Tensor:
        return net(x, mask)[mask].float().square().sum()

    with torch.autocast("cpu", torch.bfloat16):
        if not cast:
            found = loss()
        else:
            with weights_cast(net, torch.bfloat16):
                found = loss()
    return found, list(torch.autograd.grad(found, parameters))


def test_losses_and_gradients_are_those_of_autocast() -> None:
    (plain, expected), (cast, found) = _step(_net(), False), _step(_net(), True)
    assert torch.equal(plain, cast)
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b, a, rtol=0.02, atol=1e-4)


def test_parameters_come_back_also_after_an_error() -> None:
    net = _net()
    before: dict[str, Any] = dict(net.named_parameters())
    with weights_cast(net, torch.bfloat16):
        assert net.prenet.weight.dtype == torch.bfloat16
        assert net.encoder.layers[0].norm.weight.dtype == torch.float32
    with pytest.raises(RuntimeError), weights_cast(net, torch.bfloat16):
        net(torch.zeros(1, 2, 99))  # frames of another width
    assert all(parameter is before[name] for name, parameter in net.named_parameters())


def test_it_can_be_differentiated_twice() -> None:
    net = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    with weights_cast(net, torch.bfloat16):
        loss = net(x.bfloat16()).float().square().sum()
    (gradient,) = torch.autograd.grad(loss, net.weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), net.weight)
    torch.testing.assert_close(second, (2 * x.T @ x).sum(0).expand(2, 3), rtol=0.05, atol=0.1)
