"""Opening a user's files: regular files only, no larger than what memory bears, text in any usual encoding.

Imports neither torch nor Lightning: workers that read files import this file.
"""

import codecs
import os
import stat
from pathlib import Path

from datamodules.errors import DataError

GB = 1 << 30
LARGEST = GB  # bytes of a file that is read whole; the course's largest, train_labels.txt and raw.zh, have 60 million


def require_regular(path: Path) -> os.stat_result:
    """The state of a regular file, or of what a link leads to.

    Raises:
        DataError: a pipe, a device, a socket or a folder: reading it may never end.
        OSError: it is not there, or cannot be looked at.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        link = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
        raise DataError(f"{path}{link}: {_kind(state.st_mode)}; expected a regular file, move it away")
    return state


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def in_words(size: float) -> str:
    """A number of bytes in words: 1.5 GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GB"


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All bytes of a regular file.

    Raises:
        DataError: no regular file, or more than `largest` bytes.
        OSError: the file cannot be read.
    """
    size = require_regular(path).st_size
    if size > largest:
        raise DataError(f"{path}: {in_words(size)}, at most {in_words(largest)} are read; cut it into several files")
    return path.read_bytes()


def decode_text(data: bytes, path: Path) -> str:
    """Text in UTF-8, with or without a mark at its start, or in UTF-16 with one, as Excel and Praat write it.

    Raises:
        DataError: names the file, and the line where it is neither.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    elif b"\0" in data[:4096]:
        what = "UTF-16 without a mark at its start" if data.count(b"\0", 0, 4096) * 3 > len(data[:4096]) else "no text"
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(f"{path}, line {line}: a byte is 0 ({what}); save the file as UTF-8 text")
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise DataError(f"{path}: neither UTF-8 nor UTF-16 text; save it as UTF-8") from None
        found = error.object  # without the mark, which `start` does not count
        line = found.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {found[error.start]:#04x} is no UTF-8; save the file as UTF-8"
        ) from None


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Text of a regular file, see `read_bytes` and `decode_text`."""
    return decode_text(read_bytes(path, largest), path)
