"""Connectionist temporal classification (Graves et al. 2006): more places than words, and blanks between the words.

A path names a word or the blank in every place. The output it stands for is found by taking neighbours that are alike
for one, and then the blanks away; the probability of an output is the sum of those of all its paths.
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def collapse(path: Iterable[int], blank: int) -> list[int]:
    """The output that a path stands for."""
    return [token for token, _ in itertools.groupby(path) if token != blank]


def ctc_losses(logits: Tensor, places: Tensor, words: Tensor, counts: Tensor, blank: int) -> Tensor:
    """Negative log-probability of each output, (B,); 0, without gradient, where the places are too few for it.

    It needs as many places as words, and one more between two words that are alike.

    Args:
        logits: (B, N, V).
        places: How many of the N are each row's, (B,); on the CPU, where torch wants it: elsewhere it waits for a copy.
        words: (B, T), padded with anything.
        counts: How many of the T are each row's, (B,); likewise.
        blank: A word that no output has.
    """
    logs = logits.float().log_softmax(2).transpose(0, 1)
    return F.ctc_loss(logs, words, places, counts, blank, "none", zero_infinity=True)


def fits(places: Tensor, words: Tensor, counts: Tensor) -> Tensor:
    """Whether the places are enough for each output, (B,) bool; arguments as of `ctc_losses`, all on one device."""
    neighbours = torch.arange(1, words.shape[1], device=words.device) < counts.unsqueeze(1)
    return places >= counts + ((words[:, 1:] == words[:, :-1]) & neighbours).sum(1)


@torch.no_grad()
def alignment(logits: Tensor, places: Tensor, words: Tensor, counts: Tensor, blank: int) -> Tensor:
    """The likeliest path of each output by Viterbi's algorithm: (B, N) words or blanks.

    Arguments as of `ctc_losses`, all on one device.

    Beyond a row's places there are blanks. Where the places are too few, the path means nothing.
    """
    rows, length, _ = logits.shape
    said = torch.arange(words.shape[1], device=words.device) < counts.unsqueeze(1)
    labels = words.new_full((rows, 2 * words.shape[1] + 1), blank)  # a blank before, between and after the words
    labels[:, 1::2] = words.where(said, blank)
    leaps = torch.zeros_like(labels, dtype=torch.bool)  # over the blank between words that are not alike
    leaps[:, 3::2] = words[:, 1:] != words[:, :-1]
    logs = logits.float().log_softmax(2).gather(2, labels.unsqueeze(1).expand(-1, length, -1))

    def earlier(best: Tensor, steps: int) -> Tensor:
        return F.pad(best, (steps, 0), value=-torch.inf)[:, : labels.shape[1]]

    best = logs[:, 0].clone()
    best[:, 2:] = -torch.inf
    steps = []
    for place in range(1, length):
        ways = torch.stack([best, earlier(best, 1), earlier(best, 2).masked_fill(~leaps, -torch.inf)])
        chances, taken = ways.max(0)
        there = (place < places).unsqueeze(1)
        best = (chances + logs[:, place]).where(there, best)
        steps.append(taken.where(there, 0))
    last = torch.stack([2 * counts, (2 * counts - 1).clamp(min=0)], 1)
    state = last.gather(1, best.gather(1, last).argmax(1, keepdim=True))
    path = [labels.gather(1, state)]
    for taken in reversed(steps):
        state = state - taken.gather(1, state)
        path.append(labels.gather(1, state))
    path.reverse()
    beyond = torch.arange(length, device=places.device) >= places.unsqueeze(1)
    return torch.cat(path, 1).masked_fill(beyond, blank)
