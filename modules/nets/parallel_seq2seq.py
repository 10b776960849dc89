"""What a translator that produces all tokens at once has besides encoder and decoder: words unknown, lengths, room."""

import torch
from torch import Tensor, nn

from modules.nets.seq2seq import Memory


class UnknownWords(nn.Module):
    """One learned vector in place of every word that the decoder does not know.

    Args:
        d_model: D.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(d_model))  # as large as the vectors of words (TransformerSeq2Seq.embed)

    def forward(self, embedded: Tensor, known: Tensor) -> Tensor:
        """Vectors of words (B, T, D), and which of them are known (B, T) -> (B, T, D)."""
        return embedded.where(known.unsqueeze(2), self.vector.to(embedded.dtype))


class LengthPredictor(nn.Module):
    """How much longer than its source the target is, from the mean of the encoder's states.

    The classes are differences of length, as in Gu et al. 2018, section 4.1 (arXiv 1711.02281), not lengths: sources
    that are longer than those of the training data have them too.

    Args:
        d_model: D.
        reach: Differences run from -reach to reach.
    """

    def __init__(self, d_model: int, reach: int = 64) -> None:
        super().__init__()
        self.reach = reach
        self.scores = nn.Linear(d_model, 2 * reach + 1)

    def forward(self, memory: Memory) -> Tensor:
        """Memory of B sources -> logits (B, 2 reach + 1)."""
        top, mask = memory.outputs[-1], memory.mask
        if mask is None:
            return self.scores(top.mean(1))
        valid = mask.unsqueeze(2)
        return self.scores(top.masked_fill(~valid, 0.0).sum(1) / valid.sum(1))

    def classes(self, source: Tensor, target: Tensor) -> Tensor:
        """The class of each pair of lengths, (...) and (...) -> (...); differences out of reach become the last one."""
        return (target - source).clamp(-self.reach, self.reach) + self.reach

    def likeliest(self, logits: Tensor, source: Tensor, limits: Tensor, count: int) -> Tensor:
        """The `count` likeliest lengths of each target, best first.

        Args:
            logits: (B, 2 reach + 1).
            source: Lengths of the sources, (B,).
            limits: Longest target allowed, (B,), 1 or more; where fewer than `count` lengths are, some come twice.
            count: At most 2 reach + 1.

        Returns:
            Lengths (B, count), each from 1 to its limit.
        """
        lengths = source.unsqueeze(1) + torch.arange(-self.reach, self.reach + 1, device=source.device)
        fits = (lengths >= 1) & (lengths <= limits.unsqueeze(1))
        best = logits.masked_fill(~fits, -torch.inf).topk(count).indices
        return lengths.gather(1, best).clamp(min=1).minimum(limits.unsqueeze(1))


class Upsampling(nn.Module):
    """Several decoder places for each source token: its state, projected and split (Libovický and Helcl 2018, 3).

    Args:
        d_model: D.
        ratio: Places a source token.
    """

    def __init__(self, d_model: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.project = nn.Linear(d_model, ratio * d_model)

    def forward(self, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Memory of sources (B, S) -> decoder input (B, ratio S, D), and which of it is valid (B, ratio S)."""
        places = self.project(memory.outputs[-1]).unflatten(2, (self.ratio, -1)).flatten(1, 2)
        return places, None if memory.mask is None else memory.mask.repeat_interleave(self.ratio, 1)
