"""Lines in fixed chunks, so that shards and resumed files are to the byte what one run would have written."""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from scripts.cli.mistakes import UsageError
from scripts.translation.reading import Line
from scripts.translation.writing import Sink, StandardOutput, WholeFile

CHUNK = 256  # lines


class Shard(NamedTuple):
    """One of `parts` that follow each other; `number` is 1 for the first."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def lines(self, total: int) -> range:
        """Which lines of so many it has: whole chunks."""
        chunks = -(-total // CHUNK)
        first, last = ((n * chunks // self.parts) * CHUNK for n in (self.number - 1, self.number))
        return range(min(first, total), min(last, total))


def parse_shard(text: str) -> Shard:
    """A flag's I/N, such as 1/4."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"found {text}, expected I/N such as 1/4, the first of four parts")
    return Shard(int(found[1]), int(found[2]))


def write_all(
    lines: Iterable[Line],
    total: int | None,
    shard: Shard | None,
    translator: Callable[[Sequence[Line]], list[str]],
    sink: Sink,
    show: Callable[[Line, str], str],
) -> None:
    """Translate the lines, or a shard of them, and write what `show` makes of each and its cleaned translation."""
    if shard is not None:
        if total is None:
            raise UsageError(f"--shard {shard} needs a FILE whose lines can be counted, not a pipe")
        part = shard.lines(total)
        lines, total = itertools.islice(lines, part.start, part.stop), len(part)
    lines, count = iter(lines), 0
    watched = sys.stderr.isatty() and not (isinstance(sink, StandardOutput) and sys.stdout.isatty())
    try:
        with tqdm(total=total, desc="translating", unit=" lines", dynamic_ncols=True, disable=not watched) as bar:
            while chunk := list(itertools.islice(lines, CHUNK)):
                if sink.wants(chunk):
                    said = translator(chunk)
                    sink.write([show(line, text) for line, text in zip(chunk, said, strict=True)])
                bar.update(len(chunk))
                count += len(chunk)
        sink.finish()
        if not count and sys.stderr.isatty():
            print("leeml: no lines came in", file=sys.stderr)
    except BaseException:
        if isinstance(sink, WholeFile) and sink.part.exists():
            print("leeml: resume with the same command and --resume", file=sys.stderr)
        raise
