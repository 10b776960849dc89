"""Reads YAML of unknown origin: in bounded time and memory, and with one line where it is not understood."""

from pathlib import Path
from typing import Any

import yaml

from scripts.cli.mistakes import UsageError

LARGEST = 2**20  # bytes of a config; ours have some thousand
DEEPEST = 50  # levels; Python's own reader ends in a RecursionError at some hundred
MOST = 100_000  # values, each counted as often as an alias repeats it

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


def _check_size(text: str) -> None:
    """Refuse what would become huge, or too deep to read, while it is still a stream of events.

    Raises:
        UsageError: it would.
    """
    sizes = [0]  # of the collections that are open at this place
    names: list[str | None] = []
    anchors: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_LOADER):
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(0)
            names.append(event.anchor)
            if len(sizes) > DEEPEST:
                raise UsageError(f"{where}: nested more than {DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, name = sizes.pop() + 1, names.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in names:
                raise UsageError(f"{where}: *{event.anchor} stands inside itself")
            size, name = anchors.get(str(event.anchor), 1), None
        elif isinstance(event, yaml.ScalarEvent):
            size, name = 1, event.anchor
        else:
            continue
        sizes[-1] += size
        if name is not None:
            anchors[name] = size
        if sum(sizes) > MOST:
            raise UsageError(
                f"{where}: more than {MOST:,} values, where aliases are counted as often as they stand there"
            )


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UsageError: says in which line it is not YAML, or that it is larger or deeper than any config.
    """
    if path.is_file() and path.stat().st_size > LARGEST:
        raise UsageError(f"{path}: {path.stat().st_size:,} bytes; a config has at most {LARGEST:,}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a regular file; expected a config in YAML")
    try:
        text = path.read_text(encoding="utf-8")
        _check_size(text)
        return yaml.load(text, Loader=_LOADER)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    except (ValueError, OverflowError, RecursionError) as error:  # such as a date or number that cannot be
        raise UsageError(f"{path}: not YAML that can be read ({error})") from None


def check_yaml(path: Path) -> None:
    """A config must be YAML with sections.

    Raises:
        UsageError: says where it is not.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else repr(content)[:60]
        raise UsageError(f"{path}: expected the sections model, data, trainer; found {found}")
