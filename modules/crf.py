"""A linear-chain conditional random field: scores of frames and of steps between labels, trained together.

Lafferty et al. 2001. A label sequence y of an utterance has the probability exp(v(y)) / Z, where v(y) is what
modules/viterbi.py maximises: sum_t scores[t, y_t] + sum_t transitions[y_(t-1), y_t], and Z the sum of exp(v) over all
sequences.

All sums run over probabilities that are brought to sum 1 after each frame, not over their logarithms (Rabiner 1989, "A
tutorial on hidden Markov models", section V.A). So a frame costs one product of matrices and few other operations, and
float32 stays accurate over hundreds of frames.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 1e-30  # of a step, beside the likeliest one; keeps every sum above 0 in float32


def _positive(scores: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp of both, and what was taken out before so that it neither overflows nor vanishes: (..., B, T, 1), (...)."""
    top, highest = scores.amax(-1, keepdim=True), transitions.amax((-2, -1))
    steps = (transitions - highest[..., None, None]).exp().clamp_min(LEAST)
    return (scores - top).exp(), steps, top, highest


def _forward(frames: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each label, given the frames so far (..., B, T, C), and what it was divided by (..., B, T, 1)."""
    shares: list[Tensor] = []
    sums: list[Tensor] = []
    for frame in frames.unbind(-2):
        value = (shares[-1] @ steps) * frame if shares else frame
        sums.append(value.sum(-1, keepdim=True))
        shares.append(value / sums[-1])
    return torch.stack(shares, -2), torch.stack(sums, -2)


def _backward(frames: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
    """What the later frames make of each label, (..., B, T, C): times `_forward`'s shares it is the posterior.

    Args:
        frames: Divided by `_forward`'s sums.
        steps, mask: See `log_partition`.
    """
    back, found = steps.transpose(-2, -1), [torch.ones_like(frames.select(-2, 0))]
    for t in range(frames.shape[-2] - 1, 0, -1):
        value = (found[-1] * frames.select(-2, t)) @ back
        found.append(torch.where(mask[:, t, None], value, 1.0))
    return torch.stack(found[::-1], -2)


class _LogPartition(torch.autograd.Function):
    """Its gradients are the posteriors of labels, and how often each step is to be expected."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
        frames, steps, top, highest = _positive(scores, transitions)
        shares, sums = _forward(frames, steps)
        ctx.save_for_backward(shares, frames / sums, steps, mask)
        total = ((sums.log() + top).squeeze(-1) * mask).sum(-1)
        return total + highest[..., None] * mask[:, 1:].sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        shares, frames, steps, mask = ctx.saved_tensors
        with torch.autocast(steps.device.type, enabled=False):
            later = _backward(frames, steps, mask) * (grads[0][..., None] * mask)[..., None]
            before, after = shares[..., :-1, :].flatten(-3, -2), (later * frames)[..., 1:, :].flatten(-3, -2)
            return shares * later, steps * (before.transpose(-2, -1) @ after), None


def log_partition(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """log Z of every utterance, by the forward algorithm: sums over all label sequences, frame after frame.

    A step that is less likely than e^-69 of the likeliest counts as that.

    Args:
        scores: Of each label in each frame, (..., B, T, C).
        transitions: From one label to the next, (..., C, C).
        mask: (B, T), True for the frames that are there, from the first on.

    Returns:
        (..., B).
    """
    return _LogPartition.apply(scores, transitions, mask)


def log_posteriors(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each label in each frame, over all label sequences, by the forward-backward algorithm.

    The label that is likeliest here is right most often (Rabiner 1989, eq. 27 to 29); the best sequence as a whole is
    another question, which modules/viterbi.py answers.

    Args:
        scores, transitions, mask: See `log_partition`.

    Returns:
        (..., B, T, C); means nothing where the mask is False.
    """
    with torch.autocast(scores.device.type, enabled=False):
        frames, steps, *_ = _positive(scores, transitions)
        shares, sums = _forward(frames, steps)
        found = shares * _backward(frames / sums, steps, mask)
    return found.clamp_min(torch.finfo(found.dtype).tiny).log()  # finite, for losses and means


def path_score(scores: Tensor, transitions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """v(y) of the labels y (B, T) of every utterance, (..., B); see `log_partition`."""
    index = labels.unsqueeze(-1).expand(*scores.shape[:-1], 1)
    frames = scores.gather(-1, index).squeeze(-1) * mask
    steps = transitions[..., labels[:, :-1], labels[:, 1:]] * mask[:, 1:]
    return frames.sum(-1) + steps.sum(-1)


def chain_loss(scores: Tensor, transitions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """-log p(y) of every utterance, (..., B): cross-entropy over whole label sequences; see `log_partition`."""
    scores, transitions = scores.float(), transitions.float()  # a sum over hundreds of frames needs the precision
    with torch.autocast(scores.device.type, enabled=False):
        return log_partition(scores, transitions, mask) - path_score(scores, transitions, labels, mask)
