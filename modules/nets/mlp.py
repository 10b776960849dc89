"""Multi-layer perceptrons for M networks at once: every weight has a leading member dimension, one bmm a layer.

M = 1 is the ordinary network; M = 40 costs little more than one on this size of problem, because the time of a small
step is overhead, not arithmetic. Members share nothing: the loss is a sum over members, so their gradients never mix.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class MemberLinear(nn.Module):
    """M linear layers side by side: (M, B, in) -> (M, B, out), each initialised as torch.nn.Linear is."""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(members, 1, out_features))
        bound = in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, in) -> (M, B, out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class MemberBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of M networks: statistics of each member over its own batch.

    (M, B, D) -> (M, B, D); equal to M separate torch.nn.BatchNorm1d.
    """

    def __init__(self, members: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.norm = nn.BatchNorm1d(members * features)

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, D) -> (M, B, D)."""
        members, batch, _ = x.shape
        flat = x.transpose(0, 1).reshape(batch, members * self.features)
        return self.norm(flat).view(batch, members, self.features).transpose(0, 1)


class Block(nn.Module):
    """Linear, batch norm, activation, dropout; the input is added back where the widths agree and `residual` is set."""

    def __init__(
        self,
        members: int,
        width_in: int,
        width: int,
        activation: Activation,
        dropout: float,
        norm: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.linear = MemberLinear(members, width_in, width)
        self.norm = MemberBatchNorm(members, width) if norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.residual = residual and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, in) -> (M, B, width)."""
        y = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + y if self.residual else y


class MLP(nn.Sequential):
    """M perceptrons (M, B, in) -> (M, B, out) with the given hidden widths; no hidden layer leaves linear regression.

    One hidden layer of k sigmoids is the notes' y = b + sum_i c_i sigmoid(b_i + w_i x).
    """

    def __init__(
        self,
        members: int,
        in_features: int,
        out_features: int,
        hidden: Sequence[int],
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        residual: bool = False,
    ) -> None:
        widths = [in_features, *hidden]
        blocks = [Block(members, a, b, activation, dropout, batch_norm, residual) for a, b in pairwise(widths)]
        super().__init__(*blocks, MemberLinear(members, widths[-1], out_features))
