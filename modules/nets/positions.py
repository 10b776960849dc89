"""The place of a frame: sines (Vaswani et al. 2017), a learned table, nothing, or distances (Dai et al. 2019).

The first three add to (B, T, D) and are made by `absolute_positions`; `RelativePositions` scores pairs in attention.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Positions = Literal["sinusoidal", "learned", "none"]


def sinusoid(positions: Tensor, d_model: int) -> Tensor:
    """PE of Vaswani et al. 2017, section 3.5: (T,) positions, negative ones too, -> (T, D).

    Columns 2i hold sin(p / 10000^(2i / D)), columns 2i + 1 the cosine of the same; an odd D lacks the last cosine.
    """
    even = torch.arange(0, d_model, 2, dtype=positions.dtype, device=positions.device)
    angles = positions[:, None] * 10000.0 ** (-even / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :d_model]


class SinusoidalPositions(nn.Module):
    """Adds sines to (B, T, D), of any length.

    They are computed again each time, at the cost of one row of the batch. A table that grows in a buffer would differ
    between the processes of DDP, which wants all buffers alike, and could be made in inference mode, then trained on.
    """

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D), where the first frame is number `offset`."""
        dtype = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot count beyond 256
        places = torch.arange(offset, offset + x.shape[1], dtype=dtype, device=x.device)
        return x + sinusoid(places, x.shape[2]).to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector per place to (B, T, D).

    Args:
        d_model: D.
        max_length: Number of places.
    """

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.02)  # the scale of BERT and GPT-2

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D), where the first frame is number `offset`.

        Raises:
            ValueError: The sequence is longer than the table.
        """
        end = offset + x.shape[1]
        if end > len(self.table):
            raise ValueError(f"a sequence of {end} is longer than the {len(self.table)} learned positions (max_length)")
        return x + self.table[offset:end].to(x.dtype)


class NoPositions(nn.Module):
    """Leaves (B, T, D) as it is, so that attention sees a set."""

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """(B, T, D) unchanged."""
        return x


def absolute_positions(kind: Positions, d_model: int, max_length: int) -> nn.Module:
    """The module for a kind; only learned positions have a max_length."""
    if kind == "learned":
        return LearnedPositions(d_model, max_length)
    return SinusoidalPositions() if kind == "sinusoidal" else NoPositions()


class RelativePositions(nn.Module):
    """Scores of distances in self-attention (Transformer-XL, Dai et al. 2019, arXiv 1901.02860, section 3.3).

    The score of query i and key j is the sum of (q_i + u) k_j, which is left to attention, and (q_i + v) W r_(i-j),
    where r is the sinusoid of the distance. It takes memory for (B, heads, T, 2T - 1) scores.

    Args:
        d_model: D.
        heads: Must divide D.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.heads = heads
        self.project = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, d_model // heads))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, 1, d_model // heads))  # v

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, T, D / heads) -> q + u, and what to add to their scaled scores, (B, heads, T, T)."""
        length, width = q.shape[2:]
        dtype = torch.promote_types(q.dtype, torch.float32)
        distances = torch.arange(length - 1, -length, -1, dtype=dtype, device=q.device)
        r = self.project(sinusoid(distances, self.d_model).to(self.project.weight.dtype))
        r = r.unflatten(-1, (self.heads, width)).permute(1, 2, 0)  # (heads, D / heads, 2T - 1)
        scores = (q + self.position_bias.to(q.dtype)) @ r * width**-0.5
        # Row i needs columns T-1-i to 2T-2-i, distances i to i-T+1: read with rows one longer, each starts one earlier.
        scores = F.pad(scores, (1, 0)).flatten(2)[:, :, length:].unflatten(2, (length, 2 * length - 1))[..., :length]
        return q + self.content_bias.to(q.dtype), scores
