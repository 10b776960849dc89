"""Files that appear in their place when all of them are whole: made in a folder beside it, then renamed.

Imports neither torch nor Lightning.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging(place: Path) -> Iterator[Path]:
    """An empty folder `place` for files in the making, which is gone afterwards.

    Its name is fixed, so that the next run clears what a killed one has left.
    """
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def move_all(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename files or folders, in order; where one fails, those that were not there before are taken away again.

    Args:
        moves: From where and to where. The last should be the file that says that the others are there.

    Raises:
        OSError: one cannot be renamed.
    """
    new: list[Path] = []
    try:
        for source, target in moves:
            there = target.exists()
            os.replace(source, target)
            if not there:
                new.append(target)
    except BaseException:
        for target in new:
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        raise
