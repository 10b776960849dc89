"""Encoders of frames: nothing of the padding, neither its amount nor what stands in it, reaches a valid frame."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.nets.frame_encoders import ConformerFrames, TransformerFrames

SMALL = {"d_model": 8, "heads": 2, "d_ff": 12, "layers": 2, "dropout": 0.3}
ENCODERS = {
    f"transformer, {norm}, {positions}": functools.partial(TransformerFrames, norm=norm, positions=positions, **SMALL)
    for norm in ("pre", "post")
    for positions in ("sinusoidal", "learned", "none")
} | {
    f"conformer, relative={relative}": functools.partial(ConformerFrames, kernel=5, relative=relative, **SMALL)
    for relative in (False, True)
}


def new(name, features=3):
    torch.manual_seed(0)
    net = ENCODERS[name](features).double()
    for parameter in net.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3), extra=st.integers(0, 4), junk=st.floats(-1e3, 1e3))
def test_padding_reaches_no_valid_frame(name, lengths, extra, junk):
    net = new(name).eval()
    length = max(lengths) + extra
    x = torch.randn(len(lengths), length, 3, dtype=torch.float64)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    found = net(torch.where(mask[..., None], x, junk), mask)
    assert found.shape == (len(lengths), length, net.out)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(found[i, :n], net(x[i : i + 1, :n])[0])


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_gets_no_gradient_in_training(name):
    net = new(name)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    net(x, mask)[mask].square().sum().backward()
    assert not x.grad[~mask].any()
    assert (x.grad[mask].abs().sum(1) > 0).all()


@pytest.mark.parametrize(("name", "knows"), [(name, not name.endswith("none")) for name in ENCODERS])
def test_who_knows_the_order_of_the_frames(name, knows):
    net = new(name).eval()
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    assert torch.allclose(net(x.flip(1)).flip(1), net(x)) is not knows
