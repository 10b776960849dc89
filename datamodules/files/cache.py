"""Files that are made once and kept: named by what they hold, written by one process, appearing by rename.

Imports neither torch nor Lightning: workers that decode images import this file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from datamodules.files.progress import progress
from datamodules.files.reading import require_regular

CHUNK = 32  # files a worker takes at once
THREADS = 4  # that read files to hash them: they wait for the disk


def digest(texts: Sequence[str]) -> str:
    """A short name for a list of texts."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


def _content(name: str) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content_digests(folder: Path, names: list[str]) -> list[str]:
    """Digest of each file; read only where size or times are not those in the index of these names.

    Raises:
        DataError: one is no regular file.
        OSError: a file cannot be read; `filename` says which.
    """
    index = folder / f"index-{digest(names)}.json"
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError):
        known = []
    known += [None] * (len(names) - len(known))
    # the time of the last change of the inode too: unzip sets mtime back to what the archive says
    marks = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in map(require_regular, map(Path, names))]
    stale = [i for i, mark in enumerate(marks) if known[i] is None or known[i][:3] != mark]
    if stale:
        chunks = [stale[i : i + CHUNK] for i in range(0, len(stale), CHUNK)]
        with ThreadPoolExecutor(THREADS) as pool, progress("reading files", total=len(stale)) as bar:
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
