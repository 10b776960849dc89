"""A .pt file of frames, as HW2 and HW4 have them by the ten thousand: read without running what it may hold.

Imports neither torch nor Lightning at its head: workers that make features import this file.
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.files.reading import in_words, read_bytes

LARGEST = 1 << 28  # bytes of the frames of an utterance, four hours of them


def read_tensor(path: Path, width: int) -> np.ndarray:
    """(T, width) float32 of one .pt file; a file with anything but a tensor in it is never run.

    Raises:
        DataError: code or other objects, not such a tensor, no frame, more than four hours of them, or a value that is
            no finite number.
        OSError: the file cannot be read.
    """
    import torch  # here, as workers that make features would wait seconds for it

    data = read_bytes(path, LARGEST)
    if data[:2] == b"PK":
        _refuse_bomb(path, data)
    try:
        x = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError, OSError ..., by where it breaks
        if any(word in str(error).lower() for word in ("unsupported global", "unsupported class")):
            raise DataError(
                f"{path}: holds Python objects, which may run code, and was not opened; expected a plain tensor, get "
                "the file from its source again"
            ) from None
        raise DataError(f"{path}: cannot be read as a tensor file; copy or unzip it again") from None
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided or not x.is_floating_point():
        kind = f"{str(x.dtype).removeprefix('torch.')} tensor" if isinstance(x, torch.Tensor) else type(x).__name__
        raise DataError(f"{path}: holds a {kind}; expected a float tensor of frames x {width}")
    if x.ndim != 2 or x.shape[1] != width:
        raise DataError(f"{path}: shape {tuple(x.shape)}; expected frames x {width}")
    held = x.untyped_storage().nbytes()  # less than what is claimed where the same numbers are shown again and again
    if (claimed := x.numel() * x.element_size()) > LARGEST or claimed > held:
        raise DataError(
            f"{path}: claims {in_words(claimed)} of frames and holds {in_words(held)}; expected all of them, at most "
            f"{in_words(LARGEST)}; save it again"
        )
    if not len(x):
        raise DataError(f"{path}: no frames; take the utterance out of the file that lists it")
    if not bool(x.isfinite().all()):
        frame = int((~x.isfinite()).any(1).int().argmax())
        raise DataError(f"{path}: frame {frame} has a value that is no finite number; make the features again")
    return x.detach().float().numpy()


def _refuse_bomb(path: Path, data: bytes) -> None:
    """A .pt file is a zip without compression, but torch would unpack one with it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as zipped:
            size = sum(info.file_size for info in zipped.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch says what is wrong
    if size > 2 * LARGEST:
        raise DataError(f"{path}: {in_words(size)} unpacked, at most {in_words(2 * LARGEST)} are read; save it again")
