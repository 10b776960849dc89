"""The translators: sizes, torch's own Transformer, steps against the whole, no peeking, routing, shared memories."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.routing import FixedRouting, MixedRouting, make_routing
from modules.nets.seq2seq import TransformerSeq2Seq

V = 11
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
NETS = {
    "gru": lambda: RecurrentSeq2Seq(V, 6, 5, layers=2),
    "post": lambda: TransformerSeq2Seq(V, 8, 2, 12, 2),
    "pre": lambda: TransformerSeq2Seq(V, 8, 2, 12, 2, norm="pre", positions="learned", max_length=9),
    "mix": lambda: TransformerSeq2Seq(V, 8, 2, 12, 3, 2, routing="mix", share=False),
    "same": lambda: TransformerSeq2Seq(V, 8, 2, 12, 2, 3, routing="same"),
}


def made(name):
    torch.manual_seed(0)
    net = NETS[name]()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return net.eval()


def data():
    noise = torch.Generator().manual_seed(1)
    source, target = (torch.randint(V, (3, length), generator=noise) for length in (6, 5))
    return source, target, torch.arange(6) < torch.tensor([[6], [2], [4]])


def test_the_course_s_sample_has_so_many_parameters():
    assert sum(p.numel() for p in RecurrentSeq2Seq(7992).parameters()) == 11_247_872


def test_a_seed_tells_the_weights_of_separate_tables():
    nets = []  # all are kept, so that each lies elsewhere in memory
    for _ in range(12):
        torch.manual_seed(0)
        nets.append(TransformerSeq2Seq(V, 8, 2, 12, 1, share=False))
    for net in nets[1:]:
        for one, other in zip(nets[0].parameters(), net.parameters(), strict=True):
            assert torch.equal(one, other)


def test_it_equals_torch_s_transformer_with_the_same_weights():
    net = made("post")
    theirs = nn.Transformer(8, 2, 2, 2, 12, 0.0, batch_first=True).eval()
    theirs.encoder.norm = theirs.decoder.norm = nn.Identity()  # torch adds a norm that the paper has not
    layers = {k: v for k, v in net.state_dict().items() if k.startswith(("encoder.", "decoder."))}
    assert theirs.load_state_dict(layers).missing_keys == []
    source, target, mask = data()
    x, y = (net.positions(net.source_table(tokens) * 8**0.5) for tokens in (source, target))
    later = nn.Transformer.generate_square_subsequent_mask(5)
    states = theirs(x, y, tgt_mask=later, src_key_padding_mask=~mask, memory_key_padding_mask=~mask)
    torch.testing.assert_close(net(source, target, mask), states @ net.source_table.weight.T, **CLOSE)


@pytest.mark.parametrize("name", NETS)
def test_a_later_word_changes_nothing_before_it(name):
    net, (source, target, mask) = made(name), data()
    before = net(source, target, mask)
    for t in range(1, 5):
        other = target.clone()
        other[:, t] = (other[:, t] + 1) % V
        after = net(source, other, mask)
        torch.testing.assert_close(after[:, :t], before[:, :t], **CLOSE)
        assert not torch.allclose(after[:, t:], before[:, t:])


@pytest.mark.parametrize("name", NETS)
def test_padding_of_the_source_changes_nothing(name):
    net, (source, target, mask) = made(name), data()
    other = source.where(mask, 3)
    torch.testing.assert_close(net(other, target, mask), net(source, target, mask), **CLOSE)
    alone = net(source[1:2, :2], target[1:2])
    torch.testing.assert_close(net(source, target, mask)[1:2], alone, **CLOSE)


@pytest.mark.parametrize("name", NETS)
def test_steps_of_beams_equal_the_whole(name):
    """Two hypotheses a sentence share its memory, change places, and one sentence leaves."""
    net, (source, _, mask) = made(name), data()
    words = torch.randint(V, (6, 4), generator=torch.Generator().manual_seed(2))
    state = net.start(net.encode(source, mask))
    state.reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    net.step(net.embed(words[:, :1]), state)
    swapped = torch.tensor([1, 0, 2, 2, 5, 4])
    state.reorder(swapped)
    net.step(net.embed(words[:, 1:2]), state)
    left = torch.tensor([0, 1, 4, 5])
    state.reorder(left, torch.tensor([0, 2]))
    out = net.step(net.embed(words[:4, 2:4]), state)
    told = torch.cat([torch.cat([words[swapped, :1], words[:, 1:2]], 1)[left], words[:4, 2:4]], 1)
    kept = torch.tensor([0, 0, 2, 2])
    whole = net.decode(net.embed(told), net.encode(source[kept], mask[kept]))
    torch.testing.assert_close(out, whole[:, 2:], **CLOSE)


def test_a_mix_begins_at_the_mean_and_can_become_any_layer():
    outputs = [torch.randn(2, 3, 4) for _ in range(3)]
    mix = MixedRouting(2, 3)
    torch.testing.assert_close(mix(outputs)[1], torch.stack(outputs).mean(0))
    with torch.no_grad():
        mix.scores[0, 2] = 50.0
    torch.testing.assert_close(mix(outputs)[0], outputs[2])


def test_routing_by_name_and_its_mistakes():
    def sources(*args):
        routing = make_routing(*args)
        assert isinstance(routing, FixedRouting)
        return routing.sources

    assert sources("last", 2, 3) == [-1, -1]
    assert sources("same", 3, 2) == [0, 1, 1]
    assert sources([1, 0], 2, 2) == [1, 0]
    with pytest.raises(ValueError, match="routing has 1 entries for 2 decoder layers"):
        make_routing([0], 2, 2)
    with pytest.raises(ValueError, match="routing names encoder layer 2, there are 2"):
        make_routing([0, 2], 2, 2)


def test_a_word_sees_later_ones_where_the_decoder_is_not_causal():
    net = TransformerSeq2Seq(V, 8, 2, 12, 1, causal=False).eval()
    source, target, mask = data()
    other = target.clone()
    other[:, 4] = (other[:, 4] + 1) % V
    assert not torch.allclose(net(source, other, mask)[:, 0], net(source, target, mask)[:, 0])
    assert copy.deepcopy(net).decoder.causal is False


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
def test_compiled_it_says_the_same_and_keeps_its_names():
    source, target, mask = data()
    net = made("pre")
    expected, names = net(source, target, mask), list(net.state_dict())
    counter = CompileCounter()
    net.compile(backend=counter)
    logits = net.logits(net.decode(net.embed(target), net.encode(source, mask)))
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert counter.frame_count >= 2, "nothing was compiled"
    assert list(net.state_dict()) == names
