"""Encoders of frames: nothing of the padding, neither its amount nor what stands in it, reaches a valid frame."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.nets.frame_encoders import ConformerFrames, TransformerFrames, stacked

SMALL = {"d_model": 8, "heads": 2, "d_ff": 12, "layers": 2, "dropout": 0.3}
ENCODERS = {
    f"transformer, {norm}, {positions}": functools.partial(TransformerFrames, norm=norm, positions=positions, **SMALL)
    for norm in ("pre", "post")
    for positions in ("sinusoidal", "learned", "none")
} | {
    f"conformer, relative={relative}": functools.partial(ConformerFrames, kernel=5, relative=relative, **SMALL)
    for relative in (False, True)
}
ENCODERS |= {f"conformer, stride={n}": functools.partial(ConformerFrames, kernel=3, stride=n, **SMALL) for n in (2, 3)}


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
    stride = getattr(net, "stride", 1)
    assert found.shape == (len(lengths), math.ceil(length / stride), net.out)
    for i, n in enumerate(lengths):
        alone = net(x[i : i + 1, :n])[0]
        assert len(alone) == mask[i, ::stride].sum()
        torch.testing.assert_close(found[i, : len(alone)], alone)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_gets_no_gradient_in_training(name):
    net = new(name)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    net(x, mask)[mask[:, :: getattr(net, "stride", 1)]].square().sum().backward()
    assert not x.grad[~mask].any()
    assert (x.grad[mask].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("name", "knows"), [(name, not name.endswith("none")) for name in ENCODERS if "stride" not in name]
)
def test_who_knows_the_order_of_the_frames(name, knows):
    net = new(name).eval()
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    assert torch.allclose(net(x.flip(1)).flip(1), net(x)) is not knows


@settings(max_examples=30)
@given(length=st.integers(1, 9), stride=st.integers(1, 4))
def test_a_linear_layer_of_stacked_frames_is_a_convolution_with_a_stride(length, stride):
    kernel = 2 * stride - 1
    x, weight = torch.randn(2, length, 3), torch.randn(5, 3, kernel)
    expected = F.conv1d(x.mT, weight, stride=stride, padding=stride - 1).mT
    torch.testing.assert_close(stacked(x, stride) @ weight.flatten(1).T, expected)


def test_a_stride_below_one_is_refused():
    with pytest.raises(ValueError, match="stride=0 must be at least 1"):
        ConformerFrames(3, stride=0)
