"""Self-attention over the frames of an utterance, for phones (HW2) and speakers (HW4): (B, T, features) -> (B, T, out).

Masks are (B, T) bool, True = valid. What is put out for padded frames means nothing and reaches no valid frame.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from modules.nets.attention import every_nth
from modules.nets.conformer import ConformerBlock
from modules.nets.positions import Positions, absolute_positions
from modules.nets.transformer import Activation, Encoder, EncoderLayer, Norm


class TransformerFrames(nn.Module):
    """A linear layer, positions, and Transformer encoder layers.

    Args:
        features: Numbers in a frame.
        d_model, heads, d_ff, dropout, norm, activation: See EncoderLayer.
        layers: Their number.
        positions: Added to the frames: sinusoidal, learned or none.
        max_length: Most frames that learned positions reach.
    """

    def __init__(
        self,
        features: int,
        d_model: int = 80,
        heads: int = 2,
        d_ff: int = 256,
        layers: int = 1,
        dropout: float = 0.1,
        norm: Norm = "post",
        activation: Activation = "relu",
        positions: Positions = "none",
        max_length: int = 8192,
    ) -> None:
        super().__init__()
        self.prenet = nn.Linear(features, d_model)
        self.positions = absolute_positions(positions, d_model, max_length)
        self.encoder = Encoder(EncoderLayer(d_model, heads, d_ff, dropout, norm, activation) for _ in range(layers))
        self.out = d_model
        """Width of the output."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, features), mask (B, T) -> (B, T, out)."""
        return self.encoder(self.positions(self.prenet(x)), mask)


def stacked(x: Tensor, stride: int) -> Tensor:
    """Every stride-th frame side by side with the stride - 1 before and after it, zeros beyond the ends.

    A linear layer of it is a convolution over time of kernel 2 stride - 1.

    Returns:
        (B, ceil(T / stride), D (2 stride - 1)) of x (B, T, D).
    """
    return F.pad(x, (0, 0, stride - 1, stride - 1)).unfold(1, 2 * stride - 1, stride).flatten(2)


class ConformerFrames(nn.Module):
    """A linear layer and Conformer blocks (Gulati et al. 2020), which see positions by themselves.

    Args:
        features: Numbers in a frame.
        d_model, heads, d_ff, dropout, kernel, relative: See ConformerBlock.
        layers: Number of blocks.
        stride: From so many frames the linear layer makes one (the paper's subsampling, with 4, has two convolutions).

    Raises:
        ValueError: stride is below 1.
    """

    def __init__(
        self,
        features: int,
        d_model: int = 80,
        heads: int = 2,
        d_ff: int = 256,
        layers: int = 1,
        dropout: float = 0.1,
        kernel: int = 31,
        relative: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride={stride} must be at least 1")
        self.prenet = nn.Linear(features * (2 * stride - 1), d_model)
        self.encoder = Encoder(ConformerBlock(d_model, heads, d_ff, dropout, kernel, relative) for _ in range(layers))
        self.stride = stride
        self.out = d_model
        """Width of the output."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, features), mask (B, T) -> (B, ceil(T / stride), out), whose mask is mask[:, ::stride]."""
        if mask is not None and self.stride > 1:
            x, mask = x.masked_fill(~mask.unsqueeze(-1), 0.0), every_nth(mask, self.stride)
        return self.encoder(self.prenet(stacked(x, self.stride)), mask)
