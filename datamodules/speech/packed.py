"""Frames of all utterances end to end in one memory map, and windows of them gathered when a batch is made."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from joblib import Parallel, cpu_count, delayed
from torch import Tensor

from datamodules.errors import DataError
from datamodules.files.cache import content_digests, digest, make_once
from datamodules.files.places import cache_folder
from datamodules.files.progress import progress

SHARE = 5000  # files that must be there for each worker
FORMAT = 1  # of the maps; another number builds them all again

Precision = Literal["float32", "float16"]


@dataclass(frozen=True, eq=False)
class Packed:
    """Utterance u is frames[offsets[u] : offsets[u + 1]]. A copy in another process opens the map again.

    frames: (N, D) float32 or float16, backed by the file where `path` is given. offsets: (U + 1,) int64. context:
    (U, 2) int64, frames at an utterance's beginning and end that are seen but have no row: no label, no prediction.
    """

    frames: Tensor
    offsets: Tensor
    path: Path | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, utterance: int) -> Tensor:
        """Frames (T, D) of one utterance, not copied."""
        start, end = self.offsets[utterance : utterance + 2].tolist()
        return self.frames[start:end]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_open, (self.path,)) if self.path else (Packed, (self.frames, self.offsets, None, self.context))

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance, (U,) int64."""
        return self.offsets.diff().numpy()

    @property
    def rows(self) -> Tensor:
        """Rows of utterance u are rows[u] to rows[u + 1] - 1, (U + 1,) int64: its frames without the context."""
        if self.context is None:
            return self.offsets
        return self.offsets - torch.cat([self.context.new_zeros(1), self.context.sum(1).cumsum(0)])

    @property
    def shift(self) -> Tensor:
        """Number of a frame of utterance u less that of its row, (U,) int64."""
        first = self.offsets[:-1] if self.context is None else self.offsets[:-1] + self.context[:, 0]
        return first - self.rows[:-1]


def pack(files: Sequence[Path], read: Callable[[Path], np.ndarray], precision: Precision = "float32") -> Packed:
    """All utterances in one memory map in the cache; read only where no map of the same contents is there yet.

    Args:
        files: At least one.
        read: Frames (T, D) of a file, all with one D; a named function, as its name is part of the key.
        precision: Of the map.

    Raises:
        DataError: what `read` raises, or a value that float16 cannot hold; then no map is left.
        OSError: a file cannot be read, or the cache not be written; `filename` says which.
    """
    names = [os.path.abspath(path) for path in files]
    folder = cache_folder() / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    key = [str(FORMAT), f"{read.__module__}.{read.__qualname__}", *content_digests(folder, names)]
    target = folder / f"{precision}-{digest(key)}.npy"
    return _open(make_once(target, lambda part: _build(part, _offsets(target), names, read, precision), _is_whole))


def concatenate(utterances: Sequence[np.ndarray]) -> Packed:
    """Utterances (T, D) packed in memory."""
    offsets = np.cumsum([0, *map(len, utterances)])
    return Packed(torch.from_numpy(np.concatenate(utterances)), torch.from_numpy(offsets))


def _offsets(target: Path) -> Path:
    return target.with_suffix(".offsets.npy")


def _open(target: Path) -> Packed:
    # copy on write: nothing is ever written, but torch warns of arrays that cannot be
    frames = np.load(target, mmap_mode="c")
    return Packed(torch.from_numpy(frames), torch.from_numpy(np.load(_offsets(target))), target)


def _is_whole(target: Path) -> bool:
    try:
        _open(target)
    except (OSError, ValueError, EOFError):  # not there, or cut
        return False
    return True


def _build(
    part: Path, offsets: Path, names: list[str], read: Callable[[Path], np.ndarray], precision: Precision
) -> None:
    """Read all files into `part`, and write where each begins into `offsets`."""
    lengths: list[int] = []
    width = 0
    # a .pt file takes 1.5 ms: fewer than SHARE are read before a worker has loaded torch
    workers = Parallel(n_jobs=max(1, min(cpu_count(), len(names) // SHARE)), return_as="generator")
    found = workers(delayed(read)(Path(name)) for name in names)
    with part.open("w+b") as file, progress("packing frames", found, len(names)) as bar:
        for name, rows in zip(names, bar, strict=True):
            with np.errstate(over="ignore"):  # said below, with the name of the file
                rows = np.ascontiguousarray(rows, precision)
            if not np.isfinite(rows).all():
                raise DataError(f"{name}: a value that is no finite number, or too large for {precision}; fix it")
            if not lengths:
                width = rows.shape[1]
                _write_header(file, 0, width, precision)
            if rows.shape[1:] != (width,):
                raise DataError(f"{name}: frames of shape {rows.shape[1:]}, expected {width} wide as in {names[0]}")
            file.write(rows.data)
            lengths.append(len(rows))
        file.seek(0)
        _write_header(file, sum(lengths), width, precision)  # NumPy leaves room in it for any number of rows
    offsets.unlink(missing_ok=True)
    make_once(offsets, lambda part: _save(part, np.cumsum([0, *lengths])))


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save itself adds a suffix to a name
        np.save(file, array)


def _write_header(file: BinaryIO, count: int, width: int, precision: Precision) -> None:
    fields = {"descr": np.dtype(precision).str, "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(file, fields)


def windows(frames: Tensor, offsets: Tensor, index: Tensor, n: int) -> Tensor:
    """Windows (B, n, D) around the frames `index` (B,): n is odd, the utterance's first and last frame are repeated.

    frames (N, D) and offsets (U + 1,) as in Packed, on one device with index; only the batch itself is copied.
    """
    utterance = torch.searchsorted(offsets, index, right=True)
    first, last = offsets[utterance - 1], offsets[utterance] - 1
    near = index[:, None] + torch.arange(-(n // 2), n // 2 + 1, device=index.device)
    rows = torch.minimum(torch.maximum(near, first[:, None]), last[:, None])
    return frames.index_select(0, rows.flatten()).view(*rows.shape, frames.shape[1])
