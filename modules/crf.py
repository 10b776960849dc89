"""A linear-chain conditional random field: scores of frames and of steps between labels, trained together.

Lafferty et al. 2001. A label sequence y of an utterance has the probability exp(v(y)) / Z, where v(y) is what
modules/viterbi.py maximises: sum_t scores[t, y_t] + sum_t transitions[y_(t-1), y_t], and Z the sum of exp(v) over all
sequences.
"""

import torch
from torch import Tensor


def _followed(sums: Tensor, steps: Tensor) -> Tensor:
    """log sum_i exp(sums[i]) steps[i, j]: (..., B, C), (..., C, C) -> (..., B, C)."""
    top = sums.detach().amax(-1, keepdim=True)  # taken out before exp, so that it does not overflow
    return ((sums - top).exp() @ steps).log() + top


def _beginnings(scores: Tensor, transitions: Tensor, mask: Tensor) -> list[Tensor]:
    """After each frame, log of the sum over all beginnings that end in a label: T of (..., B, C)."""
    steps, found = transitions.exp(), [scores.select(-2, 0)]
    for t in range(1, scores.shape[-2]):
        value = _followed(found[-1], steps) + scores.select(-2, t)
        found.append(torch.where(mask[:, t, None], value, found[-1]))
    return found


def log_partition(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """log Z of every utterance, by the forward algorithm: sums over all label sequences, frame after frame.

    Args:
        scores: Of each label in each frame, (..., B, T, C).
        transitions: From one label to the next, (..., C, C).
        mask: (B, T), True for the frames that are there, from the first on.

    Returns:
        (..., B).
    """
    return _beginnings(scores, transitions, mask)[-1].logsumexp(-1)


def log_posteriors(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each label in each frame, over all label sequences, by the forward-backward algorithm.

    The label that is likeliest here is right most often (Rabiner 1989, "A tutorial on hidden Markov models", eq. 27 to
    29); the best sequence as a whole is another question, which modules/viterbi.py answers.

    Args:
        scores, transitions, mask: See `log_partition`.

    Returns:
        (..., B, T, C); means nothing where the mask is False.
    """
    with torch.autocast(scores.device.type, enabled=False):
        begun, steps = _beginnings(scores, transitions, mask), transitions.exp().transpose(-2, -1)
        ends = [torch.zeros_like(begun[-1])]  # from the last frame on: log of the sum over all that may follow a label
        for t in range(scores.shape[-2] - 1, 0, -1):
            value = _followed(ends[-1] + scores.select(-2, t), steps)
            ends.append(torch.where(mask[:, t, None], value, 0.0))
    return torch.stack([a + b for a, b in zip(begun, reversed(ends), strict=True)], -2).log_softmax(-1)


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
