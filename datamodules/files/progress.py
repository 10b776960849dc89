"""The bar of work on files that takes long: reading, decoding, cleaning."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SLOW = 10.0  # seconds between two states where stderr is a file: a log that nobody watches stays short


def progress(what: str, work: Iterable[Any] | None = None, total: int | None = None, **more: Any) -> Any:
    """A bar on stderr that is gone when the work is done.

    Args:
        what: Is done.
        work: What to go through; None: the caller counts with `update`.
        total: Steps of the work.
        more: For tqdm.
    """
    pause = 0.1 if sys.stderr.isatty() else SLOW
    return tqdm(work, desc=what, total=total, leave=False, mininterval=pause, maxinterval=pause, **more)
