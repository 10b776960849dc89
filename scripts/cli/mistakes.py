"""Turns what parsers say about a mistake on the command line or in a config into one line that names key and place."""

import argparse
import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from datamodules.errors import DataError

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}


KINDS_OF_PARTS = {
    "model": "LightningModule: subclass that, or HomeworkModule (modules/base.py) for all that leeml's own have",
    "data": "LightningDataModule: subclass that, or HomeworkData (datamodules/base.py) for all that leeml's own have",
}


class UsageError(DataError):
    """What was typed, or written in a config, is not understood: exit code 2.

    Args:
        text: What is wrong, and what was expected.
        key: The dotted key that is wrong.
        word: What to look for in the configs, to say where it stands.
    """

    def __init__(self, text: str, key: str = "", word: str = "") -> None:
        super().__init__(text)
        self.key, self.word = key, word

    def placed(self, configs: Sequence[str], args: Sequence[str]) -> "UsageError":
        """The same, with file and line in front where a config holds the word (the last wins) and no flag the key."""
        pattern = re.compile(rf"^[^#]*?(?<![\w.]){re.escape(self.word)}(?![\w.])")
        if not self.word or self.key in [a.split("=")[0].lstrip("-").replace(".init_args", "") for a in args]:
            return self
        for config in reversed(configs):
            if config.startswith("{"):  # from inside a checkpoint
                continue
            for number, line in enumerate(Path(config).read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line):
                    return UsageError(f"{config}:{number}: {self}")
        return self


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of printing its usage, takes no shortened flags, and keeps line ends."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        own = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **{**own, **kwargs})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError, with the nearest choice where one was misspelt."""
        if found := re.search(r"invalid choice: '?(\S+?)'? \(choose from (.*)\)", message):
            message += near(found[1], re.findall(r"\w+", found[2]))
        raise UsageError(f"{message}; see {self.prog} --help")


def near(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """A suggestion in brackets, or nothing."""
    found = difflib.get_close_matches(word, list(known), 1, cutoff)
    return f" (did you mean {found[0]}?)" if found and found[0] != word else ""


def _defined(path: str) -> bool:
    """Whether something of this name can be imported."""
    module, _, name = path.rpartition(".")
    try:
        return bool(module) and hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def options_of(kind: type) -> list[str]:
    """Names of all parameters of a class and of those it inherits from."""
    every = {p for c in kind.__mro__ if c is not object for p in inspect.signature(c.__init__).parameters}  # type: ignore[misc]
    return sorted(every - {"self", "args", "kwargs"})


def reword(message: str, keys: Sequence[str], classes: Iterable[str]) -> UsageError:
    """jsonargparse's message in one line.

    Args:
        message: Of the parser.
        keys: All keys the parser knows.
        classes: Names of the classes that a config can name.
    """
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        option = found[1].split(".")[0]
        told = message.partition("Given value")[0]  # the value may hold other classes
        owner = (re.findall(r"class_path[ =]'([\w.]+)'", told) or re.findall(r"class_path[ =]'([\w.]+)'", message))[-1]
        module, _, owner = owner.rpartition(".")
        known = options_of(getattr(importlib.import_module(module), owner))
        hint = near(option, known) or f"; it has {', '.join(known)}"
        key = f"{key}.{option}"
        return UsageError(f"{key}: {owner} has no option {option!r}{hint}", key, option)
    if found := re.search(r"does not accept option '([\w.]+)'", message):
        head, _, tail = found[1].partition(".")
        word = tail.split(".")[0] if tail and head in {k.split(".")[0] for k in keys} else head
        return UsageError(f"{found[1]}: no such key{near_key(found[1], keys)}", found[1], word)
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name, dashes = found[1].lstrip("-").split("=")[0], found[1].startswith("--")
        hint = near_key(name, keys) or ("" if dashes else " (flags begin with --)")
        return UsageError(f"{found[1]}: no such flag{hint.replace('mean ', 'mean --')}; see --help")
    scope = message.rpartition('Parser key "')[2]
    value = re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?$", scope, re.MULTILINE)
    shown = "" if value is None else f", found {value[1][:80]}"
    if nested := re.fullmatch(r", found NestedArg\(key='.*', val='(.*)'\)", shown):
        shown = f", found {nested[1]}"
    kinds = [KINDS.get(k, k) for k in re.findall(r"Expected a <class '([\w.]+)'>", scope) if k != "NoneType"]
    kinds += [c for found in re.findall(r"Expected a typing\.Literal\[(.*?)\]", scope) for c in found.split(", ")]
    name = re.search(r"Expected a (?:dot import path string:|path but) (\S+)", scope)
    if name and not kinds:
        word = name[1].rpartition(".")[2]
        if key in KINDS_OF_PARTS and _defined(name[1]):
            return UsageError(f"{key}: {name[1]} is no {KINDS_OF_PARTS[key]}", key, word)
        what = "class or function" if "Callable" in scope else "class"
        return UsageError(f"{key}: there is no {what} {name[1]!r}{near(word, classes, 0.6)}", key, word)
    if "is abstract" in scope or "Not a valid subclass of" in scope:
        return UsageError(f"{key}: expected class_path: and init_args:{shown}", key, key.rpartition(".")[2])
    if key and kinds:
        return UsageError(f"{key}: expected {' or '.join(kinds)}{shown}", key, key.rpartition(".")[2])
    return UsageError(" ".join(message.split())[:400])


def near_key(name: str, keys: Iterable[str]) -> str:
    """A suggestion for a dotted key; what hangs on a class of one's own is no key, so its head is compared too.

    A word without a dot may be a part of a key: ckpt of ckpt_path, batch_size of data.batch_size.
    """
    head, dot, tail = name.partition(".")
    heads = {key.split(".")[0] for key in keys}
    if dot and head not in heads and (found := difflib.get_close_matches(head, heads, 1, 0.6)):
        return f" (did you mean {found[0]}.{tail}?)"
    shortest = sorted(keys, key=lambda key: ("." in key, len(key)))
    longer = [
        key for key in shortest if not dot and (key.startswith(f"{name}_") or key.endswith((f".{name}", f"_{name}")))
    ]
    return near(name, keys) or (f" (did you mean {longer[0]}?)" if longer else "")
