"""The homeworks and their data classes, found by their files."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

import datamodules
from scripts.cli.mistakes import UsageError, near

if TYPE_CHECKING:
    from datamodules.base import HomeworkData


def homeworks() -> list[str]:
    """Names of the homeworks, found by their files."""
    return [m.name for m in pkgutil.iter_modules(datamodules.__path__) if m.name.startswith("hw")]


def data_class(homework: str) -> "type[HomeworkData]":
    """The HomeworkData defined in datamodules/<homework>.py."""
    if homework not in homeworks():
        hint = near(homework, homeworks(), 0.4) or f"; there are {', '.join(homeworks())}"
        raise UsageError(f"no homework {homework!r}{hint}")
    from datamodules.base import HomeworkData

    module = importlib.import_module(f"datamodules.{homework}")
    return next(
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, HomeworkData) and value.__module__ == module.__name__
    )  # fmt: skip
