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


ROWS = 512
"""Whose scores a CPU makes at once: they fit its cache, as those of a whole batch do not."""


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over rows; its gradients are found in forward, while the scores are at hand, and need no other pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        kind = states.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wide = torch.promote_types(low, torch.float32)
        words, x = weight.to(low), states.to(low)
        rows = ROWS if kind == "cpu" else max(1, len(states))
        totals, right, of_states, of_weight = [], [], [], None
        with torch.autocast(kind, enabled=False):
            for part, gold in zip(x.split(rows), targets.split(rows), strict=True):
                scores = (part @ words.T).to(wide)
                top, likeliest = scores.max(1)
                right.append(likeliest == gold)
                gold = gold.unsqueeze(1)
                told = torch.lerp(scores.gather(1, gold).squeeze(1), scores.mean(1), smoothing)
                shares = scores.sub_(top.unsqueeze(1)).exp_()
                sums = shares.sum(1)
                totals.append(sums.log() + top - told)
                grad = shares.mul_(sums.reciprocal().unsqueeze(1)).sub_(smoothing / len(weight))
                grad = grad.scatter_add_(1, gold, torch.full_like(gold, smoothing - 1, dtype=wide)).to(low)
                of_states.append(grad @ words)
                product = grad.T @ part
                of_weight = product.to(wide) if of_weight is None else of_weight.add_(product)
        assert of_weight is not None
        ctx.save_for_backward(_joined(of_states).to(states.dtype), of_weight.to(weight.dtype))
        total, found = _joined(totals).sum(), _joined(right)
        ctx.mark_non_differentiable(found)
        return total, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_states, of_weight = ctx.saved_tensors
        return of_states * grads[0], of_weight * grads[0], None, None


def linear_cross_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The sum of `smoothed_cross_entropy` of the logits states @ weight.T, (), and where the largest is right, (N,).

    On a CPU the logits of a block of rows are made, used and forgotten, so that no tensor (N, V) is ever there.

    Args:
        states: (N, D).
        weight: (V, D).
        targets: (N,) integers.
        smoothing: s, 0 or more, below 1.
    """
    return _LinearCrossEntropy.apply(states, weight, targets, smoothing)
