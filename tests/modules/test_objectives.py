"""Gradients of expected rewards against all outputs one by one, on vocabularies that allow to list them."""

import itertools

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from modules.nets.attention import padding_mask
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.objectives import MinimumRisk, PolicyGradient, log_probabilities, without_dropout
from modules.translation.search import Ends, draw_outputs, greedy

PAD, BOS, EOS = 0, 2, 3
V = 6  # words: 1, 4 and 5
ENDS = Ends(PAD, BOS, EOS, ratio=0.5, extra=1.0)  # sources of 1 to 4 tokens have up to 1, 2, 2, 3 words
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
KINDS = {
    "post-norm": lambda dropout=0.0: TransformerSeq2Seq(V, 8, 2, 12, 2, dropout=dropout),
    "pre-norm": lambda dropout=0.0: TransformerSeq2Seq(V, 8, 2, 12, 1, dropout=dropout, norm="pre"),
    "gru": lambda dropout=0.0: RecurrentSeq2Seq(V, 6, 4, 2, dropout=dropout),
}


def a_net(kind, dropout=0.0, std=0.4):
    """Random weights, strong enough to prefer some words."""
    torch.manual_seed(3)
    net = KINDS[kind](dropout)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std)
    return net


def sources(lengths):
    mask = padding_mask(torch.tensor(lengths), max(lengths))
    noise = torch.Generator().manual_seed(0)
    return torch.randint(4, V, mask.shape, generator=noise).where(mask, PAD), mask


def all_outputs(limit):
    """Every output of so many steps, EOS among them."""
    return [(*words, EOS) for n in range(limit) for words in itertools.product((1, 4, 5), repeat=n)]


def padded(outputs):
    longest = max(map(len, outputs))
    return torch.tensor([[*words, *[PAD] * (longest - len(words))] for words in outputs])


def plain_log_probability(net, source, output, limit, temperature=1.0):
    """Of one output of one source without padding, by a full pass; differentiable."""
    logits = net(source[None], torch.tensor([[BOS, *output[:-1]]]))[0] / temperature
    allowed = torch.tensor([word not in (PAD, BOS) for word in range(V)])
    logs = logits.where(allowed, torch.tensor(-torch.inf)).log_softmax(1)
    return sum(logs[t, word] for t, word in enumerate(output) if t + 1 < limit)


def a_reward(outputs):
    """A number from 0.5 to 1 for every output, by a rule."""
    said = [[tuple(word for word in words if word not in (PAD, EOS)) for words in group] for group in outputs]
    return torch.tensor([[0.5 + hash(words) % 101 / 202 for words in group] for group in said])


def gradient(loss, net):
    found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, materialize_grads=True)
    return nn.utils.parameters_to_vector(found)


# log-probabilities


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_a_full_pass_and_all_outputs_sum_to_1(kind, temperature):
    net = a_net(kind).eval()
    lengths, limits = [4, 1, 2], [4, 2, 3]
    source, mask = sources(lengths)
    tokens = padded(all_outputs(4)).expand(3, -1, -1)
    found = log_probabilities(net, source, mask, tokens, ENDS, temperature).sum(2)
    assert found.shape == (3, 40)
    for i, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        known = all_outputs(limit)  # the first of all
        wanted = [plain_log_probability(net, source[i, :length], y, limit, temperature) for y in known]
        torch.testing.assert_close(found[i, : len(known)], torch.stack([torch.as_tensor(w) for w in wanted]), **CLOSE)
        torch.testing.assert_close(found[i, : len(known)].exp().sum(), torch.tensor(1.0))
        mine = gradient(found[i, 1], net)
        torch.testing.assert_close(mine, gradient(wanted[1], net), **CLOSE)
        assert mine.any()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_scores_that_they_were_drawn_with(kind):
    """Which count what padding, BOS and the forced end would have had: here padding and BOS have nothing."""
    net = a_net(kind).eval()
    ends = Ends(PAD, BOS, EOS)
    source, mask = sources([4, 2, 3])
    whole, barred = net.logits, torch.zeros(V).index_fill(0, torch.tensor([PAD, BOS]), -1e4)
    net.logits = lambda states: whole(states) + barred
    torch.manual_seed(0)
    drawn = draw_outputs([net], source, mask, ends, 8)
    found = log_probabilities(net, source, mask, drawn.tokens, ends)
    ended = drawn.mask.sum(2) < torch.tensor(ends.limits([net], source, mask)).unsqueeze(1)
    assert ended.sum() > 12
    torch.testing.assert_close(found.sum(2)[ended], drawn.scores[ended], atol=1e-4, rtol=1e-5)
    assert not found[~drawn.mask].any()


