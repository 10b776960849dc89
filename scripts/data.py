"""leeml data: generate a sample, download what the course published, prepare raw files, or describe what is there."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from scripts.cli.homeworks import data_class, homeworks
from scripts.cli.mistakes import Parser, UsageError

if TYPE_CHECKING:
    pass


HELP = {
    "speaker_level": "which folder names the speaker: 1 the first below --source, -1 the one right above a recording "
    "(default: found out, and printed)",
    "tier": "name of the TextGrids' tier that holds the phones (default: found out)",
    "phone_table": "lines `label phone`: what labels that are no phone of TIMIT stand for",
}
"""Of the flags that homeworks' `prepare` adds."""


def add_options(parser: Parser, prepare: Callable[..., Any]) -> None:
    """Flags for the parameters that a homework's `prepare` has of its own: Literals, whole numbers, texts and paths."""
    hints = get_type_hints(prepare)
    for name, parameter in list(inspect.signature(prepare).parameters.items())[2:]:  # after folder and source
        if get_origin(hints[name]) is not Literal:
            kind = next(kind for kind in get_args(hints[name]) if kind is not type(None))
            parser.add_argument(
                f"--{name}", type=kind, metavar={int: "N", Path: "FILE"}.get(kind, "NAME"), help=HELP[name]
            )
        else:
            default = parameter.default
            parser.add_argument(
                f"--{name}", type=type(default), choices=get_args(hints[name]), default=default,
                help=f"default: {default}",
            )  # fmt: skip


def main(args: list[str]) -> int:
    """Run sample, fetch, prepare or describe; returns the exit code."""
    help_of = {
        "sample": "write a small generated set in the course's layout",
        "fetch": "download the course's files",
        "prepare": "turn raw files into the course's layout",
        "describe": "print counts, lengths and batches of the data",
    }
    parser = Parser(
        prog="leeml data", description=__doc__,
        epilog="\n".join(f"{action:<8} {text}" for action, text in help_of.items()) + "\nEach has its own --help.",
    )  # fmt: skip
    parser.add_argument("action", choices=help_of)
    action = parser.parse_args(args[1:2]).action
    parser = Parser(prog=f"leeml data {action}", description=help_of[action])
    parser.add_argument("homework", help=", ".join(homeworks()))
    parser.add_argument(
        "root", nargs="?", type=Path, help="data folder with one sub-folder a homework "
        "(default: $LEEML_DATA, else data/ in the project)",
    )  # fmt: skip
    parser.add_argument(
        "--data.root", dest="also", metavar="DIR", type=Path, help="the same, as the other commands call it"
    )
    if action == "sample":
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--if_empty", action="store_true", help="do nothing where the homework has data already")
    if action == "fetch":
        parser.add_argument("--edition", help="2021, 2022 or 2023 (default: all)")
    if action == "prepare":
        parser.add_argument("--source", type=Path, help="file or folder with the raw data (default: the data folder)")
        if named := next((arg for arg in args[2:] if arg in homeworks()), None):
            add_options(parser, data_class(named).prepare)
    own = parser.parse_intermixed_args(args[2:])  # the folder may come after the flags
    cls = data_class(own.homework)
    if own.root and own.also:
        raise UsageError(f"two data folders: {own.root} and --data.root {own.also}; name one")
    from datamodules.files.places import default_root

    root = (own.root or own.also or default_root()).expanduser()
    folder = root / own.homework
    if action == "describe":
        print(*cls.describe(root), sep="\n")
        return 0
    if action == "sample":
        there = [p.name for p in folder.iterdir() if cls.has_files(p)] if folder.is_dir() else []
        if own.if_empty and (there or cls.has_files(folder)):
            print(f"{folder}: data is here already ({', '.join(there) or 'the course files'})")
            return 0
        files = cls.sample(folder / "sample", own.seed)
    elif action == "fetch":
        files = cls.fetch(folder, own.edition)
    else:
        known = ("homework", "root", "also", "source")
        options = {name: value for name, value in vars(own).items() if name not in known}
        files = cls.prepare(folder, own.source and own.source.expanduser(), **options)
    for path in files:
        print(path)
    return 0
