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
        places: How many of the N are each row's, (B,).
        words: (B, T), padded with anything.
        counts: How many of the T are each row's, (B,).
        blank: A word that no output has.
    """
    logs = logits.float().log_softmax(2).transpose(0, 1)
    return F.ctc_loss(logs, words, places, counts, blank, "none", zero_infinity=True)


def alignment(logits: Tensor, places: Tensor, words: Tensor, counts: Tensor, blank: int) -> Tensor:
    """What each place most probably says, given the output: (B, N) words or blanks; arguments as of `ctc_losses`.

    The probabilities are read off the gradient of the loss by the logits: softmax - posterior (equation 16).
    """
    with torch.enable_grad():
        logits = logits.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(ctc_losses(logits, places, words, counts, blank).sum(), logits)
    return (logits.detach().softmax(2) - gradient).argmax(2)