# policy gradient


def exact_gradient(net, source, limit):
    """Of minus the expected reward of one source."""
    outputs = all_outputs(limit)
    chances = torch.stack([plain_log_probability(net, source, y, limit).exp() for y in outputs])
    return gradient(-(chances * a_reward([outputs])[0]).sum(), net)


@pytest.mark.parametrize("kind", ["pre-norm", "gru"])
def test_policy_gradient_is_the_gradient_of_the_expected_reward(kind):
    """Its mean is the exact one whatever the baseline; with a baseline its variance is smaller."""
    net = a_net(kind).eval()
    source, mask = sources([3])
    exact = exact_gradient(net, source[0], 3)
    variance = {}
    for baseline in (None, "greedy", "mean"):
        objective = PolicyGradient(samples=2, baseline=baseline)
        torch.manual_seed(0)
        copies, estimates = 100, []
        for _ in range(40):
            found = objective(net, source.expand(copies, -1), mask.expand(copies, -1), ENDS, a_reward)
            estimates.append(gradient(found.losses.mean(), net))
        mean, spread = torch.stack(estimates).mean(0), torch.stack(estimates).std(0)
        error = spread / len(estimates) ** 0.5
        assert error.norm() < 0.5 * exact.norm()  # else it would tell nothing
        assert ((mean - exact).abs() < 4.5 * error + 1e-6).all(), baseline
        assert (mean - exact).norm() < 2 * error.norm()
        variance[baseline] = float((spread**2).sum())
    assert variance["greedy"] < variance[None] / 2
    assert variance["mean"] < variance[None] / 2


def test_advantages_are_by_definition():
    net = a_net("gru").eval()
    source, mask = sources([4, 2])
    for baseline in (None, "greedy", "mean"):
        torch.manual_seed(5)
        found = PolicyGradient(samples=3, baseline=baseline)(net, source, mask, ENDS, a_reward)
        rewards = a_reward(found.tokens.tolist())
        said = [[best.tokens] for (best,) in greedy([net], source, mask, ENDS)]
        less = {
            None: torch.zeros(2, 3),
            "greedy": a_reward(said).expand(2, 3),
            "mean": torch.stack([rewards[:, [k for k in range(3) if k != i]].mean(1) for i in range(3)], 1),
        }[baseline]
        logs = log_probabilities(net, source, mask, found.tokens, ENDS).sum(2)
        torch.testing.assert_close(found.losses, -((rewards - less) * logs).sum(1) / 3)
        seen = found.seen
        torch.testing.assert_close(seen["reward"], rewards.mean())
        torch.testing.assert_close(seen["reward_variance"], rewards.var(correction=0))
        torch.testing.assert_close(seen["advantage_variance"], (rewards - less).var(correction=0))
        torch.testing.assert_close(seen["entropy"], -logs.detach().sum() / (found.tokens != PAD).sum())
        assert ("greedy_reward" in seen) == (baseline == "greedy")
        if baseline == "greedy":
            torch.testing.assert_close(seen["greedy_reward"], a_reward(said).mean())


# minimum risk


