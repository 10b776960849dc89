"""Where translated lines go: standard output, or a file that can be resumed."""

import argparse
import hashlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Protocol

from callbacks.files import write_text
from datamodules.errors import DataError
from datamodules.text.cleaning import Language
from scripts.cli.mistakes import UsageError
from scripts.run.lock import lock
from scripts.translation.reading import Line


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C waits until what is inside is done; a second one does not."""
    caught: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)


class Sink(Protocol):
    """Where lines go, chunk after chunk."""

    def wants(self, chunk: Sequence[Line]) -> bool:
        """Whether this next chunk of the input is not there yet."""

    def write(self, lines: Sequence[str]) -> None:
        """What became of the chunk."""

    def finish(self) -> None:
        """Close the output: all chunks were written."""


class StandardOutput:
    """Lines appear chunk by chunk, each one whole."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")

    def wants(self, chunk: Sequence[Line]) -> bool:
        """Always true: nothing was written before."""
        return True

    def write(self, lines: Sequence[str]) -> None:
        """Write the lines now, and flush."""
        with unbroken():
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()

    def finish(self) -> None:
        """Nothing is held back."""


class WholeFile:
    """A file of lines that has its name when it is whole. Until then they are in <name>.part.

    Beside it <name>.part.json holds what they were made with and of which input: another run goes on with the same.
    Without `resume`, or where a kill left no record that fits, it starts again over what was left.

    Args:
        path: Of the file.
        made_with: What it depends on; plain JSON.
        resume: Resume what an interrupted run left, if anything.
        header: A line before all others.

    Raises:
        DataError: it is there already, another process is writing it, or what was left was made with something else.
    """

    def __init__(self, path: Path, made_with: dict[str, Any], resume: bool, header: str | None = None) -> None:
        self.path, self.header = path, header
        self.part, self.record = (path.with_name(f"{path.name}{end}") for end in (".part", ".part.json"))
        if path.suffix == ".gz":
            raise UsageError(f"--output {path}: written as plain text; leave out .gz, and compress it afterwards")
        if path.exists():
            raise DataError(f"{path}: there already; move it away, or choose another --output")
        self._state: dict[str, Any] = {"made_with": made_with, "lines": 0, "input": "", "bytes": 0}
        if self.part.exists():
            with self.part.open("r+b") as file:
                self._claim(file)
            left = self._left()
            if resume and left is not None:
                self._check(left["made_with"], made_with)
                self._state = left
            else:
                why = "no record fits it" if resume else "--resume would resume it"
                print(f"leeml: {self.part}: left by an interrupted run, written again ({why})", file=sys.stderr)
        self._seen = 0  # lines of the input
        self._input = hashlib.blake2b(digest_size=16)
        self._file: BinaryIO | None = None

    def _claim(self, file: BinaryIO) -> None:
        if not lock(file.fileno()):
            raise DataError(f"{self.part}: another process is writing it; wait for it, or choose another --output")

    def _left(self) -> dict[str, Any] | None:
        """The record of what an interrupted run left; None where none fits."""
        try:
            state = json.loads(self.record.read_text(encoding="utf-8"))
            whole = isinstance(state["made_with"], dict) and state["bytes"] <= self.part.stat().st_size
            return state if whole and {"lines", "input"} <= state.keys() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _check(self, before: dict[str, Any], made_with: dict[str, Any]) -> None:
        for name in {**made_with, **before}:
            if before.get(name) != made_with.get(name):
                raise DataError(
                    f"{self.part}: made with {name} = {before.get(name)}, now it is {made_with.get(name)}; say the "
                    "same again, or leave out --resume to start again"
                )

    def wants(self, chunk: Sequence[Line]) -> bool:
        """Whether it is not in the part that is there; the input up to that must be the same."""
        known, before = self._state["lines"], self._seen
        self._seen += len(chunk)
        self._input.update("".join(f"{line.text}\n" for line in chunk).encode())
        if before < known and (self._seen > known or not self._agrees()):
            raise self._other_input()
        return before >= known

    def _agrees(self) -> bool:
        return self._seen < self._state["lines"] or self._input.hexdigest() == self._state["input"]

    def _other_input(self) -> DataError:
        return DataError(
            f"{self.part}: its {self._state['lines']:,} lines were made of other input; give the same again, or leave "
            "out --resume to start again"
        )

    def write(self, lines: Sequence[str]) -> None:
        """Add them, and what they were made of."""
        data = "".join(f"{line}\n" for line in lines).encode()
        with unbroken():
            try:
                file = self._opened()
                file.write(data)
                file.flush()
            except OSError as error:
                error.filename = error.filename or str(self.part)  # a full disk does not say where
                raise
            self._state |= {"lines": self._seen, "input": self._input.hexdigest(), "bytes": file.tell()}
            write_text(self.record, json.dumps(self._state, indent=2) + "\n")

    def _opened(self) -> BinaryIO:
        """The part, cut to what is recorded."""
        if self._file is None:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("r+b" if self.part.exists() else "wb")
            self._claim(self._file)
            self._file.truncate(self._state["bytes"])
            self._file.seek(0, os.SEEK_END)
            if self.header is not None and not self._state["bytes"]:
                self._file.write(f"{self.header}\n".encode())
        return self._file

    def finish(self) -> None:
        """Give the file its name."""
        if self._seen < self._state["lines"]:
            raise self._other_input()
        with unbroken():
            file = self._opened()
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self.part, self.path)
            self.record.unlink(missing_ok=True)


def pair_row(source: Language, text: str, said: str) -> str:
    """A line of text and its translation as a row of a table with the columns en and zh."""
    sides = [re.sub(r"[\t\r]", " ", text), said]
    return "\t".join(sides if source == "en" else reversed(sides))


def whole_file(
    own: argparse.Namespace, models: Sequence[tuple[Path, Sequence[str]]], header: str | None = None, **more: Any
) -> WholeFile:
    """The file that --output names, tied to the flags that what is in it depends on."""
    digests = []
    for path, _ in models:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    made_with = {
        "subcommand": own.subcommand,
        "checkpoints": digests,
        "flags": " ".join(models[0][1]),
        "max_tokens": own.max_tokens,
        "shard": own.shard and str(own.shard),
        **({"way": own.way, "seed": own.seed} if own.way != "beam" else {}),
        **more,
    }
    return WholeFile(own.output, made_with, own.resume, header)
