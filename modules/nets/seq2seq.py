"""What every translator offers, and the Transformer as one (Vaswani et al. 2017, arXiv 1706.03762)."""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.nets.dropout import Dropout
from modules.nets.positions import LearnedPositions, Positions, absolute_positions
from modules.nets.routing import Routing, make_routing
from modules.nets.transformer import Activation, Decoder, DecoderCache, DecoderLayer, Encoder, EncoderLayer, Norm


class Memory(NamedTuple):
    """What the encoder leaves for the decoder."""

    outputs: list[Tensor]
    """Of every encoder layer that the decoder may look at, (B, S, D) each; the last one is the top."""
    mask: Tensor | None
    """(B, S), True = valid."""
    hidden: Tensor | None = None
    """State that a recurrent decoder begins with, (layers, B, H)."""


class Seq2Seq(nn.Module, ABC):
    """From source tokens (B, S) and the target tokens so far (B, T) to scores of the next ones (B, T, V).

    Training feeds the whole target at once: `encode`, `embed`, `decode`, `logits`; `forward` is the four in a row.
    Decoding goes on step by step from what `start` returns: its `reorder(rows, sentences)` moves hypotheses about, see
    `DecoderCache.reorder`.
    """

    max_length: int | None = None
    """Longest sequence that positions are there for; None: any."""

    @property
    def output_weight(self) -> Tensor | None:
        """(V, D), where logits are the product of states and nothing else than its rows; None: they are more."""
        return None

    @abstractmethod
    def encode(self, source: Tensor, mask: Tensor | None = None) -> Memory:
        """Source tokens (B, S) and which of them are valid (B, S)."""

    @abstractmethod
    def embed(self, target: Tensor) -> Tensor:
        """Word vectors of target tokens (B, T) -> (B, T, E), without positions: mixtures of them may be decoded too."""

    @abstractmethod
    def decode(self, embedded: Tensor, memory: Memory) -> Tensor:
        """All steps at once: word vectors (B, T, E) of what comes before each -> states (B, T, D)."""

    @abstractmethod
    def start(self, memory: Memory, room: int = 0) -> Any:
        """The state before the first step; one row a sentence. `room`: most steps to come, 0 where it is unknown."""

    @abstractmethod
    def step(self, embedded: Tensor, state: Any) -> Tensor:
        """The next steps, usually one: word vectors (N, t, E) -> states (N, t, D); `state` is updated."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """Scores of every word of the vocabulary, (..., D) -> (..., V)."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As nn.Module's, of the ways that training goes: `forward` is not among them. Steps stay as they are."""
        for way in ("encode", "decode"):
            setattr(self, way, torch.compile(getattr(self, way), *args, **kwargs))

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Source (B, S), target (B, T) that begins with BOS, mask of the source (B, S) -> logits (B, T, V)."""
        return self.logits(self.decode(self.embed(target), self.encode(source, mask)))


class TransformerSeq2Seq(Seq2Seq):
    """Encoder and decoder of the paper; one table of word vectors serves source, target and output (section 3.4).

    Args:
        vocabulary: V, of the joint vocabulary.
        d_model: D.
        heads: Of every attention.
        d_ff: Hidden width of the feed-forward networks.
        layers: Of the encoder.
        decoder_layers: None: as many.
        dropout: As in the layers, and of the word vectors with their positions.
        norm: post (the paper) or pre.
        activation: Of the feed-forward networks.
        positions: Added to the word vectors on both sides, which share a learned table.
        max_length: Size of a learned table.
        routing: Which encoder layers the decoder's layers attend to (modules/nets/routing.py).
        share: False gives source, target and output tables of their own.
        causal: False lets every target position see all others (non-autoregressive decoding).
    """

    def __init__(
        self,
        vocabulary: int,
        d_model: int = 512,
        heads: int = 8,
        d_ff: int = 2048,
        layers: int = 6,
        decoder_layers: int | None = None,
        dropout: float = 0.1,
        norm: Norm = "post",
        activation: Activation = "relu",
        positions: Positions = "sinusoidal",
        max_length: int = 1024,
        routing: Routing = "last",
        share: bool = True,
        causal: bool = True,
    ) -> None:
        super().__init__()
        depth = decoder_layers or layers
        self.d_model = d_model
        self.source_table = nn.Embedding(vocabulary, d_model)
        self.target_table = self.source_table if share else nn.Embedding(vocabulary, d_model)
        self.output_table = self.source_table if share else nn.Embedding(vocabulary, d_model)
        for table in dict.fromkeys([self.source_table, self.target_table, self.output_table]):  # in this order
            nn.init.normal_(table.weight, std=d_model**-0.5)  # sqrt(d_model) x it begins near 1, and so do logits
        self.positions = absolute_positions(positions, d_model, max_length)
        self.max_length = max_length if isinstance(self.positions, LearnedPositions) else None
        self.dropout = Dropout(dropout)
        self.encoder = Encoder(EncoderLayer(d_model, heads, d_ff, dropout, norm, activation) for _ in range(layers))
        self.decoder = Decoder(
            [DecoderLayer(d_model, heads, d_ff, dropout, norm, activation, causal) for _ in range(depth)],
            make_routing(routing, depth, layers),
        )

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Memory:
        """Source tokens (B, S) and which of them are valid (B, S)."""
        x = self.source_table(source) * math.sqrt(self.d_model)
        return Memory(self.encoder.outputs(self.dropout(self.positions(x)), mask), mask)

    def embed(self, target: Tensor) -> Tensor:
        """Target tokens (B, T) -> (B, T, D)."""
        return self.target_table(target) * math.sqrt(self.d_model)

    def decode(self, embedded: Tensor, memory: Memory, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); the mask (B, T) of the target is needed where the decoder is not causal."""
        return self.decoder(self.dropout(self.positions(embedded)), memory.outputs, mask, memory.mask)

    def start(self, memory: Memory, room: int = 0) -> DecoderCache:
        """Keys and values of the memory, and room for those to come."""
        return self.decoder.start(memory.outputs, memory.mask, room)

    def step(self, embedded: Tensor, state: DecoderCache) -> Tensor:
        """(N, t, D) -> (N, t, D)."""
        return self.decoder.step(self.dropout(self.positions(embedded, state.length)), state)

    @property
    def output_weight(self) -> Tensor:
        """The table that states are multiplied with, (V, D): the one of the inputs where they share it."""
        return self.output_table.weight

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(states, self.output_weight)
