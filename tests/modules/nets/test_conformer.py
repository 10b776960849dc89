"""The Conformer block: its formulas written out, and that padding is nowhere to be felt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.nets.attention import padding_mask
from modules.nets.conformer import ConformerBlock, ConvolutionModule, MaskedBatchNorm
from modules.nets.transformer import Encoder

D, HEADS, FF, KERNEL = 6, 2, 10, 5


def randomised(module):
    """All weights and statistics random, in float64."""
    torch.manual_seed(1)
    for name, value in module.state_dict().items():
        nn.init.uniform_(value, 0.5, 2.0) if "running_var" in name else nn.init.normal_(value, std=0.5)
    return module.double()


def block(**options):
    return randomised(ConformerBlock(D, HEADS, FF, 0.0, KERNEL, **options))


@pytest.mark.parametrize("masked", [False, True])
def test_masked_batch_norm_equals_torch_on_the_valid_frames(masked):
    ours, theirs = MaskedBatchNorm(D).double(), nn.BatchNorm1d(D).double()
    nn.init.normal_(ours.weight), nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict() | {"num_batches_tracked": torch.tensor(0)})
    valid = padding_mask(torch.tensor([4, 1, 6]), 6) if masked else torch.ones(3, 6, dtype=torch.bool)
    for step in range(4):
        ours.train(step < 3), theirs.train(step < 3)  # in the end on the running statistics
        x = 3 * torch.randn(3, 6, D, dtype=torch.float64) + 7
        x.requires_grad_()
        out, expected = ours(x, valid if masked else None)[valid], theirs(x[valid])
        torch.testing.assert_close(out, expected)
        noise = torch.randn_like(out)
        torch.testing.assert_close(*(torch.autograd.grad((y * noise).sum(), x)[0] for y in (out, expected)))
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_masked_batch_norm_of_one_frame_or_none_is_finite():
    norm, x = MaskedBatchNorm(D), torch.randn(2, 3, D, requires_grad=True)
    for lengths in ([1, 0], [0, 0]):
        norm(x, padding_mask(torch.tensor(lengths), 3)).sum().backward()
    assert x.grad.isfinite().all()
    assert norm.running_var.isfinite().all()


def test_masked_batch_norm_can_be_differentiated_twice():
    norm, valid = MaskedBatchNorm(3).double(), padding_mask(torch.tensor([4, 2]), 4)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    for mask in (valid, None):
        assert torch.autograd.gradcheck(lambda x, mask=mask: norm(x, mask), x)
        assert torch.autograd.gradgradcheck(lambda x, mask=mask: norm(x, mask), x)


def test_convolution_module_is_its_formula():
    module = randomised(ConvolutionModule(D, KERNEL, 0.0)).eval()
    weights = module.state_dict()
    x = torch.randn(1, 7, D, dtype=torch.float64)
    y = (x[0] - x[0].mean(1, keepdim=True)) / (x[0].var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    y = y * weights["layer_norm.weight"] + weights["layer_norm.bias"]
    y = y @ weights["pointwise1.weight"].T + weights["pointwise1.bias"]
    y = y[:, :D] / (1 + torch.exp(-y[:, D:]))
    convolved = weights["depthwise.bias"].repeat(7, 1)
    for t in range(7):
        for k in range(KERNEL):
            if 0 <= t + k - KERNEL // 2 < 7:
                convolved[t] += weights["depthwise.weight"][:, 0, k] * y[t + k - KERNEL // 2]
    y = (convolved - weights["batch_norm.running_mean"]) / (weights["batch_norm.running_var"] + 1e-5).sqrt()
    y = y * weights["batch_norm.weight"] + weights["batch_norm.bias"]
    y = y / (1 + torch.exp(-y))
    y = y @ weights["pointwise2.weight"].T + weights["pointwise2.bias"]
    torch.testing.assert_close(module(x)[0], y)


@pytest.mark.parametrize("relative", [False, True])
def test_block_is_equation_1(relative):
    net, x = block(relative=relative).eval(), torch.randn(2, 7, D, dtype=torch.float64)
    valid = padding_mask(torch.tensor([7, 4]), 7)
    a = x + 0.5 * net.feed_forward1(x)
    b = a + net.attention(net.attention_norm(a), mask=valid[:, None, None])
    c = b + net.convolution(b, valid)
    d = c + 0.5 * net.feed_forward2(c)
    mean, var = d.mean(-1, keepdim=True), d.var(-1, correction=0, keepdim=True)
    torch.testing.assert_close(net(x, valid), (d - mean) / (var + 1e-5).sqrt() * net.norm.weight + net.norm.bias)
    ff = net.feed_forward1
    hidden = ff[1](ff[0](x))
    torch.testing.assert_close(ff(x), ff[4](hidden * hidden.sigmoid()))
    assert (net.attention.relative is not None) == relative


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    more=st.integers(1, 6),
    training=st.booleans(),
    relative=st.booleans(),
)
def test_padding_changes_nothing(lengths, more, training, relative):
    net = Encoder([block(relative=relative), block(relative=relative)]).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    total = max(lengths)
    x = torch.randn(len(lengths), total, D, dtype=torch.float64)
    valid = padding_mask(torch.tensor(lengths), total)
    expected = net(x, valid)[valid]
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    moved = "layers.0.convolution.batch_norm.running_mean"
    assert torch.equal(statistics[moved], before[moved]) != training
    net.load_state_dict(before)
    junk = 100 * torch.randn(len(lengths), total + more, D, dtype=torch.float64)
    junk[:, :total] = torch.where(valid[..., None], x, junk[:, :total])
    longer = padding_mask(torch.tensor(lengths), total + more)
    torch.testing.assert_close(net(junk, longer)[longer], expected)
    torch.testing.assert_close(net.state_dict(), statistics)
    if not training:
        for row, n in enumerate(lengths):
            torch.testing.assert_close(net(x[row : row + 1, :n])[0], net(x, valid)[row, :n])


def test_shapes():
    net = ConformerBlock(D, HEADS, FF, kernel=KERNEL)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if p.dim() > 1}
    assert shapes == {
        "feed_forward1.1.weight": (FF, D),
        "feed_forward1.4.weight": (D, FF),
        "attention.in_proj_weight": (3 * D, D),
        "attention.out_proj.weight": (D, D),
        "attention.relative.project.weight": (D, D),
        "attention.relative.content_bias": (HEADS, 1, D // HEADS),
        "attention.relative.position_bias": (HEADS, 1, D // HEADS),
        "convolution.pointwise1.weight": (2 * D, D),
        "convolution.depthwise.weight": (D, 1, KERNEL),
        "convolution.pointwise2.weight": (D, D),
        "feed_forward2.1.weight": (FF, D),
        "feed_forward2.4.weight": (D, FF),
    }
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        ConformerBlock(D, HEADS, FF, kernel=4)


def test_dropout_acts_in_training_only():
    net, x = ConformerBlock(D, HEADS, FF, 0.5), torch.randn(1, 4, D)
    assert sum(part.p == 0.5 for part in net.modules() if isinstance(part, nn.Dropout)) == 6  # figures 2 to 4
    assert net.attention.dropout == 0.5
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    full = ConformerBlock(D, HEADS, FF, 1.0)
    full.attention.dropout = 0.0  # SDPA divides by 1 - p
    torch.testing.assert_close(full(x), full.norm(x))  # every part ends with dropout


def test_compiles_in_one_piece_and_runs_in_bfloat16():
    net = block().float()
    x, valid = torch.randn(2, 6, D), padding_mask(torch.tensor([6, 3]), 6)
    expected = net(x, valid)[valid]
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, valid)[valid], expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, valid)[valid]
    torch.testing.assert_close(low.float(), expected, atol=0.15, rtol=0.1)
    low.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_gradient():
    net, valid = block(), padding_mask(torch.tensor([3, 2]), 3)
    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x, valid)[valid], x)
