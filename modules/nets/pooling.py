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
        return _mean(x, mask).squeeze(1)


class MaxPooling(nn.Module):
    """The largest value of every feature over the valid frames; out = D."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = d_model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D)."""
        if mask is None:
            return x.amax(1)
        return _filled(x, mask, -torch.inf).amax(1).masked_fill(~mask.any(1, keepdim=True), 0.0)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation of the valid frames (Snyder et al. 2018, x-vectors, table 1); out = 2 D.

    A variance below 1e-6 counts as that, with gradient zero: the root's gradient at 0, as for a single frame, is NaN.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = 2 * d_model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, 2D): the means, then the deviations."""
        mean = _mean(x, mask)
        var = _mean((_filled(x, mask) - mean).square(), mask)
        return torch.cat([mean, var.clamp(min=1e-6).sqrt()], -1).squeeze(1)


class SelfAttentivePooling(nn.Module):
    """The mean weighted by softmax(w x_t), w learned (Safari et al. 2020, arXiv 2008.01077); out = D."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = d_model
        self.score = nn.Linear(d_model, 1, bias=False)

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each frame counts: (B, T, D) -> (B, T), rows sum to 1."""
        return self._weights(_filled(x, mask), mask).squeeze(-1)

    def _weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.score(x)
        return _filled(scores, mask, torch.finfo(scores.dtype).min).softmax(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D)."""
        x = _filled(x, mask)
        return (self._weights(x, mask) * x).sum(1)


POOLINGS: dict[str, type[MeanPooling | MaxPooling | StatisticsPooling | SelfAttentivePooling]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "statistics": StatisticsPooling,
    "attentive": SelfAttentivePooling,
}


def _filled(x: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """(B, T, D) with the value at padded frames."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), value)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, D) -> (B, 1, D) over the valid frames; 0 where there are none."""
    if mask is None:
        return x.mean(1, keepdim=True)
    return _filled(x, mask).sum(1, keepdim=True) / mask.sum(1).clamp(min=1).view(-1, 1, 1)
