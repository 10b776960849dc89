"""Types of the parameters of classes that a config names."""

import inspect
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

SCALARS = (str, int, float, bool, complex, bytes, type(None), date, timedelta, Path)
UNIONS = (typing.Union, types.UnionType)


def plain(hint: Any) -> bool:
    """Whether a parameter of this type takes numbers, text and collections of them alone."""
    if hint is None or hint is Ellipsis:
        return True
    if hasattr(hint, "__value__"):  # type Alias = ..., from Python 3.12 on
        return plain(hint.__value__)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return True
    if origin in (typing.Union, types.UnionType, typing.Annotated, typing.ClassVar):
        return all(plain(part) for part in parts)
    if origin is not None:
        collections = (list, tuple, set, frozenset, dict, Sequence, Iterable, Collection, Mapping)
        return isinstance(origin, type) and issubclass(origin, collections) and all(plain(part) for part in parts)
    return isinstance(hint, type) and (issubclass(hint, Enum) or hint in SCALARS or hint in (list, tuple, dict, set))


@cache
def parameters(cls: type) -> dict[str, Any]:
    """Types of a class's parameters, also of those that it hands on to the classes it inherits from."""
    found: dict[str, Any] = {}
    for part in cls.__mro__:
        if "__init__" not in vars(part):
            continue
        init: Any = vars(part)["__init__"]
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # a name that its library imports for type checkers alone
            hints = {}
        parameters = inspect.signature(init).parameters.values()
        for parameter in parameters:
            hint = hints.get(parameter.name, Any)
            found.setdefault(parameter.name, typing.Optional[hint] if parameter.default is None else hint)  # noqa: UP045
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def takes_none(hint: Any) -> bool:
    """Whether a parameter of this type may be null."""
    if hint is None or hint is Any or hint is type(None) or isinstance(hint, str | typing.TypeVar):
        return True
    if hasattr(hint, "__value__"):
        return takes_none(hint.__value__)
    if typing.get_origin(hint) is typing.Literal:
        return None in typing.get_args(hint)
    return typing.get_origin(hint) in UNIONS and any(takes_none(part) for part in typing.get_args(hint))


def in_words(hint: Any) -> str:
    """What a parameter of this type takes, for messages."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(part) for part in parts)
    if origin in UNIONS:
        return " or ".join(in_words(part) for part in parts)
    if isinstance(origin, type) and issubclass(origin, list | tuple | Sequence | Iterable):
        return "a list"
    return words.get(hint, getattr(hint, "__name__", str(hint)))
