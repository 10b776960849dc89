"""Cross-entropy over a vocabulary, with label smoothing."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Row losses whose backward needs one V-wide tensor besides the logits: the gradient itself."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        logits = logits.float()
        log_sum = logits.logsumexp(1)
        gold = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        ctx.save_for_backward(logits, targets, log_sum)
        ctx.smoothing = smoothing
        return log_sum - (1 - smoothing) * gold - smoothing * logits.mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, log_sum = ctx.saved_tensors
        grad = (logits - log_sum.unsqueeze(1)).exp_()  # softmax
        grad -= ctx.smoothing / logits.shape[1]
        grad.scatter_add_(1, targets.unsqueeze(1), torch.full_like(log_sum, ctx.smoothing - 1).unsqueeze(1))
        return grad.mul_(grads[0].unsqueeze(1)), None, None


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each row against (1 - s) one-hot + s / V (Szegedy et al. 2016, section 7): (N,).

    With z the logits it is log sum exp z - (1 - s) z_target - s mean(z): no V-wide target is ever made.

    Args:
        logits: (N, V).
        targets: (N,) integers.
        smoothing: s, 0 or more, below 1.
    """
    return _SmoothedCrossEntropy.apply(logits, targets, smoothing)