@pytest.mark.parametrize("kind", ["pre-norm", "gru"])
@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_minimum_risk_is_the_expected_risk_over_the_distinct_samples(kind, alpha):
    net = a_net(kind).eval()
    lengths, limits = [4, 1], [4, 2]
    source, mask = sources(lengths)
    torch.manual_seed(2)
    found = MinimumRisk(samples=6, alpha=alpha)(net, source, mask, ENDS, a_reward)
    total, dropped = torch.zeros(()), 0
    for i, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        distinct = {tuple(word for word in words if word != PAD) for words in found.tokens[i].tolist()}
        dropped += 6 - len(distinct)
        powers = {y: (alpha * plain_log_probability(net, source[i, :length], y, limit)).exp() for y in distinct}
        rewards = {y: a_reward([[y]]).squeeze() for y in distinct}
        risk = sum(powers[y] * (1 - rewards[y]) for y in distinct) / sum(powers.values())
        torch.testing.assert_close(found.losses[i], risk)
        total = total + risk
    assert dropped >= 2  # one word or none, of three: 4 outputs
    torch.testing.assert_close(gradient(found.losses.sum(), net), gradient(total, net), **CLOSE)


def test_with_a_small_alpha_minimum_risk_is_policy_gradient_with_the_mean_as_baseline():
    net = a_net("gru").eval()
    source, mask = sources([4, 4, 3])
    ends, alpha, seed = Ends(PAD, BOS, EOS, 3.0, 5.0), 1e-3, 0
    distinct = False
    while not distinct:
        seed += 1
        outcomes = []
        for objective in (MinimumRisk(samples=3, alpha=alpha), PolicyGradient(samples=3, baseline="mean")):
            torch.manual_seed(seed)
            outcomes.append(objective(net, source, mask, ends, a_reward))
        assert torch.equal(outcomes[0].tokens, outcomes[1].tokens)
        distinct = all(len(set(map(tuple, group))) == 3 for group in outcomes[0].tokens.tolist())
    risk, policy = (gradient(found.losses.sum(), net) for found in outcomes)
    torch.testing.assert_close(
        risk / alpha, policy * 3 / 4, atol=2e-2, rtol=2e-2
    )  # the mean there counts the sample too


# both


def test_samples_and_their_scores_are_of_the_net_without_dropout():
    net = a_net("post-norm", dropout=0.5)
    source, mask = sources([4, 2])
    found = []
    for training in (True, False):
        net.train(training)
        torch.manual_seed(0)
        found.append(PolicyGradient(baseline="mean")(net, source, mask, ENDS, a_reward))
        assert all(part.training == training for part in net.modules())
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.equal(found[0].losses, found[1].losses)
    net.train()
    with pytest.raises(KeyError), without_dropout(net):
        raise KeyError
    assert net.training


@pytest.mark.parametrize("objective", [PolicyGradient(baseline="greedy"), MinimumRisk(samples=4, alpha=0.5)])
def test_the_reward_rises(objective):
    """Wanted are outputs of fours alone, two of them or more: a random network hardly ever says one."""
    net = a_net("pre-norm", std=0.2)
    source, mask = sources([4] * 16)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)

    def fours(outputs):
        said = [[[word for word in words if word not in (PAD, EOS)] for words in group] for group in outputs]
        return torch.tensor([[words.count(4) / 3 for words in group] for group in said])

    torch.manual_seed(0)
    rewards = []
    for _ in range(60):
        found = objective(net, source, mask, ENDS, fours)
        optimizer.zero_grad()
        found.losses.mean().backward()
        optimizer.step()
        rewards.append(float(found.seen["reward"]))
    assert sum(rewards[:5]) / 5 < 0.45
    assert sum(rewards[-5:]) / 5 > 0.9


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PolicyGradient(samples=0), "samples is 0: expected at least 1"),
        (lambda: PolicyGradient(samples=1, baseline="mean"), "samples is 1: expected at least 2"),
        (lambda: MinimumRisk(samples=1), "samples is 1: expected at least 2"),
        (lambda: MinimumRisk(alpha=0.0), "alpha is 0.0: expected a positive"),
        (lambda: PolicyGradient(weight=1.1), "weight is 1.1: expected 0 to 1"),
        (lambda: PolicyGradient(temperature=0.0), "temperature is 0.0: expected a positive"),
    ],
)
def test_settings_without_meaning_are_refused(make, says):
    with pytest.raises(MisconfigurationException, match=says):
        make()
