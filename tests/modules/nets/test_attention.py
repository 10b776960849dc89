"""Multi-head attention against torch.nn.MultiheadAttention, its cache against the full pass, and what masks promise."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.nets.attention import KVCache, MultiHeadAttention, key_mask, padding_mask
from modules.nets.positions import RelativePositions

D, HEADS = 12, 3


def pair(bias=True):
    """Ours and torch's with the same random weights."""
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(D, HEADS, bias=bias), nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.4)  # biases too
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_padding_mask():
    assert padding_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert key_mask(None) is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_torch(bias, cross, padding, causal):
    ours, theirs = pair(bias)
    x = torch.randn(3, 5, D, requires_grad=True)
    memory = torch.randn(3, 5, D) if cross else None
    valid = padding_mask(torch.tensor([5, 2, 4]), 5) if padding else None
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)  # in torch's masks, True hides
    key = x if memory is None else memory
    expected, weights = theirs(
        x, key, key, key_padding_mask=None if valid is None else ~valid, attn_mask=later if causal else None,
        average_attn_weights=False,
    )  # fmt: skip
    out = ours(x, memory, key_mask(valid), causal)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.weights(x, memory, key_mask(valid), causal), weights, atol=1e-6, rtol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (out, expected)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
    if causal:  # the same as a mask of the caller's
        mask = ~later if valid is None else ~later & key_mask(valid)
        torch.testing.assert_close(ours(x, memory, mask), out)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_is_as_float32_but_for_rounding(cross, padding, causal):
    ours, _ = pair()
    low = copy.deepcopy(ours).bfloat16()
    x, memory = torch.randn(3, 5, D), torch.randn(3, 5, D) if cross else None
    mask = key_mask(padding_mask(torch.tensor([5, 2, 4]), 5)) if padding else None
    expected = ours(x, memory, mask, causal)
    out = low(x.bfloat16(), None if memory is None else memory.bfloat16(), mask, causal)
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_dropout_is_of_the_weights(monkeypatch, causal, padding, relative):
    """In training on a CPU by steps of our own: with nothing dropped, what torch computes in evaluation."""
    shares = []
    monkeypatch.setattr("modules.nets.attention.dropped", lambda weights, p: shares.append(p) or weights)
    positions = RelativePositions(D, HEADS) if relative else None
    net, x = MultiHeadAttention(D, HEADS, 0.3, relative=positions), torch.randn(3, 5, D)
    mask = key_mask(padding_mask(torch.tensor([5, 0, 4]), 5)) if padding else None
    expected = net.eval()(x, None, mask, causal)
    assert not shares
    torch.testing.assert_close(net.train()(x, None, mask, causal), expected)
    assert shares == [0.3]


def test_starts_as_torch_does():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(256, 4)
    torch.manual_seed(0)
    ours = MultiHeadAttention(256, 4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert value.std().item() == pytest.approx(theirs.state_dict()[name].std().item(), rel=0.02), name


def test_dropout_is_of_the_weights_in_training_only():
    torch.manual_seed(0)
    attention = MultiHeadAttention(2, 1, dropout=0.5)
    with torch.no_grad():
        attention.in_proj_weight[:4] = 0  # all keys alike
        attention.in_proj_weight[4:] = torch.eye(2)
        attention.out_proj.weight.copy_(torch.eye(2))
    out = attention(torch.ones(400, 10, 2))
    assert set((out[..., 0] * 5).round(decimals=3).unique().tolist()) <= set(range(11))  # each of 10 weights 0 or 2/10
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert out.std() > 0.1
    torch.testing.assert_close(attention.eval()(torch.ones(1, 10, 2)), torch.ones(1, 10, 2))


@settings(max_examples=25)
@given(cuts=st.sets(st.integers(1, 6)), padding=st.booleans(), room=st.sampled_from([0, 7, 9]), seed=st.integers(0, 99))
def test_step_by_step_equals_the_full_pass(cuts, padding, room, seed):
    ours = pair()[0].double()
    torch.manual_seed(seed)
    x = torch.randn(2, 7, D, dtype=torch.float64)
    valid = torch.tensor([[True] * 7, [False, True, True, False, True, True, True]]) if padding else None
    full = ours(x, None, key_mask(valid), causal=True)
    cache, parts, ends = KVCache(room=room), [], [0, *sorted(cuts), 7]
    for start, end in pairwise(ends):
        assert cache.length == start
        mask = key_mask(None if valid is None else valid[:, :end])
        parts.append(ours(x[:, start:end], None, mask, causal=True, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), full)


def test_a_remembered_memory_equals_the_memory():
    ours, _ = pair()
    x, memory, valid = torch.randn(3, 2, D), torch.randn(3, 5, D), padding_mask(torch.tensor([5, 1, 3]), 5)
    cache = ours.remember(memory)
    for _ in range(2):  # and does not grow
        torch.testing.assert_close(
            ours(x, mask=key_mask(valid), cache=cache), ours(x, memory, key_mask(valid)), rtol=1e-5, atol=1e-6
        )
    assert cache.length == 5


def test_reordered_rows_go_on_as_if_they_had_been_there():
    ours, _ = pair()
    x, index = torch.randn(3, 4, D), torch.tensor([2, 0, 0, 2])
    cache = KVCache()
    cache.reorder(index)  # nothing to do yet
    ours(x[:, :3], causal=True, cache=cache)
    cache.reorder(index)
    out = ours(x[index, 3:], causal=True, cache=cache)
    torch.testing.assert_close(out, ours(x, causal=True)[index, 3:], atol=1e-6, rtol=1e-5)


@settings(max_examples=30)
@given(length=st.integers(1, 8), data=st.data())
def test_the_future_changes_nothing(length, data):
    t = data.draw(st.integers(0, length - 1))
    ours = pair()[0].double()
    x = torch.randn(2, length, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, t + 1 :] = 100 * torch.randn(2, length - t - 1, D)
    torch.testing.assert_close(ours(x, causal=True)[:, : t + 1], ours(changed, causal=True)[:, : t + 1])


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), more=st.integers(0, 3), causal=st.booleans())
def test_padding_changes_nothing(lengths, more, causal):
    ours = pair()[0].double()
    total = max(lengths) + more
    x = 10 * torch.randn(len(lengths), total, D, dtype=torch.float64)
    out = ours(x, None, key_mask(padding_mask(torch.tensor(lengths), total)), causal)
    for row, n in enumerate(lengths):
        alone = ours(x[row : row + 1, :n], causal=causal)
        torch.testing.assert_close(out[row : row + 1, :n], alone)


