"""Dataset of random stretches of utterances, for speakers."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.speech.noise import add_noise
from datamodules.speech.packed import Packed


class Crops(Dataset):
    """Stretches of utterances, padded at their ends: x (B, T, 40), row (B,), y (B,) where known.

    mask (B, T) is there only where something is padded; there x is 0. Indexed by (epoch, rows (1, B), draws) in
    training: places and noise are a pure function of (seed, epoch, row). Indexed by rows (B,) when judging: the middle
    of each utterance, with the same noise every time.

    Args:
        packed: Frames of all utterances.
        labels: Number of each one's speaker, (U,).
        frames: Length of a stretch; None: whole utterances.
        snr: Lowest and highest signal-to-noise ratio of the noise added, in decibels; None: no noise.
        seed: Of places and noise.
    """

    def __init__(
        self, packed: Packed, labels: Tensor | None, frames: int | None, snr: tuple[float, float] | None, seed: int
    ) -> None:
        self.packed, self.labels, self.frames, self.snr, self.seed = packed, labels, frames, snr, seed
        self.places: tuple[int, np.ndarray] = (-1, np.empty(0))

    def _place(self, epoch: int | None) -> np.ndarray:
        """Where in each utterance the stretch lies, from 0 for its beginning to 1 for its end, (U,)."""
        if epoch is None:
            return np.full(len(self.packed), 0.5)
        if self.places[0] != epoch:
            self.places = epoch, np.random.default_rng((self.seed, epoch, 1)).random(len(self.packed))
        return self.places[1]

    def __getitem__(self, index: tuple[int, Tensor, Tensor] | Tensor) -> dict[str, Tensor]:
        epoch, rows = (index[0], index[1][0]) if isinstance(index, tuple) else (None, index)
        first, end = self.packed.offsets[rows], self.packed.offsets[rows + 1]
        length = end - first
        if self.frames is not None:
            room = (length - self.frames).clamp(min=0)
            chosen = torch.from_numpy(self._place(epoch)[rows.numpy()])
            first = first + (chosen * (room + 1)).long().clamp(max=room)
            length = length.clamp(max=self.frames)
        place = torch.arange(int(length.max()))
        mask = place < length.unsqueeze(1)
        every = first.unsqueeze(1) + torch.minimum(place, length.unsqueeze(1) - 1)
        x = self.packed.frames.index_select(0, every.flatten()).view(*every.shape, -1)
        if self.snr is not None:
            x = self._noisy(x, length, rows, -1 if epoch is None else epoch)
        batch = {"x": x, "row": rows}
        if self.labels is not None:
            batch["y"] = self.labels[rows]
        return batch if mask.all() else batch | {"x": x.masked_fill(~mask.unsqueeze(2), 0), "mask": mask}

    def _noisy(self, x: Tensor, length: Tensor, rows: Tensor, epoch: int) -> Tensor:
        assert self.snr is not None
        x = x.clone()
        for part, frames, row in zip(x, length.tolist(), rows.tolist(), strict=True):
            rng = np.random.default_rng((self.seed, epoch + 1, 2, row))
            part[:frames] = torch.from_numpy(add_noise(part[:frames].numpy(), rng.uniform(*self.snr), rng))
        return x
