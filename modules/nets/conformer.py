"""Conformer block (Gulati et al. 2020, arXiv 2005.08100, figures 1 to 4), masked for padding.

Masks are (B, T) bool, True = valid: a padded frame is no key of attention, is zero before the depthwise convolution and
does not enter the batch statistics, so an utterance's result does not depend on its padding. A stack is `Encoder`.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modules.nets.attention import MultiHeadAttention, Padding
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


class _Normalised(torch.autograd.Function):
    """x (B, T, D) normalised over the frames of weight 1, the mean and 1 / deviation (D,) of those, and their variance.

    A formula of its own, as plain operations would start twice as many kernels. It can be differentiated twice, by way
    of mean and 1 / deviation, which are outputs for this; the unbiased variance is for the running one alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, count: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        wide = x * weights  # float32: sums over a batch of bfloat16 lose the variance
        total = wide.sum((0, 1))
        if _together():
            total, count = _summed(torch.cat([total, count.view(1)])).split([len(total), 1])
        mean = total / count
        centred = torch.addcmul(wide, weights, mean, value=-1)
        squares = centred.square().sum((0, 1))
        squares = _summed(squares) if _together() else squares
        inverse = (squares / count + eps).rsqrt()
        out = torch.addcmul(bias, centred, gain * inverse).to(x.dtype)
        unbiased = squares / (count - 1).clamp(min=1)
        ctx.mark_non_differentiable(unbiased)
        ctx.save_for_backward(x, weights, gain, count, mean, inverse)
        return out, mean, inverse, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weights, gain, count, mean, inverse = ctx.saved_tensors
        of_out, of_mean, of_inverse, _ = grads
        share, centred = weights / count, x - mean
        found: Any = None if of_out is not None else torch.zeros((), device=x.device)
        of_gain = of_bias = None
        if of_out is not None:
            normal, grad = centred * inverse, of_out * weights
            of_bias, of_gain = own = grad.sum((0, 1)), (grad * normal).sum((0, 1))
            sums = _of_all(torch.stack(own)).unbind() if _together() else own
            found = torch.addcmul(grad, torch.addcmul(sums[0], normal, sums[1]), share, value=-1) * (gain * inverse)
        if of_mean is not None:
            found = found + share * of_mean
        if of_inverse is not None:
            found = found - share * centred * (of_inverse * inverse**3)
        return found.to(x.dtype).expand_as(x), None, None, of_gain, of_bias, None


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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

    def forward(self, x: Tensor, mask: Tensor | Padding | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return ((x - self.running_mean) * scale + self.bias).to(x.dtype)
        padding = Padding.of(mask)
        if padding is None and not _together():  # a kernel each way, where the formula above has a dozen
            args = self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            return F.batch_norm(x.transpose(1, 2), *args).transpose(1, 2)
        if padding is None:
            weights = self.weight.new_ones(1, 1, 1)
            count = self.weight.new_full((), x.shape[0] * x.shape[1])
        else:
            weights, count = padding.weights(self.weight.dtype), padding.count(self.weight.dtype)
        found: Any = _Normalised.apply(x, weights, count, self.weight, self.bias, self.eps)
        out, mean, _, unbiased = found
        with torch.no_grad():
            torch._foreach_lerp_([self.running_mean, self.running_var], [mean.detach(), unbiased], self.momentum)
        return out


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

    def forward(self, x: Tensor, mask: Tensor | Padding | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        padding = Padding.of(mask)
        x = F.glu(self.pointwise1(self.layer_norm(x)), -1)
        if padding is not None:
            x = x * padding.weights(x.dtype)  # not masked_fill, which would need the mask's inverse
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.pointwise2(F.silu(self.batch_norm(x, padding))))


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

    def forward(self, x: Tensor, mask: Tensor | Padding | None = None) -> Tensor:
        """Eq. 1: (B, T, D), mask (B, T) -> (B, T, D)."""
        padding = Padding.of(mask)
        keys = None if padding is None else padding.keys
        x = torch.add(x, self.feed_forward1(x), alpha=0.5)
        x = x + self.dropout(self.attention(self.attention_norm(x), None, keys))
        x = x + self.convolution(x, padding)
        x = torch.add(x, self.feed_forward2(x), alpha=0.5)
        return self.norm(x)
