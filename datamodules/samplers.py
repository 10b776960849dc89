"""Which rows make up each batch: shuffled by epoch, shared out over ranks, resumable in the middle of an epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from datamodules.errors import DataError

JITTER = 0.03  # of the lengths when they are sorted: company changes from epoch to epoch, padding hardly grows
STRIP = 3  # batches of pairs with the longer side alike, among which the other side tells who shares one


class MemberBatchSampler(Sampler[torch.Tensor]):
    """Row numbers (M, B) of every training step for M networks trained in one pass, each in its own order.

    The order is a pure function of (seed, epoch, member), so two processes agree without talking to each other: the
    global batch is drawn once and each rank takes every world-th row of it. Members with fewer rows than the largest
    fold draw a few of their rows twice in an epoch, so that all take the same number of steps.

    Args:
        rows: For each member its training rows.
        batch_size: Rows a member sees in one optimizer step, over all ranks together.
        seed: Seed of the order.
        rank, world_size: This process and the number of them.
    """

    def __init__(
        self, rows: Sequence[np.ndarray], batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.rows, self.batch_size, self.seed = list(rows), batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.length = max(len(r) for r in self.rows)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = np.stack(
            [np.resize(np.random.default_rng((self.seed, self.epoch, m)).permutation(r), self.length)
             for m, r in enumerate(self.rows)]
        )  # fmt: skip
        table = torch.from_numpy(order)
        start, self.start = self.start, 0
        for step in range(start, len(self)):
            batch = table[:, step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[:, self.rank :: self.world_size]


class EpochBatchSampler(MemberBatchSampler):
    """The same row numbers for data whose noise changes: (epoch, rows (M, B), draws (M, B)).

    A draw counts how often the epoch has had the row before (members with fewer rows draw theirs several times). A last
    batch too small to give every rank two rows is left out: batch norm cannot use it.
    """

    def __len__(self) -> int:
        return super().__len__() - (0 < self.length % self.batch_size < 2 * self.world_size)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:  # type: ignore[override]
        rounds = torch.tensor([[len(r)] for r in self.rows])
        for step, rows in enumerate(super().__iter__(), self.start):
            place = step * self.batch_size + self.rank + self.world_size * torch.arange(rows.shape[1])
            yield self.epoch, rows, place // rounds


def length_buckets(
    lengths: np.ndarray, max_frames: int, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
) -> list[np.ndarray]:
    """Sequence numbers of each batch of an epoch: sequences of like length, batches in random order, each one once.

    The order is a pure function of (seed, epoch); the number of batches is that of every epoch. As with rows, batches
    are those of an optimizer step over all ranks together, and each rank takes every world-th sequence of each: all
    have the same number of batches, none is empty.

    Pairs of sequences go by their longer side. Some batches of them in a row are sorted once more, by how much longer
    the first side is: of pairs that agree in both, neither side is padded much.

    Args:
        lengths: Frames of each sequence, (U,), or of both sides of each pair, (U, 2).
        max_frames: Of a batch over all ranks, sequences x the longest of them; room for 2 w - 1 of the
            longest one is always there, with w ranks.
        seed, epoch: Of the order.
        rank, world_size: This process and the number of them.

    Raises:
        DataError: there are fewer sequences than ranks.
    """
    if len(lengths) < world_size:
        raise DataError(f"{len(lengths)} sequences cannot be shared out over {world_size} processes; start fewer")
    longer, strip = (lengths.max(1), STRIP) if lengths.ndim == 2 else (lengths, 1)
    # the k-th longest after any jitter is at most so long: the same cuts hold for every epoch
    longest = np.floor(-np.sort(-longer) * (1 + JITTER) / (1 - JITTER)).tolist()
    # with 2 w - 1 of the longest, the last batch can be filled up to w and leave w in the one before
    room = max(max_frames, longest[0] * (2 * world_size - 1))
    starts, head = [0], 0
    for place in range(len(longest)):
        if longest[head] * (place + 1 - starts[-1]) > room:
            head = head if len(starts) % strip else place  # anyone in the strip may be in any of its batches
            starts.append(place)
    starts[1:] = [min(start, len(lengths) - world_size) for start in starts[1:]]  # one for each rank in the last batch
    noise = np.random.default_rng((seed, epoch))
    order = np.argsort(-longer * noise.uniform(1 - JITTER, 1 + JITTER, len(longer)))
    if lengths.ndim == 2:
        number = np.searchsorted(starts[::strip], np.arange(len(order)), side="right")
        lean = np.subtract(*lengths[order].T)
        order = order[np.lexsort((np.where(number % 2, lean, -lean), number))]  # to and fro: strips meet where alike
    batches = np.split(order, starts[1:])
    return [batches[i][rank::world_size] for i in noise.permutation(len(batches))]


class LengthBucketSampler(Sampler[torch.Tensor]):
    """Sequence numbers (U,) of every training step: whole sequences of like length, see `length_buckets`.

    Args:
        sequences: Their numbers.
        lengths: Frames of each, (U,), or of both sides of each pair, (U, 2), in the same order.
        max_frames: Of a batch over all ranks, with padding.
        seed: Seed of the order.
        rank, world_size: This process and the number of them.
    """

    def __init__(
        self,
        sequences: np.ndarray,
        lengths: np.ndarray,
        max_frames: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sequences, self.lengths, self.max_frames, self.seed = sequences, lengths, max_frames, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0
        self.length = len(self._batches())

    def _batches(self) -> list[np.ndarray]:
        return length_buckets(self.lengths, self.max_frames, self.seed, self.epoch, self.rank, self.world_size)

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        start, self.start = self.start, 0
        for batch in self._batches()[start:]:
            yield torch.from_numpy(self.sequences[batch])


class ResumableLoader(DataLoader):
    """A DataLoader over whole batches that goes on after the last batch it gave (Lightning saves its state).

    The sampler yields one batch of indices at a time and has a `start` to skip to; nothing is read before the first
    `next`, so Lightning's `set_epoch` is always in time.
    """

    def __init__(self, dataset: Any, sampler: MemberBatchSampler | LengthBucketSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler=sampler, batch_size=None, **kwargs)
        self._given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._given = self.sampler.start  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch were given out."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that many batches; after the last one with a whole new epoch."""
        self._given = self.sampler.start = state["given"] % len(self)  # type: ignore[attr-defined]
