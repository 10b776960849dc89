"""The course's translator: a bidirectional GRU, attention and a GRU (Bahdanau et al. 2015, arXiv 1409.0473)."""

from typing import Any

import torch
from torch import Tensor, nn

from modules.nets.dropout import Dropout
from modules.nets.recurrent import Recurrent
from modules.nets.seq2seq import Memory, Seq2Seq


class SourceAttention(nn.Module):
    """A word vector asks the source (dot product, Luong et al. 2015) and is mixed with the answer, as the course does.

    Args:
        width: E, of the word vector.
        source_width: D, of the encoder's output.
    """

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(width, source_width, bias=False)
        self.output_proj = nn.Linear(width + source_width, width, bias=False)

    def weights(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of each word (B, T, E) to the source (B, S, D), mask (B, S): (B, T, S), rows sum to 1."""
        scores = self.input_proj(x) @ memory.transpose(1, 2)
        return (scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -torch.inf)).softmax(-1)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, E), (B, S, D), (B, S) -> (B, T, E)."""
        return torch.tanh(self.output_proj(torch.cat([self.weights(x, memory, mask) @ memory, x], -1)))


class RecurrentState:
    """Hidden state (layers, N, H) of every hypothesis, and the memory of B sentences; B divides N."""

    def __init__(self, hidden: Tensor, memory: Memory) -> None:
        self.hidden, self.memory = hidden, memory

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Keep the states of these hypotheses, and the memory of these sentences; see DecoderCache.reorder."""
        self.hidden = self.hidden.index_select(1, rows)
        if sentences is not None:
            mask = self.memory.mask
            self.memory = Memory(
                [out.index_select(0, sentences) for out in self.memory.outputs],
                None if mask is None else mask.index_select(0, sentences),
            )


class RecurrentSeq2Seq(Seq2Seq):
    """The course's network of HW5: 11,247,872 parameters at its own sizes and 7,992 words.

    The attention comes before the decoder's GRU and depends on the word alone, so that training needs no loop over
    steps. (The course's code lets the encoder run over padding; this one begins and ends with each sentence.)

    Args:
        vocabulary: V.
        width: E, of the word vectors.
        hidden: Width of each direction of the encoder; the decoder's is twice that.
        layers: Of encoder and decoder.
        dropout: Of word vectors, outputs, and between layers.
    """

    def __init__(
        self, vocabulary: int, width: int = 256, hidden: int = 512, layers: int = 1, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.source_table = nn.Embedding(vocabulary, width)
        self.encoder = Recurrent(width, hidden, layers, "gru", True, dropout)
        self.target_table = nn.Embedding(vocabulary, width)
        self.attention = SourceAttention(width, 2 * hidden)
        self.decoder = Recurrent(width, 2 * hidden, layers, "gru", False, dropout)
        self.project_out = nn.Linear(2 * hidden, width)
        self.dropout = Dropout(dropout)
        self.apply(self._begin)

    @staticmethod
    def _begin(part: nn.Module) -> None:
        """The course's initial weights."""
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.RNNBase):
            for parameter in part.parameters():
                nn.init.uniform_(parameter, -0.1, 0.1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: torch.compile makes a dozen graphs of the recurrent layers, and none of them is faster."""

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Memory:
        """Source tokens (B, S) and which of them are valid (B, S)."""
        out, hidden = self.encoder.run(self.dropout(self.source_table(source)), mask)
        both = torch.cat([hidden[0::2], hidden[1::2]], dim=-1)  # (layers, B, 2 x hidden)
        return Memory([self.dropout(out)], mask, both)

    def embed(self, target: Tensor) -> Tensor:
        """Target tokens (B, T) -> (B, T, E)."""
        return self.target_table(target)

    def _run(self, embedded: Tensor, memory: Memory, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.dropout(embedded)
        (outputs,) = memory.outputs
        beams = x.reshape(outputs.shape[0], -1, x.shape[2])  # those of a sentence ask its one memory side by side
        asked = self.attention(beams, outputs, memory.mask).view_as(x)
        out, hidden = self.decoder.run(asked, None, hidden)
        assert hidden is not None
        return self.project_out(self.dropout(out)), hidden

    def decode(self, embedded: Tensor, memory: Memory) -> Tensor:
        """(B, T, E) -> (B, T, E)."""
        return self._run(embedded, memory, memory.hidden)[0]

    def start(self, memory: Memory, room: int = 0) -> RecurrentState:
        """The encoder's last states, side by side; they need no room to grow."""
        assert memory.hidden is not None
        return RecurrentState(memory.hidden, memory)

    def step(self, embedded: Tensor, state: RecurrentState) -> Tensor:
        """(N, t, E) -> (N, t, E)."""
        states, state.hidden = self._run(embedded, state.memory, state.hidden)
        return states

    @property
    def output_weight(self) -> Tensor:
        """The target's word vectors, (V, E)."""
        return self.target_table.weight

    def logits(self, states: Tensor) -> Tensor:
        """(..., E) -> (..., V)."""
        return nn.functional.linear(states, self.output_weight)
