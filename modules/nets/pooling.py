"""One vector from many frames: (B, T, D), mask (B, T) bool, True = valid, -> (B, out); no mask is all valid.

Padded frames are replaced before anything is computed, so they may hold anything, NaN too. A row without a valid frame
gives zeros (and the smallest deviation). `out` is the width of the result.
"""

import torch
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """The mean of the valid frames; out = D."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = d_model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return _mean(x, _valid(x, mask)).squeeze(1)


class MaxPooling(nn.Module):
    """The largest value of every feature over the valid frames; out = D."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = d_model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D)."""
        valid = _valid(x, mask)
        return x.masked_fill(~valid, -torch.inf).amax(1).masked_fill(~valid.any(1), 0.0)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation of the valid frames (Snyder et al. 2018, x-vectors, table 1); out = 2 D.

    A variance below 1e-6 counts as that, with gradient zero: the root's gradient at 0, as for a single frame, is NaN.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = 2 * d_model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, 2D): the means, then the deviations."""
        valid = _valid(x, mask)
        mean = _mean(x, valid)
        var = _mean((x.masked_fill(~valid, 0.0) - mean).square(), valid)
        return torch.cat([mean, var.clamp(min=1e-6).sqrt()], -1).squeeze(1)


class SelfAttentivePooling(nn.Module):
    """The mean weighted by softmax(w x_t), w learned (Safari et al. 2020, arXiv 2008.01077); out = D."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = d_model
        self.score = nn.Linear(d_model, 1, bias=False)

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each frame counts: (B, T, D) -> (B, T), rows sum to 1."""
        padded = ~_valid(x, mask)
        return self._weights(x.masked_fill(padded, 0.0), padded).squeeze(-1)

    def _weights(self, x: Tensor, padded: Tensor) -> Tensor:
        scores = self.score(x)
        return scores.masked_fill(padded, torch.finfo(scores.dtype).min).softmax(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D)."""
        padded = ~_valid(x, mask)
        x = x.masked_fill(padded, 0.0)
        return (self._weights(x, padded) * x).sum(1)


POOLINGS: dict[str, type[MeanPooling | MaxPooling | StatisticsPooling | SelfAttentivePooling]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "statistics": StatisticsPooling,
    "attentive": SelfAttentivePooling,
}


def _valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mask as (B, T, 1)."""
    return (x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask).unsqueeze(-1)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """(B, T, D) -> (B, 1, D) over the valid frames (B, T, 1); 0 where there are none."""
    return x.masked_fill(~valid, 0.0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
