"""What a module predicted for each row of a set, kept in one compact file, so that an ensemble needs no second pass."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from callbacks.files import whole

UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises for an .npz file that is cut or damaged, whichever byte it is."""


class Predictions(NamedTuple):
    """Predictions of rows, in ascending order of the rows."""

    rows: np.ndarray
    """Row numbers (N,)."""
    values: np.ndarray
    """Predictions (N,) or class probabilities (N, C), float32."""
    names: str
    """Digest of the rows' names, by which two files are known to speak of the same rows."""
    source: str = ""
    """Digest of the checkpoint, and the folder of the data, that they were computed from; empty where not known."""


def digest(names: Iterable[Any]) -> str:
    """A short digest of names."""
    return hashlib.sha256("\n".join(str(name) for name in names).encode()).hexdigest()[:32]


def source_of(checkpoint: Path, data: Path) -> str:
    """What predictions are computed from: digest of a checkpoint file and the folder of the data."""
    with open(checkpoint, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()[:32]} {data.resolve()}"


def write_predictions(path: Path, kept: Predictions) -> None:
    """Write predictions; probabilities in half precision, which moves them by 0.0005 at most."""
    values = kept.values.astype(np.float16 if kept.values.ndim > 1 else np.float32)
    with whole(path) as scratch, open(scratch, "wb") as file:
        np.savez_compressed(
            file, rows=kept.rows, values=values, names=np.array(kept.names), source=np.array(kept.source)
        )


def read_predictions(path: Path) -> Predictions | None:
    """What `write_predictions` wrote; None where there is no such file, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            source = str(kept["source"]) if "source" in kept else ""  # an older file does not say
            return Predictions(kept["rows"], kept["values"].astype(np.float32), str(kept["names"]), source)
    except UNREADABLE:
        return None
