"""Where the project, its data and its cache lie. Imports nothing heavy, so that light commands start at once."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def default_root() -> Path:
    """The folder with one sub-folder a homework: $LEEML_DATA, else data/ in the project."""
    return Path(os.environ.get("LEEML_DATA") or PROJECT / "data").expanduser()


def cache_folder() -> Path:
    """Where what is made once is kept: $LEEML_CACHE, else .cache/ in the project. It may be deleted between runs."""
    if chosen := os.environ.get("LEEML_CACHE"):
        return Path(chosen).expanduser()
    return PROJECT / ".cache"
