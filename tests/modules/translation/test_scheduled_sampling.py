"""Scheduled sampling: with the truth alone it is teacher forcing; both ways read what the definition says."""

import pytest
import torch
from torch import nn

from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.translation.scheduled_sampling import by_steps, in_passes, own_vectors

V = 9
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def made(kind):
    torch.manual_seed(0)
    net = RecurrentSeq2Seq(V, 6, 4) if kind == "gru" else TransformerSeq2Seq(V, 8, 2, 12, 2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.eval()


def data(net):
    noise = torch.Generator().manual_seed(1)
    source, target = torch.randint(V, (3, 5), generator=noise), torch.randint(V, (3, 6), generator=noise)
    return net.encode(source, torch.ones(3, 5, dtype=torch.bool)), target


@pytest.mark.parametrize("kind", ["gru", "transformer"])
@pytest.mark.parametrize("how", ["argmax", "sampled", "mixed"])
def test_with_the_truth_alone_it_is_teacher_forcing(kind, how):
    net = made(kind)
    memory, target = data(net)
    forced = net.decode(net.embed(target), memory)
    assert torch.equal(in_passes(net, target, memory, 1.0, how), forced)
    torch.testing.assert_close(by_steps(net, target, memory, 1.0, how), forced, **CLOSE)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_without_the_truth_it_reads_what_it_says(kind):
    """By steps it is greedy decoding; as many passes as words come to the same."""
    net = made(kind)
    memory, target = data(net)
    words = target[:, :1]
    for _ in range(5):  # greedy, all again each time
        words = torch.cat([words, net.logits(net.decode(net.embed(words), memory))[:, -1:].argmax(-1)], 1)
    greedy = net.decode(net.embed(words), memory)
    torch.testing.assert_close(by_steps(net, target, memory, 0.0, "argmax"), greedy, **CLOSE)
    torch.testing.assert_close(in_passes(net, target, memory, 0.0, "argmax", passes=6), greedy, **CLOSE)
    first = net.logits(net.decode(net.embed(target), memory))[:, :-1].argmax(
        -1
    )  # two passes: own words after gold ones
    read = net.decode(net.embed(torch.cat([target[:, :1], first], 1)), memory)
    torch.testing.assert_close(in_passes(net, target, memory, 0.0, "argmax"), read, **CLOSE)


def test_a_mix_is_the_mean_vector_and_lets_the_gradient_pass():
    net = made("transformer")
    memory, target = data(net)
    states = net.decode(net.embed(target), memory).detach().requires_grad_()
    shares = net.logits(states).softmax(-1)
    expected = sum(shares[..., v : v + 1] * net.embed(torch.tensor([[v]])) for v in range(V))
    found = own_vectors(net, states, "mixed")
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.autograd.grad(found.sum(), states)[0].any()


def test_gold_words_are_kept_as_often_as_asked():
    net = made("gru")
    torch.manual_seed(0)
    memory = net.encode(torch.zeros(400, 2, dtype=torch.int64))
    target = torch.zeros(400, 6, dtype=torch.int64)
    said = own_vectors(net, net.decode(net.embed(target), memory)[:, :-1], "argmax")
    gold = net.embed(target)[:, 1:]
    assert not torch.equal(said, gold)
    seen = []
    net.decode, whole = lambda embedded, memory: (seen.append(embedded), whole(embedded, memory))[1], net.decode
    in_passes(net, target, memory, 0.3, "argmax")
    kept = (seen[-1][:, 1:] == gold).all(2)
    assert ((seen[-1][:, 1:] == said).all(2) | kept).all()
    assert abs(float(kept.float().mean()) - 0.3) < 5 * (0.21 / kept.numel()) ** 0.5
