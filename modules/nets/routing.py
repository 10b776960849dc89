"""Which encoder layer each decoder layer attends to: the last (Vaswani et al. 2017), any other, or a learned mix."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Routing = Literal["last", "same", "mix"] | list[int]


class FixedRouting(nn.Module):
    """Decoder layer i attends to the output of encoder layer sources[i]; -1 is the last.

    Args:
        sources: One entry a decoder layer.
    """

    def __init__(self, sources: Sequence[int]) -> None:
        super().__init__()
        self.sources = list(sources)

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the encoder layers (B, S, D) each -> the memory of every decoder layer, (B, S, D) each."""
        return [outputs[source] for source in self.sources]


class MixedRouting(nn.Module):
    """Every decoder layer attends to a weighted mean of all encoder layers, whose weights are learned.

    One way to let the decoder see more than the last layer, as in layer-wise multi-view decoding (Liu et al. 2020,
    arXiv 2005.08081) and transparent attention (Bapna et al. 2018, arXiv 1808.07561). All begin at the plain mean.

    Args:
        layers: Decoder layers.
        encoder_layers: Encoder layers.
    """

    def __init__(self, layers: int, encoder_layers: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers, encoder_layers))

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the encoder layers (B, S, D) each -> the memory of every decoder layer, (B, S, D) each."""
        return list(torch.einsum("de,ebsk->dbsk", self.scores.softmax(1), torch.stack(list(outputs))))


def make_routing(kind: Routing, layers: int, encoder_layers: int) -> nn.Module:
    """last: all attend to the last layer; same: to that of their own depth; mix: learned; or a list of numbers.

    Raises:
        ValueError: a list that has not one entry a decoder layer, or names a layer that is not there.
    """
    if kind == "mix":
        return MixedRouting(layers, encoder_layers)
    if kind == "last":
        return FixedRouting([-1] * layers)
    if kind == "same":  # a deeper decoder goes on with the last
        return FixedRouting([min(layer, encoder_layers - 1) for layer in range(layers)])
    if len(kind) != layers:
        raise ValueError(f"routing has {len(kind)} entries for {layers} decoder layers")
    for source in kind:
        if not -encoder_layers <= source < encoder_layers:
            raise ValueError(f"routing names encoder layer {source}, there are {encoder_layers} (0 is the first)")
    return FixedRouting(kind)
