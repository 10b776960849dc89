"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2) and what step-by-step decoding keeps of it.

Masks are bool everywhere: True is a valid frame, or a key that a query may attend to.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.nets.dropout import dropped
from modules.nets.positions import RelativePositions


def padding_mask(lengths: Tensor, length: int) -> Tensor:
    """Which frames are valid: (B,) lengths -> (B, length) bool, True before each row's end."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def every_nth(mask: Tensor, stride: int) -> Tensor:
    """The mask of every stride-th frame, (B, T) -> (B, ceil(T / stride)).

    As mask[:, ::stride], by the steps that `stacked` takes with frames: torch.export then sees that both lengths agree.
    """
    return mask if stride == 1 else mask.unfold(1, 1, stride).any(2)


class Padding:
    """What the layers of a stack derive from the mask of their frames, once for all of them.

    Args:
        valid: (B, T) bool, True = valid.
    """

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid
        self._memory_keys: Keys | None = None
        self._weights: dict[torch.dtype, Tensor] = {}
        self._count: Tensor | None = None

    @staticmethod
    def of(mask: "Tensor | Padding | None") -> "Padding | None":
        """That of a mask (B, T); one that is there already, or None, as it is."""
        return Padding(mask) if isinstance(mask, Tensor) else mask

    @property
    def memory_keys(self) -> "Keys":
        """The attention mask that hides padded keys from the queries of other sequences."""
        if self._memory_keys is None:
            self._memory_keys = Keys.of(self.valid[:, None, None, :])
        return self._memory_keys

    @property
    def keys(self) -> "Keys":
        """The same for their own queries: where all keys are padded, so are the queries, whose results mean nothing."""
        return Keys(self.memory_keys.allowed, None)

    def weights(self, dtype: torch.dtype) -> Tensor:
        """(B, T, 1), 1 = valid, 0 = padded."""
        if dtype not in self._weights:
            self._weights[dtype] = self.valid.unsqueeze(-1).to(dtype)
        return self._weights[dtype]

    def count(self, dtype: torch.dtype) -> Tensor:
        """Number of valid frames, but at least 1, ()."""
        if self._count is None:
            self._count = self.valid.sum(dtype=dtype).clamp(min=1)
        return self._count.to(dtype)


class Keys(NamedTuple):
    """Which keys may be attended to, so that no backend meets a softmax over nothing."""

    allowed: Tensor
    """Broadcastable to (B, heads, Tq, Tk), True = may; all of them for a query that may attend to nothing."""
    none: Tensor | None
    """(..., Tq, 1), True = this query may attend to nothing, and gets zeros; None: what those get does not matter."""

    @staticmethod
    def of(mask: Tensor) -> "Keys":
        """From a mask broadcastable to (B, heads, Tq, Tk)."""
        none = ~mask.any(-1, keepdim=True)
        return Keys(mask | none, none)

    @property
    def mask(self) -> Tensor:
        """The mask that it was made of."""
        return self.allowed if self.none is None else self.allowed & ~self.none


def key_mask(valid: Tensor | None) -> Tensor | None:
    """The attention mask that hides padded keys from every query and head: (B, T) -> (B, 1, 1, T)."""
    return None if valid is None else valid[:, None, None, :]


class KVCache:
    """Keys and values (B, heads, T, D / heads) of one attention, for decoding step by step.

    An empty one grows along time with each step of self-attention: within a block that has `room` for so many steps, or
    by concatenation where this is 0, as in beam search, which copies all of it at every step anyway.
    One from `MultiHeadAttention.remember` is fixed: the memory of cross-attention, projected once.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, room: int = 0) -> None:
        self.keys = keys
        self.values = values
        self.fixed = keys is not None
        self.room, self.length = room, 0 if keys is None else keys.shape[2]
        """`length` is T so far."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, heads, t, D / heads) at the end; all keys and values so far."""
        start, self.length = self.length, self.length + keys.shape[2]
        if not self.room:
            if self.keys is not None and self.values is not None:
                keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
            self.keys, self.values = keys, values
            return keys, values
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.room, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = keys, values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def reorder(self, index: Tensor) -> None:
        """Row i becomes the old row index[i]: permutes, drops or repeats rows; index (N,) leaves N of them."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)


class MultiHeadAttention(nn.Module):
    """Attention of queries (B, Tq, D) to keys and values (B, Tk, D); weights named as torch.nn.MultiheadAttention's.

    A query that may attend to nothing gets zeros from every head, so its output is the bias of the output projection.
    No backend is relied on for this: such a row is let attend to all and its result is replaced, because a softmax
    over nothing is NaN in some of them. What padded keys hold must be finite, but does not matter otherwise.

    Args:
        d_model: D.
        heads: Must divide D.
        dropout: Share of the attention weights dropped in training.
        bias: Of the four projections.
        relative: Scores positions relative to the query; for self-attention without a cache.

    Raises:
        ValueError: heads does not divide d_model.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        relative: RelativePositions | None = None,
    ) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"d_model={d_model} is not divisible by heads={heads}")
        self.d_model = d_model
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))  # one product for self-attention
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model)) if bias else None
        self.out_proj = nn.Linear(d_model, d_model, bias)
        self.relative = relative
        nn.init.xavier_uniform_(self.in_proj_weight)  # both as torch does
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def _project(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """(B, T, D) through parts first to last of query, key, value: each (B, heads, T, D / heads)."""
        weight: Tensor = self.in_proj_weight
        bias: Tensor | None = self.in_proj_bias
        if last - first < 3:
            rows = slice(first * self.d_model, last * self.d_model)
            weight, bias = weight[rows], None if bias is None else bias[rows]
        return self._heads(F.linear(x, weight, bias), last - first)

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts D) -> parts of (B, heads, T, D / heads)."""
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(parts, -1))

    def remember(self, memory: Tensor) -> KVCache:
        """Keys and values of a memory (B, Tk, D), for `forward` to take as cache in place of the memory."""
        keys, values = self._project(memory, 1, 3)
        return KVCache(keys, values)

    def _queries_keys_values(
        self, query: Tensor, key_value: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of forward's arguments, (B, heads, T, D / heads) each."""
        if key_value is not None:
            # split, as the gradient of slices is a kernel for each and one for their sum
            sizes = [self.d_model, 2 * self.d_model]
            weights = self.in_proj_weight.split(sizes)
            biases = [None, None] if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
            (q,) = self._heads(F.linear(query, weights[0], biases[0]), 1)
            k, v = self._heads(F.linear(key_value, weights[1], biases[1]), 2)
        elif cache is not None and cache.fixed and cache.keys is not None and cache.values is not None:
            (q,), k, v = self._project(query, 0, 1), cache.keys, cache.values
        else:
            q, k, v = self._project(query, 0, 3)
            if cache is not None:
                k, v = cache.append(k, v)
        return q, k, v

    def _add_relative(self, q: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Queries and additive scores with those of relative positions, if there are any."""
        if self.relative is None:
            return q, bias
        q, scores = self.relative(q)
        return q, scores if bias is None else scores + bias

    def forward(
        self,
        query: Tensor,
        key_value: Tensor | None = None,
        mask: Tensor | Keys | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Eq. 1 in every head: (B, Tq, D) -> (B, Tq, D).

        Args:
            query: (B, Tq, D).
            key_value: (B, Tk, D); None is self-attention, or attention to a fixed cache.
            mask: Keys that may be attended to, broadcastable to (B, heads, Tq, Tk), such as (B, 1, 1, Tk) for padding;
                or the `Keys` of such a mask.
            causal: No query attends to a later key; the queries are the last Tq of the Tk keys.
            bias: Added to the scores; broadcastable to (B, heads, Tq, Tk).
            cache: Of self-attention: gets the new keys and values, and all it holds is attended to. Of a memory
                (`remember`): is attended to.
        """
        q, k, v = self._queries_keys_values(query, key_value, cache)
        q, bias = self._add_relative(q, bias)
        if causal and (mask is not None or bias is not None or q.shape[2] != k.shape[2]):
            mask = mask.mask if isinstance(mask, Keys) else mask
            mask, causal = _with_causal(mask, q, k), False  # SDPA takes a mask or is_causal, and aligns the first keys
        keys = Keys.of(mask) if isinstance(mask, Tensor) else mask
        allowed = None if keys is None else keys.allowed
        if bias is not None:
            allowed = bias if allowed is None else bias.masked_fill(~allowed, -torch.inf)
        dropout = self.dropout if self.training else 0.0
        in_steps = q.device.type == "cpu" and (dropout > 0 or q.element_size() < 4)  # torch's own kernel is slower
        if in_steps and not torch.compiler.is_compiling():
            out = _by_steps(q, k, v, _with_causal(None, q, k) if causal else allowed, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, allowed, dropout, causal)
        if keys is not None and keys.none is not None:
            out = out.masked_fill(keys.none, 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def weights(
        self,
        query: Tensor,
        key_value: Tensor | None = None,
        mask: Tensor | Keys | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The attention weights (B, heads, Tq, Tk), for pictures; arguments as in forward, without dropout.

        Rows sum to 1, or to 0 where there is nothing to attend to. forward never holds them, so call this from a
        forward pre-hook to see those of a network: its positional arguments are these.
        """
        mask = mask.mask if isinstance(mask, Keys) else mask
        q, k, _ = self._queries_keys_values(query, key_value, None)
        q, bias = self._add_relative(q, bias)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        if causal:
            mask = _with_causal(mask, q, k)
        if mask is None:
            return scores.softmax(-1)
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def _by_steps(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float) -> Tensor:
    """scaled_dot_product_attention in three products, for a CPU.

    With dropout torch takes these steps too, but with slower masks; its fused kernel, in bfloat16, takes 1.8 to 8.5
    times as long on sequences of up to 300, and 0.8 times as long on those of 1,000.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    weights = scores.softmax(-1)
    return (dropped(weights, dropout) if dropout else weights) @ v


def _with_causal(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Mask, if any, and that no query sees a later key, where the queries (..., Tq, d) are the last of the keys."""
    queries, keys = q.shape[-2], k.shape[-2]
    if queries == 1:
        return mask
    past = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return past if mask is None else mask & past
