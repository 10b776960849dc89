"""Dropout (Srivastava et al. 2014) whose masks cost a CPU a third of torch's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropped(x: Tensor, p: float) -> Tensor:
    """F.dropout of any tensor, which it is on a GPU; on a CPU 16 random bits decide about a value, four values a draw.

    The share that is dropped is p rounded to 1 / 65,536; what is kept is scaled by that very share. What torch.compile
    makes has torch's own masks: it draws them within its kernels.
    """
    share = round(p * 2**16)
    if not 0 < share < 2**16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= share - 2**15
    return x * torch.where(kept, 2**16 / (2**16 - share), 0.0).to(x.dtype)


class Dropout(nn.Dropout):
    """nn.Dropout whose masks are those of `dropped`: 16 random bits a value on a CPU, torch's own on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return dropped(x, self.p) if self.training else x
