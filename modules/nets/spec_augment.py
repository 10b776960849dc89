"""SpecAugment (Park et al. 2019, arXiv 1904.08779): stretches of time and bands of features are hidden in training."""

import torch
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Sets masked parts of (B, T, D) to 0, the mean of normalised features; nothing in evaluation. No time warping.

    Args:
        times: Stretches of time hidden in each sequence.
        time_width: Frames of a stretch, at most; drawn evenly from 0 on. (The paper's T.)
        time_share: At most this share of a sequence's frames in one stretch. (The paper's p.)
        bands: Bands of features hidden in each sequence.
        band_width: Features of a band, at most; drawn evenly from 0 on. (The paper's F.)
    """

    def __init__(
        self, times: int = 2, time_width: int = 40, time_share: float = 0.2, bands: int = 2, band_width: int = 8
    ) -> None:
        super().__init__()
        self.times, self.time_width, self.time_share = times, time_width, time_share
        self.bands, self.band_width = bands, band_width

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        if not self.training:
            return x
        count, length, width = x.shape
        # not in x's type: bfloat16 cannot count beyond 256
        lengths = torch.full((count,), float(length), device=x.device) if mask is None else mask.sum(1).float()
        widest = (lengths * self.time_share).floor().clamp(max=self.time_width)
        hidden = self._spans(self.times, lengths, widest, length).unsqueeze(2)
        features = torch.full_like(lengths, width)
        hidden = hidden | self._spans(self.bands, features, features.clamp(max=self.band_width), width).unsqueeze(1)
        return x.masked_fill(hidden, 0.0)

    @staticmethod
    def _spans(spans: int, lengths: Tensor, widest: Tensor, size: int) -> Tensor:
        """(B, size) bool: `spans` stretches of random width in each row of so many places."""
        draw = torch.rand(2, len(lengths), spans, device=lengths.device)
        width = (draw[0] * (widest.unsqueeze(1) + 1)).floor()
        start = (draw[1] * (lengths.unsqueeze(1) - width + 1)).floor()
        place = torch.arange(size, device=lengths.device)
        inside = (place >= start.unsqueeze(2)) & (place < (start + width).unsqueeze(2))
        return inside.any(1)
