"""Vocal tract length on MFCCs, the same words by a longer or shorter throat (Jaitly and Hinton 2013, perturbation).

The same matrices serve normalisation (Lee and Rose 1996) in modules/hw2_phoneme.py.
"""

import math

import torch
from torch import Tensor, nn

BANDS, LOWEST, HIGHEST, RATE = 23, 20.0, 8000.0, 16000.0  # of Kaldi's default MFCCs
LIFTER = 22
# Deviations of the 13 coefficients within utterances, before each utterance was normalised: the mean over every fourth
# utterance of the 13 TIMIT speakers. Their proportions are what matters.
DEVIATIONS = (13.7, 19.3, 13.4, 17.0, 16.2, 14.6, 15.8, 15.1, 13.4, 14.0, 11.9, 11.5, 9.8)
KNEE = 4800.0  # Hz below which frequencies are scaled; above, a straight line leads to the highest one


def _mel(frequency: Tensor) -> Tensor:
    return 1127 * (1 + frequency / 700).log()


def warped(x: Tensor, matrix: Tensor) -> Tensor:
    """Coefficients and both deltas (B, T, 39) times a matrix (13, 13), or one for each utterance (B, 1, 13, 13)."""
    return (x.unflatten(2, (3, -1)) @ matrix.mT).flatten(2)


class VocalTract(nn.Module):
    """Stretches or squeezes the frequencies of whole utterances of MFCCs (B, T, 39), in training only.

    The 13 coefficients are the cosine transform of a log spectrum over mel bands; the spectrum is brought back, read
    at frequencies multiplied by a factor of the utterance's own, and transformed again. All of it is linear, so one
    matrix does for coefficients and deltas (nearly: each was normalised by its own deviation, of which those of the
    coefficients are taken). What was lost in 13 coefficients is lost here too.

    Args:
        warp: Factors are drawn evenly from 1 - warp to 1 + warp.
    """

    analysis: Tensor
    synthesis: Tensor
    mels: Tensor
    centres: Tensor

    def __init__(self, warp: float = 0.15) -> None:
        super().__init__()
        self.warp = warp
        place = (torch.arange(BANDS, dtype=torch.float64) + 0.5) * math.pi / BANDS
        order = torch.arange(len(DEVIATIONS), dtype=torch.float64)
        cosines = (order.unsqueeze(1) * place).cos() * math.sqrt(2 / BANDS)
        cosines[0] /= math.sqrt(2)
        size = (1 + LIFTER / 2 * (math.pi * order / LIFTER).sin()) / torch.tensor(DEVIATIONS, dtype=torch.float64)
        lowest, highest = _mel(torch.tensor([LOWEST, HIGHEST])).tolist()
        mels = torch.linspace(lowest, highest, BANDS + 2)
        self.register_buffer("mels", mels, persistent=False)
        self.register_buffer("centres", 700 * ((mels[1:-1] / 1127).exp() - 1), persistent=False)
        self.register_buffer("analysis", (size.unsqueeze(1) * cosines).float(), persistent=False)
        self.register_buffer("synthesis", (cosines / size.unsqueeze(1)).float(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, 39), mask (B, T) -> (B, T, 39)."""
        if not self.training:
            return x
        factors = 1 + self.warp * (2 * torch.rand(len(x), device=x.device) - 1)
        return warped(x, self.matrices(factors).unsqueeze(1))

    def throats(self, count: int) -> Tensor:
        """Matrices of so many factors, evenly over the range: (K, 13, 13)."""
        return self.matrices(torch.linspace(1 - self.warp, 1 + self.warp, count, device=self.mels.device))

    def matrices(self, factors: Tensor) -> Tensor:
        """What to multiply a frame's 13 coefficients with for each factor, (B,) -> (B, 13, 13)."""
        mels, centres = self.mels, self.centres
        factors = factors.unsqueeze(1)
        knee = KNEE * factors.clamp(max=1) / factors
        slope = (RATE / 2 - factors * knee) / (RATE / 2 - knee)
        read = torch.where(centres <= knee, factors * centres, factors * knee + slope * (centres - knee))
        position = ((_mel(read) - mels[1]) / (mels[1] - mels[0])).clamp(0, BANDS - 1)  # in bands
        band = torch.arange(BANDS, device=factors.device)
        weights = (1 - (position.unsqueeze(2) - band).abs()).clamp(min=0)  # (B, 23 new, 23 old)
        return self.analysis @ weights @ self.synthesis.T
