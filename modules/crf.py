"""A linear-chain conditional random field: scores of frames and of steps between labels, trained together.

Lafferty et al. 2001. A label sequence y of an utterance has the probability exp(v(y)) / Z, where v(y) is what
modules/viterbi.py maximises: sum_t scores[t, y_t] + sum_t transitions[y_(t-1), y_t], and Z the sum of exp(v) over all
sequences.
"""

import torch
from torch import Tensor


def log_partition(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """log Z of every utterance, by the forward algorithm: sums over all label sequences, frame after frame.

    Args:
        scores: Of each label in each frame, (..., B, T, C).
        transitions: From one label to the next, (..., C, C).
        mask: (B, T), True for the frames that are there, from the first on.

    Returns:
        (..., B).
    """
    steps, sums = (
        transitions.exp(),
        scores.select(-2, 0),
    )  # sums: log of the sum over all beginnings that end in a label
    for t in range(1, scores.shape[-2]):
        top = sums.detach().amax(-1, keepdim=True)  # taken out before exp, so that it does not overflow
        value = ((sums - top).exp() @ steps).log() + top + scores.select(-2, t)
        sums = torch.where(mask[:, t, None], value, sums)
    return sums.logsumexp(-1)


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
