"""An utterance as one vector: encoder, pooling, and perhaps a last layer (HW4)."""

from typing import Any

from torch import Tensor, nn

from modules.nets.attention import every_nth
from modules.nets.dropout import Dropout
from modules.nets.mlp import ACTIVATIONS, Activation


class Embedder(nn.Module):
    """(B, T, D), mask (B, T) -> (B, out).

    Args:
        encoder: Frames to frames, (B, T, D), mask -> (B, T, encoder.out); or to one of every encoder.stride.
        pool: Frames to one vector, (B, T, encoder.out), mask -> (B, pool.out).
        hidden: Width of a linear layer and its activation after pooling; None: none.
        dropout: Of the result.
        activation: After the hidden layer.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pool: nn.Module,
        hidden: int | None = None,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.stride: int = getattr(encoder, "stride", 1)
        width: Any = pool.out
        self.out: int = hidden or width
        """Width of the output."""
        self.last = nn.Sequential(
            *([] if hidden is None else [nn.Linear(width, hidden), ACTIVATIONS[activation]()]), Dropout(dropout)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, out)."""
        encoded = self.encoder(x, mask)
        return self.last(self.pool(encoded, None if mask is None else every_nth(mask, self.stride)))
