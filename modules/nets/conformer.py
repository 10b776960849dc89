"""Conformer block (Gulati et al. 2020, arXiv 2005.08100, figures 1 to 4), masked for padding.

Masks are (B, T) bool, True = valid: a padded frame is no key of attention, is zero before the depthwise convolution and
does not enter the batch statistics, so an utterance's result does not depend on its padding. A stack is `Encoder`.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modules.nets.attention import MultiHeadAttention, key_mask
from modules.nets.dropout import Dropout
from modules.nets.positions import RelativePositions


class _Sum(torch.autograd.Function):
    """The sum over processes; so is its gradient, as the loss is the sum of what they find."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


def _summed(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def _of_all(x: Tensor) -> Tensor:
    total: Any = _Sum.apply(x)
    return total


class MaskedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of (B, T, D) over the valid frames of all rows.

    Equal to torch.nn.BatchNorm1d on the valid frames, whose names and defaults it has. Where several processes train
    together, statistics are those of the frames of all, so that two do what one does.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        mean, var = self._statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        return ((x - mean) * scale + self.bias).to(x.dtype)

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (D,) of the valid frames; also moves the running ones."""
        x = x.to(self.running_mean.dtype)  # sums over a batch of bfloat16 lose the variance
        valid = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        padded = ~valid.unsqueeze(-1)
        total = x.masked_fill(padded, 0.0).sum((0, 1))
        if together := dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            *parts, frames = _of_all(torch.cat([total, valid.sum().to(total.dtype).view(1)])).split([len(total), 1])
            total, count = parts[0], frames.clamp(min=1)
        else:
            count = valid.sum().clamp(min=1)
        mean = total / count
        squares = (x - mean).masked_fill(padded, 0.0).square().sum((0, 1))
        var = (_of_all(squares) if together else squares) / count
        with torch.no_grad():
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return mean, var


class FeedForward(nn.Sequential):
    """Figure 4: (B, T, D) -> (B, T, D)."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_ff),
            nn.SiLU(),
            Dropout(dropout),
            nn.Linear(d_ff, d_model),
            Dropout(dropout),
        )


class ConvolutionModule(nn.Module):
    """Figure 2: (B, T, D) -> (B, T, D); the pointwise convolutions are linear layers.

    Args:
        d_model: D.
        kernel: Frames the depthwise convolution sees; odd, so that it has a middle.
        dropout: Of the output.

    Raises:
        ValueError: kernel is even.
    """

    def __init__(self, d_model: int, kernel: int, dropout: float) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd")
        self.layer_norm = nn.LayerNorm(d_model)
        self.pointwise1 = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
        self.batch_norm = MaskedBatchNorm(d_model)
        self.pointwise2 = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        x = F.glu(self.pointwise1(self.layer_norm(x)), -1)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.pointwise2(F.silu(self.batch_norm(x, mask))))


class ConformerBlock(nn.Module):
    """Half a feed-forward step, self-attention, convolution, the other half, LayerNorm: (B, T, D) -> (B, T, D).

    Args:
        d_model: D.
        heads: Must divide D.
        d_ff: Hidden width of both feed-forward networks; the paper has 4 D.
        dropout: Of the attention weights and in all parts.
        kernel: Of the depthwise convolution; odd.
        relative: Relative positions in attention (Transformer-XL), as in the paper; else add absolute ones before.
    """

    def __init__(
        self, d_model: int, heads: int, d_ff: int, dropout: float = 0.1, kernel: int = 31, relative: bool = True
    ) -> None:
        super().__init__()
        self.feed_forward1 = FeedForward(d_model, d_ff, dropout)
        self.attention_norm = nn.LayerNorm(d_model)
        positions = RelativePositions(d_model, heads) if relative else None
        self.attention = MultiHeadAttention(d_model, heads, dropout, relative=positions)
        self.dropout = Dropout(dropout)
        self.convolution = ConvolutionModule(d_model, kernel, dropout)
        self.feed_forward2 = FeedForward(d_model, d_ff, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Eq. 1: (B, T, D), mask (B, T) -> (B, T, D)."""
        x = x + self.feed_forward1(x) / 2
        x = x + self.dropout(self.attention(self.attention_norm(x), None, key_mask(mask)))
        x = x + self.convolution(x, mask)
        x = x + self.feed_forward2(x) / 2
        return self.norm(x)
