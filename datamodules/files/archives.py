"""Packed archives, zip and tar: looked through before a byte is written, unpacked whole or not at all."""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NamedTuple

from datamodules.errors import DataError
from datamodules.files.reading import in_words, require_regular
from datamodules.files.staging import move_all, staging

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
CHUNK = 1 << 16  # bytes copied at once
MOST = 2_000_000  # members of an archive
HARMLESS = 1 << 28  # bytes that may come of any archive, however small
RATIO = 100  # times its own size that more than that may come of an archive; text shrinks to a tenth at best
HEADER = 1 << 24  # bytes that a header may claim at once
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError),
    gzip.BadGzipFile,
)


class _Member(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_plain: bool  # a file or folder, no link, pipe or device
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack into `folder` and return the files' paths; what is there already with its size is kept.

    All members are looked at first, and files appear in the folder when all of them are whole.

    Raises:
        DataError: with nothing written, when a member would land outside the folder, is a link, stands twice in it, or
            stands against a file of another size; when far more would come of the archive than its own size, or than
            the disk has room for; and when it is broken.
    """
    try:
        own_size = require_regular(archive).st_size
        with (_zip if archive.name.lower().endswith(".zip") else _tar)(archive) as members:
            files = _looked_through(archive, own_size, members, folder)
            missing = [path for path in files if not path.exists()]
            for path in files.keys() - missing:
                if path.stat().st_size != files[path].size:
                    raise DataError(f"{path}: differs from the one in {archive}: move it away and unpack again")
            _require_room(archive, folder, sum(files[path].size for path in missing))
            with staging(folder / f".{archive.name}.unpacking") as made:
                for path in missing:
                    staged = made / path.relative_to(folder)
                    staged.parent.mkdir(parents=True, exist_ok=True)
                    with files[path].open() as source, staged.open("wb") as sink:
                        shutil.copyfileobj(source, sink, CHUNK)
                    if staged.stat().st_size != files[path].size:
                        raise EOFError(f"{files[path].name} ends too early")
                for path in missing:
                    path.parent.mkdir(parents=True, exist_ok=True)
                move_all((made / path.relative_to(folder), path) for path in missing)
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's for a broken file
            raise _broken(archive, error) from error
        raise DataError(f"{archive}: cannot be unpacked into {folder}: {error.strerror or error}") from error
    except BROKEN as error:
        raise _broken(archive, error) from error
    return list(files)


class Opened(NamedTuple):
    """Folders with the contents of archives, by `opened`."""

    origins: dict[Path, Path]
    """From folder to archive."""

    @property
    def folders(self) -> list[Path]:
        """In the order of the archives."""
        return list(self.origins)

    def as_packed(self, text: str) -> str:
        """A message that names archives in place of folders, which are gone when the user reads it."""
        for place, archive in self.origins.items():
            text = text.replace(f"into {place}", f"into {place.parent.parent}")
            text = text.replace(f"{place}{os.sep}", f"{archive}: ").replace(str(place), str(archive))
        return text


@contextmanager
def opened(archives: Sequence[Path], place: Path) -> Iterator[Opened]:
    """The contents of archives in folders below `place`, for as long as they are read.

    Raises:
        DataError: of `unpack`, or of what reads the folders; it names the archives.
    """
    found = Opened({place / f"{number:06}": archive for number, archive in enumerate(archives)})
    try:
        with staging(place):
            for folder, archive in found.origins.items():
                folder.mkdir()
                unpack(archive, folder)
            yield found
    except DataError as error:
        raise DataError(found.as_packed(str(error))) from None


def archives_in(folder: Path) -> list[Path]:
    """Archives that lie right in a folder, sorted; none where there is no such folder."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if path.name.lower().endswith(ENDINGS) and path.is_file() and path.name[0] != "."]


def stem(archive: Path) -> str:
    """The name of an archive without .zip or .tar.gz."""
    ending = next((ending for ending in ENDINGS[::-1] if archive.name.lower().endswith(ending)), archive.suffix)
    return archive.name[: len(archive.name) - len(ending)] or archive.name


def names_in(archive: Path) -> Iterator[str]:
    """Names of the files in an archive, as they stand there; ends where it is broken, as whoever unpacks it will say.

    Raises:
        DataError: no regular file.
    """
    require_regular(archive)
    try:
        with (_zip if archive.name.lower().endswith(".zip") else _tar)(archive) as members:
            yield from (member.name for member in islice(members, MOST) if member.is_file)
    except (*BROKEN, OSError):
        return


def _broken(archive: Path, error: BaseException) -> DataError:
    reason = str(error).partition("\n")[0].rstrip(":")
    return DataError(f"{archive}: cannot be unpacked ({reason}); delete it and fetch it again")


def _looked_through(archive: Path, own_size: int, members: Iterator[_Member], folder: Path) -> dict[Path, _Member]:
    """The files to be written by where they belong; stops at the first member that forbids it."""
    files: dict[Path, _Member] = {}
    seen: set[str] = set()
    total = 0
    for number, member in enumerate(members):
        # Windows' rules on every system: they know both slashes, drives and shares, so it is good here or nowhere
        path = PureWindowsPath(member.name)
        if path.anchor or ".." in path.parts or not member.is_plain or (member.is_file and not path.parts):
            raise DataError(
                f"{archive}: its member {member.name!r} is a link or leads outside the folder; nothing was unpacked"
            )
        total += member.size
        if number >= MOST:
            raise DataError(f"{archive}: more than {MOST:,} files in it; nothing was unpacked")
        if total > max(HARMLESS, RATIO * own_size):
            raise DataError(
                f"{archive}: {in_words(own_size)}, but {in_words(total)} or more would come of it, more than {RATIO} "
                f"times as much (and than {in_words(HARMLESS)}); nothing was unpacked"
            )
        if not member.is_file:
            continue
        target = folder.joinpath(*path.parts)
        name = str(path).casefold()  # a disk of macOS or Windows takes names that differ in case alone for one
        if name in seen:
            raise DataError(f"{archive}: {member.name!r} stands in it twice; nothing was unpacked, pack it again")
        seen.add(name)
        files[target] = member
    return files


def _require_room(archive: Path, folder: Path, size: int) -> None:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if size > (free := shutil.disk_usage(place).free):
        raise DataError(
            f"{archive}: {in_words(size)} will come of it, but {place} has {in_words(free)} left; free some space, or "
            "name another folder"
        )


@contextmanager
def _zip(archive: Path) -> Iterator[Iterator[_Member]]:
    with zipfile.ZipFile(archive) as zipped:
        yield (
            _Member(
                info.filename,
                info.file_size,
                not info.filename.endswith(("/", "\\")),
                stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR),  # 0: not made on Unix
                partial(zipped.open, info),
            )
            for info in zipped.infolist()
        )


@contextmanager
def _tar(archive: Path) -> Iterator[Iterator[_Member]]:
    with archive.open("rb") as file:
        head = file.read(6)
    openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener: Callable[..., Any] = next((found for magic, found in openers.items() if head.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        pieces: Any = _InPieces(stream)
        with tarfile.open(fileobj=pieces, mode="r:") as tar:
            yield _tar_members(tar)


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:

        def opened(info: tarfile.TarInfo = info) -> IO[bytes]:
            found = tar.extractfile(info)
            assert found is not None
            return found

        yield _Member(info.name, info.size, info.isfile(), info.isfile() or info.isdir(), opened)
    # tarfile takes the end of the file for that of the archive, which is a block of zeros
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise EOFError("it ends too early")


class _InPieces:
    """A file of which no header can make tarfile read more at once than memory bears."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Up to so many bytes."""
        if not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header of {in_words(size)}, at most {in_words(HEADER)} are read")
        return self.file.read(size)
