"""The parser of configs, and the classes that a config may name by short names."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import AdamW, Optimizer

import callbacks
import datamodules
import modules
from datamodules.base import HomeworkData
from modules.base import HomeworkModule
from scripts.cli.mistakes import UsageError, options_of, reword
from scripts.cli.parameter_types import in_words, parameters, takes_none

# jsonargparse leaves a default that is a member of an Enum of text as it is, such as that of Lightning's Timer
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


class ConfigParser(LightningArgumentParser):
    """Says a mistake in one line, suggests the nearest key, and takes no shortened flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise; inner parsers as they are, because jsonargparse tries one type after the other."""
        if not self.exit_on_error:
            super().error(message, ex)
        bases: list[type] = [HomeworkModule, HomeworkData, Callback, Optimizer, Logger]
        for base in bases:
            bases += base.__subclasses__()
        keys = [a.dest for p in (self, *self._subparsers_of()) for a in p._actions]
        for head, kind in {"model": HomeworkModule, "data": HomeworkData}.items():
            keys += [f"{head}.{option}" for c in bases if issubclass(c, kind) for option in options_of(c)]
        keys += [f"model.optimizer.{option}" for option in options_of(AdamW)]
        raise reword(message, keys, [c.__name__ for c in bases]) from ex

    def _subparsers_of(self) -> list["ConfigParser"]:
        return list(self._subcommands_action.choices.values()) if self._subcommands_action else []


def find_own(names: Iterable[str]) -> None:
    """Let Python find classes of the user's own files in the current folder, where a name is of one of them."""
    for name in names:
        module = name.rpartition(".")[0]
        if module and Path(*module.split(".")).with_suffix(".py").is_file() and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # at the end: what is installed comes first


def class_named(name: str, base: type) -> type | None:
    """The class that a config means by a short or a full name, after `known_classes`; None where there is none."""
    module, _, last = name.rpartition(".")
    find_own([name])
    if module:
        with suppress(ImportError):
            found = getattr(importlib.import_module(module), last, None)
            return found if isinstance(found, type) and issubclass(found, base) else None
        return None
    kinds = [base]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.__name__ == name), None)


def known_classes() -> None:
    """Import all that configs may name by short names."""
    for package in (modules, datamodules, callbacks):
        for found in pkgutil.iter_modules(package.__path__):
            if not found.ispkg and (package is callbacks or found.name.startswith("hw")):
                importlib.import_module(f"{package.__name__}.{found.name}")


def check_nulls(value: Any, key: str = "") -> None:
    """Refuse a null where a class wants something; jsonargparse takes it for every argument of a class.

    Args:
        value: A parsed configuration, or a part of it.
        key: Where it stands.

    Raises:
        UsageError: names the key, and what is expected.
    """
    if isinstance(value, list | tuple):
        for part in value:
            check_nulls(part, key)
    if not isinstance(value, Namespace | dict):
        return
    path = value.get("class_path")
    if not isinstance(path, str):
        for name, part in vars(value).items() if isinstance(value, Namespace) else value.items():
            check_nulls(part, f"{key}.{name}".lstrip("."))
        return
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name, None)
    types = parameters(cls) if isinstance(cls, type) else {}
    given = value.get("init_args") or {}
    for name, part in (vars(given) if isinstance(given, Namespace) else given).items():
        where = f"{key}.{name}"
        if part is None and not takes_none(types.get(name, Any)):
            raise UsageError(f"{where}: expected {in_words(types[name])}, found null", where, name)
        check_nulls(part, where)
