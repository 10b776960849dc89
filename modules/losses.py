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
