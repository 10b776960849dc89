"""Progressive resizing: small images first, the full size at the end (Tan and Le 2021, arXiv 2104.00298, section 4)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

STAGES = 4  # as in the paper
MULTIPLE = 8  # of the sides in between


class Growth(NamedTuple):
    """The side of training images as a pure function of the epoch: even steps from `first` to `last`."""

    first: int
    last: int
    epochs: int
    """Of the run; each stage has a quarter of them, and where they are fewer the first stages are left out."""

    def sides(self) -> list[int]:
        """Side of the images in each stage, in pixels: first and last as given, those between rounded to a multiple."""
        even = [self.first + (self.last - self.first) * stage / (STAGES - 1) for stage in range(1, STAGES - 1)]
        between = [min(self.last, max(self.first, round(side / MULTIPLE) * MULTIPLE)) for side in even]
        return [self.first, *between, self.last]

    def side(self, epoch: int) -> int:
        """Side in pixels of an epoch, counted from 0; in the last epoch, and beyond the run, it is the last side."""
        return self.sides()[min(STAGES - 1, ((epoch + 1) * STAGES - 1) // self.epochs)]

    def cost(self) -> float:
        """Pixels of the whole run against those of as many steps of the first stage: about how much longer it takes."""
        return sum(side**2 for side in self.sides()) / (STAGES * self.first**2)


def resized(x: Tensor, side: int) -> Tensor:
    """Images uint8 (B, 3, H, W) -> (B, 3, side, side), channels last in memory."""
    if x.shape[-2:] == (side, side):
        return x
    return F.resize(x, [side, side], antialias=True).contiguous(memory_format=torch.channels_last)
