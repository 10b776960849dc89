"""LSTM or GRU over padded batches of sequences, in both directions (Graves and Schmidhuber 2005)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Recurrent(nn.Module):
    """A stack of recurrent layers that never sees padding: the backward direction begins at each sequence's own end.

    It computes in the type of its weights, also under autocast.

    Args:
        features: Width of the input.
        hidden: Width of a direction.
        layers: Layers on top of each other.
        cell: lstm (Hochreiter and Schmidhuber 1997) or gru (Cho et al. 2014).
        bidirectional: Read from both ends; the output is then 2 x hidden wide.
        dropout: Between layers.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        layers: int = 1,
        cell: Literal["lstm", "gru"] = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        between = dropout if layers > 1 else 0.0  # there is none after the last layer
        self.rnn = kind(features, hidden, layers, batch_first=True, bidirectional=bidirectional, dropout=between)
        self.out = hidden * (2 if bidirectional else 1)
        """Width of the output."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: torch.compile breaks its graph at every recurrent layer, which is a single kernel already."""

    def run(self, x: Tensor, mask: Tensor | None = None, hidden: Any = None) -> tuple[Tensor, Any]:
        """Outputs (B, T, out) as `forward` gives them, and torch's state of all layers after each sequence's own end.

        Args:
            x: (B, T, features).
            mask: (B, T), as in `forward`.
            hidden: The state to begin with, as torch has it: (layers x directions, B, hidden), an LSTM two of them.
        """
        # under autocast cuDNN would take float16 whatever the type asked for, where most of the gradients are zero
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(next(self.rnn.parameters()).dtype)
            if mask is None:
                return self.rnn(x, hidden)
            # torch wants the lengths on the CPU: one wait for the device a batch
            packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
            out, hidden = self.rnn(packed, hidden)
            return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], hidden

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, features) -> (B, T, out); mask (B, T) is True for the frames that are there, from the first on.

        The output is 0 where the mask is False. Sequences must hold at least one frame.
        """
        return self.run(x, mask)[0]
