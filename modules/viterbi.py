"""The likeliest path through scores and transitions, by dynamic programming."""

import torch
from torch import Tensor


def viterbi(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """The likeliest label of every frame when neighbours depend on each other (Viterbi 1967).

    Maximises, over label sequences y, sum_t scores[t, y_t] + sum_t transitions[y_(t-1), y_t]. Frames alone flicker
    between classes; transitions counted on training labels smooth the durations.

    Args:
        scores: Of each label in each frame, (B, T, C), such as log-probabilities.
        transitions: From one label to the next, (C, C).
        mask: (B, T), True for the frames that are there, from the first on.

    Returns:
        Labels (B, T), 0 where the mask is False.
    """
    count, length, classes = scores.shape
    best, back = scores[:, 0], []
    stay = torch.arange(classes, device=scores.device).expand(count, classes)
    for t in range(1, length):
        value, origin = (best.unsqueeze(2) + transitions).max(1)  # over the label before, (B, C)
        there = mask[:, t].unsqueeze(1)
        best = torch.where(there, value + scores[:, t], best)
        back.append(torch.where(there, origin, stay))  # beyond the end the path only waits
    label = best.argmax(1)
    path = [label]
    for origin in reversed(back):
        label = origin.gather(1, label.unsqueeze(1)).squeeze(1)
        path.append(label)
    return torch.stack(path[::-1], dim=1).where(mask, 0)
