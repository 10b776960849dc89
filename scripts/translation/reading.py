"""Lines of text from files or a pipe, with where each came from."""

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError


class Line(NamedTuple):
    """A line of text and where it stands, for messages."""

    text: str
    place: str


def read(paths: Sequence[Path]) -> Iterator[Line]:
    """Lines of UTF-8 files one after the other, plain or .gz; of standard input where there are none.

    Raises:
        DataError: no UTF-8, or a gz that is cut short.
    """
    if not paths:
        yield from _decoded(sys.stdin.buffer, "standard input")
    for path in paths:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from _decoded(file, str(path))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: cut short or no gz file ({error}); copy or download it again") from None


def _decoded(file: Iterable[bytes], name: str) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]  # of the line without a byte order mark
            raise DataError(f"{place}: byte {byte:#04x} is no UTF-8; save the text as UTF-8") from None
        yield Line(text.removesuffix("\n").removesuffix("\r"), place)
