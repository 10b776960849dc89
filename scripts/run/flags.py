"""Flags of `leeml fit` that somebody else may have written, held against the list in trusted.py before they are parsed.

The parser takes each flag in its turn, and imports what it names. So the configuration is built here in the same order,
as plain data, and looked at after every flag: a later one hides nothing.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import DataError
from scripts.cli.yaml_files import read_yaml
from scripts.run.trusted import trusted
from scripts.train import find_config

OF_CLASS = ("class_path", "init_args", "dict_kwargs")


def check_flags(flags: Sequence[str], source: Path, folder: Path) -> None:
    """Refuse flags that name what a run's configuration may not name.

    Args:
        flags: Of `leeml fit`, `--key=value` or `--key value`.
        source: The file that they come from, for messages.
        folder: Outside of which nothing may be written.

    Raises:
        DataError: they name something that is not on the list, or a file to write outside of the folder.
    """
    pairs = _pairs(flags, source)
    config: dict[str, Any] = {}
    for key, value in sorted(pairs, key=lambda pair: pair[0] != "config"):  # configs are read first
        if key == "config":
            content = yaml.safe_load(value) if value.lstrip().startswith("{") else read_yaml(Path(find_config(value)))
            config = _merged(config, content)
        else:
            _put(config, key.split("."), _value(value))
        trusted(config, source, "fit", folder, trust=False)


def _pairs(flags: Sequence[str], source: Path) -> list[tuple[str, str]]:
    """Key and value of each flag."""
    found: list[tuple[str, str]] = []
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--") and word.split("=")[0] != "-c":
            raise DataError(f"{source}: expected flags such as --model.dropout=0.1, found {word:.60}")
        key, equals, value = word.partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found.append(("config" if key == "-c" else key.removeprefix("--"), value))
    return found


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _merged(old: Any, new: Any) -> Any:
    """A later config over an earlier one; arguments of a class stay, whatever the class becomes."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if isinstance(old, dict) and "class_path" in old and isinstance(new, str):
            return {**old, "class_path": new}
        return copy.deepcopy(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _put(config: dict[str, Any], names: list[str], value: Any) -> None:
    """Set the value at a dotted key, which leaves out init_args."""
    place = config
    for number, name in enumerate(names):
        if "class_path" in place and name not in OF_CLASS:
            place = place.setdefault("init_args", {})
        if number == len(names) - 1:
            place[name] = _merged(place.get(name), value)
            return
        below = place.get(name)
        if isinstance(below, str):
            below = {"class_path": below}
        place[name] = below if isinstance(below, dict) else {}
        place = place[name]
