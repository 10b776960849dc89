"""Transformer encoder and decoder (Vaswani et al. 2017, arXiv 1706.03762); weights named as torch.nn's layers.

Masks are (B, T) bool, True = valid. What is put out for padded frames means nothing and reaches no valid frame.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from modules.nets.attention import Keys, KVCache, MultiHeadAttention, Padding
from modules.nets.dropout import Dropout
from modules.nets.routing import FixedRouting

Norm = Literal["post", "pre"]
Activation = Literal["relu", "gelu"]


def _keys(mask: Tensor | Padding | None) -> Keys | None:
    padding = Padding.of(mask)
    return None if padding is None else padding.keys


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a shortcut: (B, T, D) -> (B, T, D).

    Args:
        d_model: D.
        heads: Must divide D.
        d_ff: Hidden width of the feed-forward network.
        dropout: After the attention weights, the activation and both parts.
        norm: post normalises each sum (the paper); pre each part's input (Xiong et al. 2020, arXiv 2002.04745), which
            trains without warm-up and leaves the output without a norm: `Encoder` adds it.
        activation: Of the feed-forward network.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        d_ff: int,
        dropout: float = 0.1,
        norm: Norm = "post",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.self_attn = MultiHeadAttention(d_model, heads, dropout)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = Dropout(dropout)

    def _attend(self, x: Tensor, mask: Keys | None) -> Tensor:
        return self.dropout(self.self_attn(x, None, mask))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def forward(self, x: Tensor, mask: Tensor | Padding | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        keys = _keys(mask)
        if self.pre:
            x = x + self._attend(self.norm1(x), keys)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, keys))
        return self.norm2(x + self._feed_forward(x))


class Encoder(nn.Module):
    """Layers in a row, and a last LayerNorm where they are pre-norm: (B, T, D) -> (B, T, D).

    Args:
        layers: Any modules that take (x, mask), such as EncoderLayer or ConformerBlock; at least one.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        last = self.layers[-1]
        self.norm: nn.Module = nn.Identity()
        if isinstance(last, EncoderLayer) and last.pre:
            self.norm = nn.LayerNorm(last.self_attn.d_model)

    def outputs(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The output of every layer, first to last, for a decoder's cross-attention; each (B, T, D).

        All of them pass the last norm, so that a decoder finds the same scale in whichever it attends to.
        """
        found, padding = [], Padding.of(mask)
        for layer in self.layers:
            x = layer(x, padding)
            found.append(self.norm(x))
        return found

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D), mask (B, T) -> (B, T, D)."""
        padding = Padding.of(mask)
        for layer in self.layers:
            x = layer(x, padding)
        return self.norm(x)


class DecoderLayer(nn.Module):
    """Self-attention, attention to a memory, and a feed-forward network, each with a shortcut: (B, T, D) -> (B, T, D).

    Args:
        d_model, heads, d_ff, dropout, norm, activation: As in EncoderLayer.
        causal: No frame sees a later one; False is the decoder that puts out all frames at once.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        d_ff: int,
        dropout: float = 0.1,
        norm: Norm = "post",
        activation: Activation = "relu",
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.causal = causal
        self.self_attn = MultiHeadAttention(d_model, heads, dropout)
        self.multihead_attn = MultiHeadAttention(d_model, heads, dropout)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = Dropout(dropout)

    def _attend(self, x: Tensor, mask: Keys | None, cache: KVCache | None) -> Tensor:
        return self.dropout(self.self_attn(x, None, mask, self.causal, cache=cache))

    def _attend_memory(self, x: Tensor, memory: Tensor | None, mask: Keys | None, cache: KVCache | None) -> Tensor:
        if cache is None or cache.keys is None or cache.keys.shape[0] == x.shape[0]:  # len() would be fixed by export
            return self.dropout(self.multihead_attn(x, memory, mask, cache=cache))
        beams = x.reshape(cache.keys.shape[0], -1, x.shape[2])  # those of a sentence ask its one memory side by side
        return self.dropout(self.multihead_attn(beams, None, mask, cache=cache)).view_as(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        mask: Tensor | Padding | None = None,
        memory_mask: Tensor | Padding | None = None,
        caches: tuple[KVCache | None, KVCache | None] = (None, None),
    ) -> Tensor:
        """(B, T, D), memory (B, S, D), masks (B, T) and (B, S) -> (B, T, D).

        With caches, of self-attention and of the memory, x are the next frames and memory is None; that of the memory
        may have one row for several of x, which follow each other (the beams of a sentence).
        """
        keys, memory_padding = _keys(mask), Padding.of(memory_mask)
        memory_keys = None if memory_padding is None else memory_padding.memory_keys
        if self.pre:
            x = x + self._attend(self.norm1(x), keys, caches[0])
            x = x + self._attend_memory(self.norm2(x), memory, memory_keys, caches[1])
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(x + self._attend(x, keys, caches[0]))
        x = self.norm2(x + self._attend_memory(x, memory, memory_keys, caches[1]))
        return self.norm3(x + self._feed_forward(x))


class DecoderCache:
    """What `Decoder.step` knows of the steps before: every layer's keys and values, and the memory's mask."""

    def __init__(self, layers: list[tuple[KVCache, KVCache]], memory_mask: Tensor | None) -> None:
        self.layers = layers
        self.memory_mask = memory_mask

    @property
    def length(self) -> int:
        """Frames decoded so far: the offset of the next one's position."""
        return self.layers[0][0].length

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Row i becomes the old row rows[i]: permutes, drops or repeats rows; rows (N,) leaves N of them.

        Args:
            rows: (N,) integers: of what was decoded so far.
            sentences: (B,) integers: of the memories, likewise; None leaves them alone, where rows only move within
                their sentence. B divides N.
        """
        for own, cross in self.layers:
            own.reorder(rows)
            if sentences is not None:
                cross.reorder(sentences)
        if sentences is not None and self.memory_mask is not None:
            self.memory_mask = self.memory_mask.index_select(0, sentences)


class Decoder(nn.Module):
    """Layers in a row, each attending to what the encoder put out: (B, T, D) -> (B, T, D).

    Args:
        layers: At least one; pre-norm layers are followed by a last LayerNorm.
        routing: From the outputs of all encoder layers to the memory of each decoder layer (modules/nets/routing.py);
            None is the last encoder layer for all.
    """

    def __init__(self, layers: Iterable[DecoderLayer], routing: nn.Module | None = None) -> None:
        super().__init__()
        chain = list(layers)
        self.layers = nn.ModuleList(chain)
        self.causal = all(layer.causal for layer in chain)
        self.routing = routing or FixedRouting([-1] * len(chain))
        self.norm = nn.LayerNorm(chain[-1].self_attn.d_model) if chain[-1].pre else nn.Identity()

    def forward(
        self,
        x: Tensor,
        memories: Sequence[Tensor],
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """All frames at once: (B, T, D), memories (B, S, D) each, masks (B, T) and (B, S) -> (B, T, D).

        memories are `Encoder.outputs`, or [memory] where the routing is the default.
        """
        padding, memory_padding = Padding.of(mask), Padding.of(memory_mask)
        for layer, memory in zip(self.layers, self.routing(memories), strict=True):
            x = layer(x, memory, padding, memory_padding)
        return self.norm(x)

    def start(self, memories: Sequence[Tensor], memory_mask: Tensor | None = None, room: int = 0) -> DecoderCache:
        """The cache before the first step, with the keys and values of every layer's memory.

        Where the most steps to come are known, `room` makes place for them at once.

        Raises:
            ValueError: A layer is not causal: its earlier frames would change with every new one.
        """
        if not self.causal:
            raise ValueError("only a causal decoder can go step by step")
        layers = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
        pairs = zip(layers, self.routing(memories), strict=True)
        crosses = [layer.multihead_attn.remember(memory) for layer, memory in pairs]
        return DecoderCache([(KVCache(room=room), cross) for cross in crosses], memory_mask)

    def step(self, x: Tensor, cache: DecoderCache) -> Tensor:
        """The next frames, usually one: (B, t, D) -> (B, t, D); the cache is updated."""
        memory_padding = Padding.of(cache.memory_mask)
        for layer, caches in zip(self.layers, cache.layers, strict=True):
            x = layer(x, None, None, memory_padding, caches)
        return self.norm(x)
