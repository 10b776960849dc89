"""What lies in a user's folder: every regular file once, and an account of what is read of it and what is not.

Imports neither torch nor Lightning.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterable
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


def files_below(folder: Path, skip: Callable[[Path], bool] = lambda path: False) -> Found:
    """All regular files below a folder, at any depth; hidden ones are no part of it.

    Links to folders are followed, but none that leads back to a folder it lies in.

    Args:
        folder: Where to look.
        skip: Folders to leave out.

    Raises:
        OSError: a folder cannot be listed.
    """
    found: list[Path] = []
    odd: list[Path] = []

    def look(place: Path, above: frozenset[tuple[int, int]]) -> None:
        state = place.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:  # a link that leads back up
            odd.append(place)
            return
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = place / entry.name
                if is_hidden(entry.name):
                    continue
                try:
                    mode = entry.stat().st_mode
                except OSError:  # a link that leads nowhere, or round and round
                    odd.append(path)
                    continue
                if stat.S_ISDIR(mode):
                    if not skip(path):
                        look(path, above | {here})
                else:
                    (found if stat.S_ISREG(mode) else odd).append(path)

    look(folder, frozenset())
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
