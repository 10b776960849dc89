"""Dropout (Srivastava et al. 2014) whose masks cost a CPU a third of torch's."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout, which it is on a GPU; on a CPU 16 random bits decide about a value, four values a draw.

    The share that is dropped is p rounded to 1 / 65,536; what is kept is scaled by that very share.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        dropped = round(self.p * 2**16)
        if not self.training or not dropped or x.device.type != "cpu" or dropped == 2**16:
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * torch.where(kept, 2**16 / (2**16 - dropped), 0.0).to(x.dtype)
