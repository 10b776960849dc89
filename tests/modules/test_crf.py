"""The chain's sums against all label sequences one by one."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.crf import chain_loss, log_partition, log_posteriors, path_score


def value(scores, transitions, path):
    return sum(scores[t, y] for t, y in enumerate(path)) + sum(transitions[a, b] for a, b in itertools.pairwise(path))


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    classes=st.integers(1, 3),
    members=st.integers(1, 2),
    spread=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 2**20),
)
def test_all_sequences_are_summed_and_one_is_told_apart(lengths, classes, members, spread, seed):
    torch.manual_seed(seed)
    shape = (members, len(lengths), max(lengths) + 1)
    scores = (spread * torch.randn(*shape, classes, dtype=torch.float64)).requires_grad_()
    transitions = torch.randn(members, classes, classes, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(classes, shape[1:])
    mask = torch.arange(shape[2]) < torch.tensor(lengths)[:, None]
    sums, told = log_partition(scores, transitions, mask), path_score(scores, transitions, labels, mask)
    losses = chain_loss(scores, transitions, labels, mask)
    logs = log_posteriors(scores, transitions, mask)
    expected = []
    for m, (i, n) in itertools.product(range(members), enumerate(lengths)):
        paths = [*itertools.product(range(classes), repeat=n)]
        every = torch.stack([value(scores[m, i], transitions[m], path) for path in paths])
        own = value(scores[m, i], transitions[m], labels[i, :n].tolist())
        expected.append(every.logsumexp(0) - own)
        shares = every.detach().softmax(0)
        seen = torch.tensor(paths)
        posteriors = [[shares[seen[:, t] == c].sum() for c in range(classes)] for t in range(n)]
        torch.testing.assert_close(logs[m, i, :n].exp(), torch.tensor(posteriors, dtype=torch.float64))
        torch.testing.assert_close(sums[m, i], every.logsumexp(0))
        torch.testing.assert_close(told[m, i], own)
    torch.testing.assert_close(losses, torch.stack(expected).view_as(losses).float(), atol=1e-4, rtol=1e-4)
    found = torch.autograd.grad((sums - told).sum(), (scores, transitions), retain_graph=True)
    true = torch.autograd.grad(torch.stack(expected).sum(), (scores, transitions), allow_unused=True)
    torch.testing.assert_close(found[0], true[0])
    torch.testing.assert_close(found[1], torch.zeros_like(found[1]) if true[1] is None else true[1])


def test_a_chain_without_transitions_is_cross_entropy_of_each_frame():
    scores, labels = torch.randn(1, 7, 4), torch.randint(4, (1, 7))
    frames = torch.nn.functional.cross_entropy(scores[0], labels[0], reduction="sum")
    mask = torch.ones(1, 7, dtype=torch.bool)
    torch.testing.assert_close(chain_loss(scores, torch.zeros(4, 4), labels, mask)[0], frames)


def test_a_long_utterance_in_float32_is_accurate_also_where_steps_were_never_seen():
    torch.manual_seed(0)
    scores, transitions = 5 * torch.randn(1, 800, 6), torch.randn(6, 6)
    transitions[2, 3], transitions[4] = -float("inf"), -1000.0  # label 4 can stand only at the end
    sources = [part.requires_grad_() for part in (scores, transitions)]
    total = log_partition(*sources, torch.ones(1, 800, dtype=torch.bool))
    found = torch.autograd.grad(total.sum(), sources)
    exact = [part.detach().double().requires_grad_() for part in sources]
    sums = exact[0][:, 0]
    for t in range(1, 800):  # by logarithms
        sums = (sums.unsqueeze(2) + exact[1].clamp_min(-1e4)).logsumexp(1) + exact[0][:, t]
    true = torch.autograd.grad(sums.logsumexp(1).sum(), exact)
    torch.testing.assert_close(total.double(), sums.logsumexp(1), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[0].double(), true[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(found[1].double(), true[1], atol=1e-3, rtol=0)
