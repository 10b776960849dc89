"""Files that appear whole or not at all."""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def clear_parts(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes of this machine left of files that they were writing.

    Args:
        folder: Where to look.
        name: Of the file; None: of all files in the folder and below.
    """
    pattern = "**/.*.part" if name is None else f".{glob.escape(name)}.*.part"
    for path in folder.glob(pattern):
        owner = re.search(r"\.(\d+)\.part$", path.name)
        if owner and not is_running(int(owner[1])):
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether another process of this machine has the number."""
    if pid == os.getpid() or os.name == "nt":  # there os.kill(pid, 0) would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent, path.name)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")  # its own for every process
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):  # names the file that was wanted, not the one beside it
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, its line ends as they are."""
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")
