"""Decodes image files once, into a memory map on disk named by what the files hold.

Imports neither torch nor Lightning: every worker that decodes imports this file.
"""

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed
from PIL import Image, ImageOps

from datamodules.errors import DataError
from datamodules.files.cache import CHUNK, content_digests, digest, make_once
from datamodules.files.places import cache_folder
from datamodules.files.progress import progress
from datamodules.files.reading import in_words, read_bytes

try:  # HEIC, as iPhones write it, where the extra heic is installed
    from pillow_heif import register_heif_opener
except ImportError:
    HEIF: tuple[str, ...] = ()
else:
    register_heif_opener()
    HEIF = (".heic", ".heif", ".hif")

FORMAT = 2  # of the maps; another number builds them all again
Image.init()
# what is taken for an image; Pillow would run Ghostscript for a .jpg that holds PostScript
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM")
    if name in Image.OPEN
]
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", *HEIF),
}
LARGEST = 64_000_000  # pixels: 1 GB while they are decoded
LARGEST_JPEG = 150_000_000  # pixels of a JPEG, of which an eighth of the side is decoded where that is enough
HEAVIEST = 1 << 28  # bytes of a file
BAD, GOOD, TOO_LARGE = range(3)  # what became of a file
SHARE = 250  # files that must be there for each worker: with fewer, its start takes longer than its work


class Decoded(NamedTuple):
    """images (N, S, S, 3) uint8, a read-only memory map, row i = file i; good (N,) bool, False where a row is zeros."""

    images: np.ndarray
    good: np.ndarray


def decode(paths: Sequence[Path], size: int, bad: Literal["skip", "refuse"] = "skip") -> Decoded:
    """All images as RGB, squashed to size x size; decoded only where no map of the same contents is there yet.

    A file that is no whole image, or a far too large one, is marked in `good` and named in a warning, or refused.

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
    became = np.fromfile(target, np.uint8, len(names), offset=len(header) + pixels)
    for kind, text, advice in (
        (BAD, "cannot be read", "copy or unzip them again, or move them away"),
        (TOO_LARGE, f"have more than {LARGEST:,} pixels (JPEG: {LARGEST_JPEG:,}) or {in_words(HEAVIEST)}",
         "make them smaller"),
    ):  # fmt: skip
        if len(found := np.flatnonzero(became == kind).tolist()):
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            line = f"{len(found)} of {len(names)} images {text}: {', '.join(names[i] for i in found[:5])}{more}"
            if bad == "refuse":
                raise DataError(f"{line}; {advice}")
            warnings.warn(f"{line}; they are skipped ({advice})", stacklevel=2)
    return Decoded(images, became == GOOD)


def _header(count: int, size: int) -> bytes:
    """The start of a .npy file, so that np.load opens a map too; behind the pixels follows a byte a file, 1 if good."""
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _build(part: Path, header: bytes, names: list[str], size: int) -> None:
    """Decode all files into `part`."""
    became = np.ones(len(names), np.uint8)
    jobs = [(part, len(header) + i * size * size * 3, size, names[i : i + CHUNK]) for i in range(0, len(names), CHUNK)]
    part.write_bytes(header)
    # processes, as Pillow holds the GIL while it decodes; joblib's do not run the user's own script again
    workers = Parallel(n_jobs=max(1, min(cpu_count(), len(names) // SHARE)), return_as="generator")
    with progress("decoding images", total=len(names)) as bar:
        for number, rows in enumerate(workers(delayed(_fill)(*job) for job in jobs)):
            became[number * CHUNK :][: len(rows)] = rows
            bar.update(len(rows))
    with part.open("ab") as file:
        file.write(became.tobytes())


def _fill(part: Path, offset: int, size: int, names: list[str]) -> list[int]:
    """Write the pixels of the files into `part` from byte `offset` on, zeros for a bad one; what became of each."""
    rows, became = np.zeros((len(names), size, size, 3), np.uint8), []
    for row, name in zip(rows, names, strict=True):
        try:
            row[:] = pixels(read_bytes(Path(name), HEAVIEST), size)
        except (MemoryError, OSError) as error:
            if isinstance(error, MemoryError) or error.filename is not None:  # Pillow's OSErrors have no name
                raise
            became.append(BAD)
        except (DataError, Image.DecompressionBombError):
            became.append(TOO_LARGE)
        except Exception:  # Pillow's plugins raise what they like: SyntaxError, struct.error
            became.append(BAD)
        else:
            became.append(GOOD)
    with open(part, "r+b") as file:  # not a memory map: writing to one kills the process when the disk is full
        file.seek(offset)
        file.write(rows.data)
    return became


def pixels(data: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of the image in `data`: upright, RGB on white, squashed as torchvision's Resize does.

    Raises:
        DecompressionBombError: more pixels than LARGEST.
        Exception: no image, or a broken one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images, odd metadata: it is read or it is not
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > (LARGEST_JPEG if image.format in ("JPEG", "MPO") else LARGEST):
            raise Image.DecompressionBombError
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
