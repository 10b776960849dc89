"""Losses of classifiers beside plain cross-entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(scores: Tensor, target: Tensor, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy that counts what is found already for little (Lin et al. 2017, arXiv 1708.02002, eq. 4).

    sum_c -q_c (1 - p_c)^gamma log p_c, the sum over rows; with gamma 0 it is cross-entropy.

    Args:
        scores: Logits (N, C).
        target: Classes (N,), or their shares (N, C).
        gamma: The paper has 2.
        label_smoothing: Share of the target spread evenly over all classes.

    Returns:
        ().
    """
    if gamma == 0:
        return F.cross_entropy(scores, target, label_smoothing=label_smoothing, reduction="sum")
    logs = scores.float().log_softmax(1)
    shares = F.one_hot(target, logs.shape[1]).to(logs.dtype) if target.ndim == 1 else target
    shares = torch.lerp(shares, torch.full_like(shares, 1 / logs.shape[1]), label_smoothing)
    # 1 - p by expm1, with a floor: near p = 1 a power below 1 has an infinite gradient
    rest = (-torch.expm1(logs)).clamp(min=torch.finfo(logs.dtype).eps)
    return -(shares * rest**gamma * logs).sum()


def shared_along_time(labels: Tensor, lengths: list[int], classes: int, reach: int) -> Tensor:
    """Targets that a frame shares with its neighbours: near a border of two phones some of each, (F,) -> (F, C).

    Neighbour k frames away has the weight (reach + 1 - |k|) / (reach + 1)^2; beyond an end its last frame goes on.
    Where a border lies is a matter of opinion by a frame or two.

    Args:
        labels: Of all frames, one utterance after the other.
        lengths: Frames of each utterance.
        classes: C.
        reach: Frames on each side.
    """
    sizes = torch.tensor(lengths)
    last = sizes.cumsum(0).repeat_interleave(sizes) - 1
    first = last + 1 - sizes.repeat_interleave(sizes)
    away = torch.arange(-reach, reach + 1)
    near = (torch.arange(len(last)).unsqueeze(1) + away).clamp(first.unsqueeze(1), last.unsqueeze(1))
    weights = (reach + 1 - away.abs()) / (reach + 1) ** 2
    near = near.to(labels.device, non_blocking=True)
    shares = torch.zeros(len(labels), classes, device=labels.device)
    return shares.scatter_add_(1, labels[near], weights.to(labels.device, non_blocking=True).expand(len(near), -1))
