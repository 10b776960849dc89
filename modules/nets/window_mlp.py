"""A perceptron over a window of frames: the phone of the middle one (the course's networks of HW2)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from modules.nets.mlp import ACTIVATIONS, Activation


class WindowMLP(nn.Sequential):
    """Hidden layers over a window, (B, n, D) -> (B, out); linear, batch norm, activation, dropout each.

    Args:
        features: n x D, numbers in a window.
        hidden: Widths of the layers, at least one.
        activation: sigmoid in the course's code of 2021, relu in those since.
        batch_norm: Normalise over the batch before the activation (Ioffe and Szegedy 2015).
        dropout: After each activation.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (256, 256),
        activation: Activation = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width in pairwise([features, *hidden]):
            norm = [nn.BatchNorm1d(width)] if batch_norm else []
            drop = [nn.Dropout(dropout)] if dropout else []
            layers += [nn.Linear(width_in, width), *norm, ACTIVATIONS[activation](), *drop]
        super().__init__(*layers)
        self.out = hidden[-1]
        """Width of the output."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, out)."""
        return super().forward(x)
