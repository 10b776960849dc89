"""What lies in a user's folder: every regular file once, and an account of what is read of it and what is not.

Imports neither torch nor Lightning.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

OF_SYSTEMS = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what systems put into folders unasked


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not the user's: .DS_Store, __MACOSX, Thumbs.db."""
    return name.startswith(".") or name in OF_SYSTEMS


class Found(NamedTuple):
    """Files below a folder, sorted; `odd`: pipes, devices, sockets and links that lead nowhere."""

    files: list[Path]
    odd: list[Path]


def walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Everything below a folder but folders, one by one in order of names, and whether it is a regular file.

    Hidden files are left out. Links to folders are followed, but none that leads back to a folder it lies in.

    Raises:
        OSError: a folder cannot be listed.
    """

    def look(place: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
        state = place.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:  # a link that leads back up
            yield place, False
            return
        with os.scandir(place) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if is_hidden(entry.name):
                continue
            path = place / entry.name
            try:
                mode = entry.stat().st_mode
            except OSError:  # a link that leads nowhere, or round and round
                yield path, False
                continue
            if stat.S_ISDIR(mode):
                yield from look(path, above | {here})
            else:
                yield path, stat.S_ISREG(mode)

    yield from look(folder, frozenset())


def files_below(folder: Path) -> Found:
    """All regular files below a folder, at any depth, and what is none; see `walk`."""
    found: list[Path] = []
    odd: list[Path] = []
    for path, is_regular in walk(folder):
        (found if is_regular else odd).append(path)
    return Found(found, odd)


@dataclass
class Account:
    """How many files (or rows) a reader found, read and left out; what was left out with its reason.

    Args:
        what: What is counted: recordings, images, pairs.
        read: How many were read.
    """

    what: str
    read: int = 0
    left: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, why: str, items: Iterable[Path | str]) -> None:
        """Note that some were left out; `why` says how to include them, too."""
        if names := [str(item) for item in items]:
            self.left.setdefault(why, []).extend(names)

    @property
    def found(self) -> int:
        """All that is accounted for."""
        return self.read + sum(map(len, self.left.values()))

    def __str__(self) -> str:
        """One line: how many were found, read and left out, and for each reason the first."""
        count = self.found - self.read
        line = f"{self.what}: {self.found:,} found, {self.read:,} read, {count:,} left out"
        reasons = [f"{len(names):,} {why} (first: {names[0]})" for why, names in self.left.items()]
        return f"{line}: {'; '.join(reasons)}" if reasons else line


def by_ending(paths: Collection[Path]) -> dict[str, list[Path]]:
    """Files by the ending of their names in small letters; the most frequent first."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(path.suffix.lower(), []).append(path)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))
