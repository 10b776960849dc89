"""Datasets of frames: windows of frames, and whole utterances.

Frames are gathered on the device they lie on. What the host must know of a batch (lengths) is a list, which stays on
the host: nobody waits for it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.speech.libriphone import TIMIT_FRAMES, WIDTH
from datamodules.speech.packed import Packed, windows


class Windows(Dataset):
    """Windows of single frames: x (B, n, 39), row (B,), y (B,) where known.

    Indexed by (epoch, rows (1, B), draws) in training; else by the utterances of a batch, whose frames come one
    utterance after the other, with a list of their U lengths.
    """

    def __init__(self, packed: Packed, labels: Tensor | None, window: int, device: torch.device) -> None:
        # on a GPU the frames themselves are small (206 MB for LibriPhone), and gathering there costs next to nothing
        self.frames, self.offsets = packed.frames.to(device), packed.offsets.to(device)
        self.rows = packed.rows.to(device)
        self.shift = None if packed.context is None else packed.shift.to(device)
        self.ends = packed.rows.tolist()  # the same numbers as rows, for which nobody waits
        self.labels = None if labels is None else labels.to(device)
        self.window = window

    def __getitem__(self, index: tuple[int, Tensor, Tensor] | Tensor) -> dict[str, Any]:
        if isinstance(index, tuple):
            return self._gather(
                index[1][0].contiguous().to(self.offsets.device, non_blocking=True)
            )  # a rank's share has gaps
        spans = [torch.arange(self.ends[u], self.ends[u + 1], device=self.offsets.device) for u in index.tolist()]
        lengths = [len(span) for span in spans]
        return self._gather(torch.cat(spans)) | {"lengths": lengths}

    def _gather(self, rows: Tensor) -> dict[str, Tensor]:
        places = rows
        if self.shift is not None:
            places = rows + self.shift[torch.searchsorted(self.rows, rows, right=True) - 1]
        batch = {"x": windows(self.frames, self.offsets, places, self.window), "row": rows}
        return batch if self.labels is None else batch | {"y": self.labels[rows]}


class ReadyWindows(Dataset):
    """TIMIT-11 in another order: the same for rows (N, 429) that are windows already; no utterances, so no lengths."""

    def __init__(self, rows: np.ndarray, labels: Tensor | None, window: int) -> None:
        self.rows, self.labels, self.window = rows, labels, window

    def __getitem__(self, index: tuple[int, Tensor, Tensor] | Tensor) -> dict[str, Tensor]:
        rows = index[1][0] if isinstance(index, tuple) else index
        first = (TIMIT_FRAMES - self.window) // 2
        x = torch.from_numpy(self.rows[rows.numpy()]).view(-1, TIMIT_FRAMES, WIDTH)[:, first : first + self.window]
        return {"x": x, "row": rows} | ({} if self.labels is None else {"y": self.labels[rows]})


class Utterances(Dataset):
    """Whole utterances, padded at their ends: x (U, T, 39), mask (U, T), row (U, T), y (U, T) where known.

    Where the mask is False, x is 0. Where there is no row (padding, context), row and y repeat those of the nearest
    frame that has one. places (F,) are the F frames with a row as numbers into the flattened (U, T), and lengths, a
    list of U, counts them by utterance.
    """

    def __init__(self, packed: Packed, labels: Tensor | None, device: torch.device) -> None:
        self.frames, self.offsets = packed.frames.to(device), packed.offsets
        self.rows, self.shift = packed.rows, packed.shift
        self.labels = None if labels is None else labels.to(device)

    def __getitem__(self, utterances: Tensor) -> dict[str, Any]:
        first, last = self.offsets[utterances, None], self.offsets[utterances + 1, None] - 1
        place = first + torch.arange(int((last - first).max()) + 1)
        nearest, rows = torch.minimum(place, last), place - self.shift[utterances, None]
        row = rows.clamp(self.rows[utterances, None], self.rows[utterances + 1, None] - 1)
        mask, nearest, row, places = (
            part.to(self.frames.device, non_blocking=True)
            for part in (place <= last, nearest, row, (rows == row).flatten().nonzero().squeeze(1))
        )
        x = self.frames.index_select(0, nearest.flatten()).view(*row.shape, -1).masked_fill(~mask.unsqueeze(-1), 0)
        lengths = self.rows[utterances + 1] - self.rows[utterances]
        batch = {"x": x, "mask": mask, "row": row, "places": places, "lengths": lengths.tolist()}
        return batch if self.labels is None else batch | {"y": self.labels[row]}