def textbook(q, k, v, mask, dropout, causal):
    """Attention as a backend may do it, with NaN for a row of nothing; torch's on the CPU has zeros."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v


@pytest.mark.parametrize("backend", [None, textbook])
@pytest.mark.parametrize("biased", [False, True])
def test_nothing_to_attend_to_gives_zeros(biased, backend, monkeypatch):
    if backend:
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", backend)
    ours, _ = pair()
    x = torch.randn(2, 4, D, requires_grad=True)
    mask = torch.ones(2, HEADS, 4, 4, dtype=torch.bool)
    mask[0, :, 1] = False  # one query
    mask[1, 2] = False  # one head
    bias = torch.randn(1, HEADS, 4, 4) if biased else None
    out, weights = ours(x, None, mask, bias=bias), ours.weights(x, None, mask, bias=bias)
    torch.testing.assert_close(out[0, 1], ours.out_proj.bias)
    assert not weights[0, :, 1].any()
    assert not weights[1, 2].any()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())
    torch.testing.assert_close(applied(ours, weights, x), out, atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


def applied(attention, weights, x):
    """forward's output from given weights: the weighted values, head beside head, through the last projection."""
    values = nn.functional.linear(x, attention.in_proj_weight[2 * D :], attention.in_proj_bias[2 * D :])
    per_head = values.view(*x.shape[:2], HEADS, D // HEADS)
    return attention.out_proj(torch.einsum("bhqk,bkhd->bqhd", weights, per_head).flatten(2))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_give_the_output(relative, causal, biased):
    torch.manual_seed(0)
    ours = MultiHeadAttention(D, HEADS, relative=RelativePositions(D, HEADS) if relative else None)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.4)
    x, bias = torch.randn(2, 5, D), 3 * torch.randn(1, HEADS, 5, 5) if biased else None
    mask = key_mask(padding_mask(torch.tensor([5, 3]), 5))
    for m in (None, mask):
        out, weights = (f(x, None, m, causal, bias) for f in (ours, ours.weights))
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 5))
        torch.testing.assert_close(applied(ours, weights, x), out, atol=1e-5, rtol=1e-5)
        if biased:
            assert not torch.allclose(out, ours(x, None, m, causal), atol=0.01)
    assert not weights[1, ..., 3:].any()


def test_autocast_and_float64():
    ours, _ = pair()
    x, mask = torch.randn(2, 4, D), key_mask(padding_mask(torch.tensor([4, 2]), 4))
    bias = torch.randn(1, HEADS, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = ours(x, None, mask, causal=True, bias=bias)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), ours(x, None, mask, causal=True, bias=bias), atol=0.2, rtol=0.1)
    ours.double()
    x = x[:1, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(x, None, mask[:1, ..., :2], True, bias[..., :2, :2]), x)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="d_model=12 is not divisible by heads=5"):
        MultiHeadAttention(12, 5)
