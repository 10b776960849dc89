"""Encoder and decoder against torch.nn's with the same weights; step-by-step decoding; routing of cross-attention."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.nets.attention import key_mask, padding_mask
from modules.nets.routing import FixedRouting
from modules.nets.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer

D, HEADS, FF = 8, 2, 12
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def randomised(module):
    """All parameters random, those of norms and biases too."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def theirs(kind, norm, activation, dropout=0.0):
    return kind(D, HEADS, FF, dropout, activation, batch_first=True, norm_first=norm == "pre")


def data():
    torch.manual_seed(2)
    x, memory = torch.randn(3, 5, D), torch.randn(3, 6, D)
    return x, memory, padding_mask(torch.tensor([5, 2, 4]), 5), padding_mask(torch.tensor([3, 6, 1]), 6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_encoder_layer_equals_torch(norm, activation, training):
    ours = randomised(EncoderLayer(D, HEADS, FF, 0.0 if training else 0.5, norm, activation)).train(training)
    other = theirs(nn.TransformerEncoderLayer, norm, activation).train(training)
    other.load_state_dict(ours.state_dict())
    x, _, valid, _ = data()
    torch.testing.assert_close(ours(x), other(x), **CLOSE)
    # torch's fast path of eval mode leaves zeros where frames are padded
    torch.testing.assert_close(ours(x, valid)[valid], other(x, src_key_padding_mask=~valid)[valid], **CLOSE)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("causal", [True, False])
def test_decoder_layer_equals_torch(causal, norm, activation, training):
    ours = randomised(DecoderLayer(D, HEADS, FF, 0.0 if training else 0.5, norm, activation, causal)).train(training)
    other = theirs(nn.TransformerDecoderLayer, norm, activation).train(training)
    other.load_state_dict(ours.state_dict())
    x, memory, valid, memory_valid = data()
    later = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    torch.testing.assert_close(ours(x, memory), other(x, memory, tgt_mask=later), **CLOSE)
    expected = other(
        x, memory, tgt_mask=later, tgt_key_padding_mask=~valid, memory_key_padding_mask=~memory_valid
    )  # fmt: skip
    torch.testing.assert_close(ours(x, memory, valid, memory_valid), expected, **CLOSE)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_dropout_falls_where_torchs_does(kind, norm, monkeypatch):
    monkeypatch.setattr("modules.nets.dropout.dropped", F.dropout)  # ours draws other noise
    monkeypatch.setattr("modules.nets.attention.dropped", F.dropout)
    ours = randomised({"Encoder": EncoderLayer, "Decoder": DecoderLayer}[kind](D, HEADS, FF, 0.5, norm))
    other = theirs(getattr(nn, f"Transformer{kind}Layer"), norm, "relu", 0.5)
    other.load_state_dict(ours.state_dict())
    x, memory, _, _ = (y[:1] for y in data())  # one row, because torch's batches are transposed where the noise falls
    more = [memory] if kind == "Decoder" else []
    later = {"tgt_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)} if kind == "Decoder" else {}
    torch.manual_seed(0)
    out = ours(x, *more)
    torch.manual_seed(0)  # the same noise, drawn in the same order
    torch.testing.assert_close(out, other(x, *more, **later), **CLOSE)
    torch.manual_seed(1)
    assert not torch.allclose(out, ours(x, *more), atol=0.1)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_stacks_equal_torch(norm):
    x, memory, valid, memory_valid = data()
    last = nn.LayerNorm(D) if norm == "pre" else None
    ours = randomised(Encoder(EncoderLayer(D, HEADS, FF, 0.0, norm) for _ in range(3)))
    other = nn.TransformerEncoder(theirs(nn.TransformerEncoderLayer, norm, "relu"), 3, last, enable_nested_tensor=False)
    other.load_state_dict(ours.state_dict())
    expected = other(x, src_key_padding_mask=~valid)
    torch.testing.assert_close(ours(x, valid), expected, **CLOSE)
    torch.testing.assert_close(ours.outputs(x, valid)[-1], expected, **CLOSE)
    decoder = randomised(Decoder([DecoderLayer(D, HEADS, FF, 0.0, norm) for _ in range(3)]))
    other = nn.TransformerDecoder(theirs(nn.TransformerDecoderLayer, norm, "relu"), 3, copy.deepcopy(last))
    other.load_state_dict(decoder.state_dict())
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = other(x, memory, later, tgt_key_padding_mask=~valid, memory_key_padding_mask=~memory_valid)
    torch.testing.assert_close(decoder(x, [memory], valid, memory_valid), expected, **CLOSE)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_outputs_are_those_of_each_layer(norm):
    encoder = randomised(Encoder(EncoderLayer(D, HEADS, FF, 0.0, norm) for _ in range(3)))
    x, _, valid, _ = data()
    outputs = encoder.outputs(x, valid)
    assert len(outputs) == 3
    assert isinstance(encoder.norm, nn.LayerNorm) == (norm == "pre")
    for count, out in enumerate(outputs, 1):
        expected = x
        for layer in encoder.layers[:count]:
            expected = layer(expected, valid)
        torch.testing.assert_close(out, encoder.norm(expected))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_step_by_step_equals_the_full_pass(norm):
    decoder = randomised(
        Decoder([DecoderLayer(D, HEADS, FF, 0.1, norm) for _ in range(2)], FixedRouting([0, 1]))
    ).eval()
    x, memory, _, memory_valid = data()
    memories = [memory, -memory]
    full = decoder(x, memories, None, memory_valid)
    cache, parts = decoder.start(memories, memory_valid), []
    for start, end in ((0, 1), (1, 3), (3, 4), (4, 5)):
        assert cache.length == start
        parts.append(decoder.step(x[:, start:end], cache))
    torch.testing.assert_close(torch.cat(parts, 1), full, **CLOSE)


def test_beams_go_on_as_if_decoded_alone():
    decoder = randomised(Decoder([DecoderLayer(D, HEADS, FF) for _ in range(2)])).eval()
    x, memory, _, memory_valid = data()
    cache = decoder.start([memory], memory_valid)
    decoder.step(x[:, :1], cache)
    kept = cache.layers[0][1].keys
    sentence = torch.tensor([0, 0, 1, 1, 2, 2])
    cache.reorder(sentence)  # one row a sentence becomes two beams, which share its memory
    tokens = torch.randn(6, 4, D)
    decoder.step(tokens[:, :1], cache)
    within = torch.tensor([1, 1, 2, 3, 5, 4])
    cache.reorder(within)
    assert cache.layers[0][1].keys is kept  # no copy
    decoder.step(tokens[:, 1:2], cache)
    left = torch.tensor([0, 1, 5, 4])  # sentence 1 is done
    cache.reorder(left, torch.tensor([0, 2]))
    out = decoder.step(tokens[:4, 2:3], cache)
    told = torch.cat([x[sentence, :1], tokens[:, :1]], 1)[within]
    told = torch.cat([torch.cat([told, tokens[:, 1:2]], 1)[left], tokens[:4, 2:3]], 1)
    expected = decoder(told, [memory[[0, 0, 2, 2]]], None, memory_valid[[0, 0, 2, 2]])
    torch.testing.assert_close(out, expected[:, -1:], **CLOSE)


def test_routing_decides_which_memory_counts():
    torch.manual_seed(0)
    memories = [torch.randn(2, 4, D, requires_grad=True) for _ in range(3)]
    decoder = Decoder([DecoderLayer(D, HEADS, FF, 0.0) for _ in range(2)], FixedRouting([0, 2]))
    first = []
    decoder.layers[0].register_forward_hook(lambda module, args, out: first.append(out))
    out = decoder(torch.randn(2, 3, D), memories)

    def used(y):
        grads = torch.autograd.grad(y.square().sum(), memories, allow_unused=True, retain_graph=True)
        return [grad is not None and bool(grad.any()) for grad in grads]

    assert used(first[0]) == [True, False, False]
    assert used(out) == [True, False, True]
    assert used(Decoder([DecoderLayer(D, HEADS, FF)] * 2)(torch.randn(2, 3, D), memories)) == [False, False, True]


def test_only_a_causal_decoder_goes_step_by_step():
    decoder = Decoder([DecoderLayer(D, HEADS, FF), DecoderLayer(D, HEADS, FF, causal=False)])
    with pytest.raises(ValueError, match="causal"):
        decoder.start([torch.zeros(1, 2, D)])


@settings(max_examples=20)
@given(t=st.integers(0, 5), causal=st.booleans(), norm=st.sampled_from(["pre", "post"]))
def test_only_a_causal_decoder_is_blind_to_the_future(t, causal, norm):
    decoder = randomised(Decoder([DecoderLayer(D, HEADS, FF, 0.0, norm, causal=causal) for _ in range(2)])).double()
    x, memory = torch.randn(2, 7, D).double(), torch.randn(2, 3, D).double()
    changed = torch.cat([x[:, : t + 1], torch.randn(2, 6 - t, D)], 1)
    same = torch.allclose(decoder(x, [memory])[:, : t + 1], decoder(changed, [memory])[:, : t + 1])
    assert same == causal


@settings(max_examples=20)
@given(more=st.integers(0, 4), norm=st.sampled_from(["pre", "post"]), causal=st.booleans())
def test_padding_changes_nothing(more, norm, causal):
    encoder = randomised(Encoder(EncoderLayer(D, HEADS, FF, 0.0, norm) for _ in range(2))).double()
    decoder = randomised(Decoder([DecoderLayer(D, HEADS, FF, 0.0, norm, causal=causal) for _ in range(2)])).double()
    source, x = torch.randn(3, 4, D).double(), torch.randn(3, 5, D).double()
    lengths, target_lengths = [4, 1, 2], [2, 5, 3]

    def run(source, x, lengths, target_lengths):
        valid, target = (padding_mask(torch.tensor(n), y.shape[1]) for n, y in ((lengths, source), (target_lengths, x)))
        memory = encoder(source, valid)
        return memory, decoder(x, [memory], target, valid)

    padded = run(*(torch.cat([y, 10 * torch.randn(3, more, D)], 1) for y in (source, x)), lengths, target_lengths)
    for row, (n, m) in enumerate(zip(lengths, target_lengths, strict=True)):
        memory, out = run(source[row : row + 1, :n], x[row : row + 1, :m], [n], [m])
        torch.testing.assert_close(padded[0][row, :n], memory[0])
        torch.testing.assert_close(padded[1][row, :m], out[0])


def test_a_hook_sees_the_weights_that_forward_uses():
    decoder = randomised(Decoder([DecoderLayer(D, HEADS, FF, 0.0)])).eval()
    x, memory, valid, memory_valid = data()
    layer, seen = decoder.layers[0], []
    for attention in (layer.self_attn, layer.multihead_attn):
        attention.register_forward_pre_hook(lambda module, args: seen.append(module.weights(*args)))
    decoder(x, [memory], valid, memory_valid)
    own, cross = seen
    assert own.shape == (3, HEADS, 5, 5)
    assert not own.triu(1).any()
    assert cross.shape == (3, HEADS, 5, 6)
    assert not cross.masked_select(~key_mask(memory_valid)).any()


def test_size_of_the_sample_of_homework_4():
    net = nn.Sequential(nn.Linear(40, 80), EncoderLayer(80, 2, 256), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 600))
    assert sum(p.numel() for p in net.parameters()) == 125_896
    assert net(torch.zeros(2, 128, 40)).shape == (2, 128, 600)


def test_compiles_in_one_piece_and_runs_in_bfloat16():
    encoder = randomised(Encoder([EncoderLayer(D, HEADS, FF, 0.0, "pre")]))
    decoder = randomised(Decoder([DecoderLayer(D, HEADS, FF, 0.0, "pre")]))

    def both(x, memory, valid, memory_valid):
        return decoder(x, encoder.outputs(memory, memory_valid), valid, memory_valid)

    expected = both(*data())
    torch.testing.assert_close(torch.compile(both, backend="eager", fullgraph=True)(*data()), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = both(*data())
    torch.testing.assert_close(low.float(), expected, atol=0.15, rtol=0.1)
    low.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in decoder.parameters())
