"""Decodes image files once, into a memory map on disk named by what the files hold; later runs only open it.

Imports neither torch nor Lightning: every worker that decodes imports this file.
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed
from PIL import Image, ImageOps
from tqdm import tqdm

from datamodules.errors import DataError

FORMAT = 1  # of the maps; another number builds them all anew
CHUNK = 32  # files a worker takes at once
SHARE = 250  # files that must be there for each worker: with fewer, its start takes longer than its work
THREADS = 4  # that read files to hash them: they wait for the disk


class Decoded(NamedTuple):
    """images (N, S, S, 3) uint8, a read-only memory map, row i = file i; good (N,) bool, False where a row is zeros."""

    images: np.ndarray
    good: np.ndarray


def cache_folder() -> Path:
    """Where the maps lie: $LEEML_CACHE, else .cache/ in the project. It may be deleted whenever no run uses it."""
    if chosen := os.environ.get("LEEML_CACHE"):
        return Path(chosen).expanduser()
    from datamodules.base import PROJECT  # here, because it brings Lightning, which would cost each worker seconds

    return PROJECT / ".cache"


def decode(paths: Sequence[Path], size: int, bad: Literal["skip", "refuse"] = "skip") -> Decoded:
    """All images as RGB, squashed to size x size; decoded only where no map of the same contents is there yet.

    A file that is no whole image is marked in `good` and named in a warning, or refused.

    Raises:
        DataError: bad files under bad="refuse".
        OSError: a file cannot be read, or the cache not be written; `filename` says which.
    """
    names = [os.path.abspath(path) for path in paths]
    if not names:
        return Decoded(np.zeros((0, size, size, 3), np.uint8), np.zeros(0, bool))
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    contents = content_digests(folder, names)
    target = folder / f"{size}px-{digest([str(FORMAT), str(size), *contents])}.npy"
    header = _header(len(names), size)
    pixels = len(names) * size * size * 3
    length = len(header) + pixels + len(names)
    make_once(
        target,
        lambda part: _build(part, header, names, size),
        lambda path: path.is_file() and path.stat().st_size == length,
    )
    images = np.memmap(target, np.uint8, "r", len(header), (len(names), size, size, 3))
    good = np.fromfile(target, np.uint8, len(names), offset=len(header) + pixels).astype(bool)
    if not good.all():
        _report(np.array(names)[~good].tolist(), len(names), bad)
    return Decoded(images, good)


def _report(bad: list[str], count: int, how: Literal["skip", "refuse"]) -> None:
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    text = f"{len(bad)} of {count} images cannot be read: {', '.join(bad[:5])}{more}"
    if how == "refuse":
        raise DataError(f"{text}; copy or unzip them again, or move them away")
    warnings.warn(f"{text}; they are skipped", stacklevel=3)


def digest(texts: Sequence[str]) -> str:
    """A short name for a list of texts."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


def _content(name: str) -> str:
    return hashlib.blake2b(Path(name).read_bytes(), digest_size=16).hexdigest()


def content_digests(folder: Path, names: list[str]) -> list[str]:
    """Digest of each file; read only where size or times are not those in the index of these names."""
    index = folder / f"index-{digest(names)}.json"
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError):
        known = []
    known += [None] * (len(names) - len(known))
    # the time of the last change of the inode too: unzip sets mtime back to what the archive says
    marks = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in map(os.stat, names)]
    stale = [i for i, mark in enumerate(marks) if known[i] is None or known[i][:3] != mark]
    if stale:
        chunks = [stale[i : i + CHUNK] for i in range(0, len(stale), CHUNK)]
        with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(stale), desc="reading files", leave=False) as bar:
            for chunk, fresh in zip(chunks, pool.map(lambda c: [_content(names[i]) for i in c], chunks), strict=True):
                for i, content in zip(chunk, fresh, strict=True):
                    known[i] = [*marks[i], content]
                bar.update(len(chunk))
        with suppress(OSError):  # only saves the next run this reading; a cache may be there to be read only
            _write_whole(index, json.dumps(known).encode())
    return [entry[3] for entry in known]


def make_once(target: Path, make: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.is_file) -> Path:
    """`target`, written by `make(part)` where it is not whole yet, by one process while others wait.

    It appears by rename; whatever goes wrong leaves nothing. An OSError carries a file name.
    """
    if not is_whole(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not is_whole(target):  # else another process made it while this one waited
                _make(target, make)
    return target


def _make(target: Path, make: Callable[[Path], None]) -> None:
    part = target.with_name(f"{target.name}.part")
    try:
        make(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave a file of the right length, and empty
        os.replace(part, target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(target)  # a full disk does not say where
        raise


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)


def _header(count: int, size: int) -> bytes:
    """The start of a .npy file, so that np.load opens a map too; behind the pixels follows a byte a file, 1 if good."""
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _build(part: Path, header: bytes, names: list[str], size: int) -> None:
    """Decode all files into `part`."""
    good = np.ones(len(names), np.uint8)
    jobs = [(part, len(header) + i * size * size * 3, size, names[i : i + CHUNK]) for i in range(0, len(names), CHUNK)]
    part.write_bytes(header)
    # processes, as Pillow holds the GIL while it decodes; joblib's do not run the user's own script again
    workers = Parallel(n_jobs=max(1, min(cpu_count(), len(names) // SHARE)), return_as="generator")
    with tqdm(total=len(names), desc="decoding images", leave=False) as bar:
        for number, rows in enumerate(workers(delayed(_fill)(*job) for job in jobs)):
            good[number * CHUNK :][: len(rows)] = rows
            bar.update(len(rows))
    with part.open("ab") as file:
        file.write(good.tobytes())


def _fill(part: Path, offset: int, size: int, names: list[str]) -> list[bool]:
    """Write the pixels of the files into `part` from byte `offset` on, zeros for a bad one; says which are good."""
    rows, good = np.zeros((len(names), size, size, 3), np.uint8), []
    for row, name in zip(rows, names, strict=True):
        data = Path(name).read_bytes()
        try:
            row[:] = pixels(data, size)
        except MemoryError:
            raise
        except Exception:  # Pillow's plugins raise what they like: SyntaxError, struct.error, DecompressionBombError
            good.append(False)
        else:
            good.append(True)
    with open(part, "r+b") as file:  # not a memory map: writing to one kills the process when the disk is full
        file.seek(offset)
        file.write(rows.data)
    return good


def pixels(data: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of the image in `data`: upright, RGB on white, squashed as torchvision's Resize does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images, odd metadata: it is read or it is not
        image = Image.open(io.BytesIO(data))
        image.draft(None, (2 * size, 2 * size))  # JPEG alone: decode at a half, quarter or eighth, if that is enough
        image.load()
        with suppress(Exception):  # broken metadata does not make a bad image
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip at 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        top = 65535 if image.mode.startswith("I") else next((t for t in (1, 255, 65535) if values.max() <= t), 65535)
        values = values.clip(0) * (255 / max(top, values.max()))
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
