"""Phones: TIMIT's 61 and what they are folded to, alignments from .phn and TextGrid files, the phone of each frame."""

import difflib
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.speech.audio import HOP, RATE

PhoneSet = Literal[39, 48, 61]

# 61 -> 48 -> 39, one name where all are the same: Lee and Hon 1989, table I, as in Kaldi's phones.60-48-39.map.
# The order is that of the 39 classes of the 2021 course. Scoring tools drop the glottal stop q, but a frame must be
# something: here it is silence, as the closures are.
_TABLE = """
iy, ih, ix ix ih, eh, ae, ah, ax ax ah, ax-h ax ah, uw, ux uw uw, uh, aa, ao ao aa, ey, ay, oy, aw, ow, l, el el l, r,
y, w, er, axr er er, m, em m m, n, en en n, nx n n, ng, eng ng ng, ch, jh, dh, b, d, dx, g, p, t, k, z, v, f, th, s, sh,
zh zh sh, hh, hv hh hh, h# sil sil, pau sil sil, epi epi sil, pcl cl sil, tcl cl sil, kcl cl sil, bcl vcl sil,
dcl vcl sil, gcl vcl sil, q sil sil
"""
_ROWS = [(names * 3)[:3] for names in (row.split() for row in _TABLE.split(","))]
_COLUMN: dict[PhoneSet, int] = {61: 0, 48: 1, 39: 2}
FOLDED: dict[PhoneSet, dict[str, str]] = {size: {row[0]: row[n] for row in _ROWS} for size, n in _COLUMN.items()}
"""For each size of the set, the class of each of the 61 phones."""

SILENCE = "h#"
SILENT = {"", "sil", "sp", "silence", "<sil>", "_"}  # what aligners call it
TIERS = ("phones", "phone", "phonemes")
ENDINGS = (".phn", ".textgrid")
FRAME = HOP / RATE  # seconds


class Segment(NamedTuple):
    """A phone, one of the 61, from start to end in seconds."""

    start: float
    end: float
    phone: str


def classes(size: PhoneSet) -> list[str]:
    """Names of the classes, in order; of 39 that of the 2021 course (0 iy ... 38 sil)."""
    return list(dict.fromkeys(FOLDED[size].values()))


def read_segments(path: Path, rate: int, duration: float) -> list[Segment]:
    """Segments of a .phn or TextGrid file in order.

    Args:
        path: The file.
        rate: Samples per second of the recording as it lies on disk, in which a .phn file counts.
        duration: Of the recording in seconds.

    Raises:
        DataError: names file and line.
        OSError: the file cannot be read.
    """
    rows = _phn(path, rate) if path.suffix.lower() == ".phn" else _textgrid(path)
    found: list[Segment] = []
    for line, start, end, name in rows:
        place = f"{path}, line {line}"
        before = found[-1].end if found else 0.0
        if not 0 <= start < end < math.inf:
            raise DataError(
                f"{place}: {name!r} from {start:g} s to {end:g} s, expected 0 <= start < end; mend the times"
            )
        if start < before - 1e-6:  # as far as TextGrids are rounded
            raise DataError(
                f"{place}: {name!r} starts at {start:g} s, before the phone above it ends ({before:g} s); expected "
                "phones in order, one at a time"
            )
        if end > duration + FRAME:
            raise DataError(
                f"{place}: {name!r} ends at {end:g} s, but the recording is {duration:g} s long; expected times of "
                "this recording"
            )
        found.append(Segment(start, end, _known(name, place)))
    if not found:
        raise DataError(f"{path}: no phone in it; align the recording, or move both away")
    return found


def _known(name: str, place: str) -> str:
    """One of the 61 phones: case and stress (AH0) do not count."""
    phone = name.strip().lower()
    if phone in SILENT:
        return SILENCE
    if phone not in FOLDED[61]:
        phone = re.sub(r"(?<=[a-z])[012]$", "", phone)
    if phone not in FOLDED[61]:
        near = difflib.get_close_matches(phone, FOLDED[61], 1, 0.5)
        hint = f", such as {near[0]!r}" if near else ""
        raise DataError(f"{place}: unknown phone {name!r}; expected one of TIMIT's 61{hint}, or 'sil'")
    return phone


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: neither UTF-8 nor UTF-16 text; save it as one of these") from None


Rows = Iterator[tuple[int, float, float, str]]


def _phn(path: Path, rate: int) -> Rows:
    """(line, start, end, name) of lines `start end phone`, times in samples."""
    for line, text in enumerate(_text(path).splitlines(), 1):
        if not (fields := text.split()):
            continue
        try:
            start, end, name = fields
            row = line, int(start) / rate, int(end) / rate, name
        except ValueError:
            raise DataError(f"{path}, line {line}: {text.strip()!r}; expected `start end phone`, in samples") from None
        yield row


def _textgrid(path: Path) -> Rows:
    """(line, start, end, name) of the intervals of the tier of phones, in Praat's long or short text format.

    Both are one list of strings in quotes, free-standing numbers and flags; whatever else stands there is a comment
    (Praat's manual, "TextGrid file formats").
    """
    text = _text(path)
    pattern = r'"(?P<text>(?:[^"]|"")*)"|(?<!\S)(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?)(?!\S)|!.*'
    tokens = (token for token in re.finditer(pattern, text) if token.lastgroup)
    lines = [match.start() for match in re.finditer("\n", text)]
    position = 0

    def line() -> int:
        return bisect_left(lines, position) + 1

    def take(group: str) -> str:
        nonlocal position
        token = next(tokens, None)
        position = len(text.rstrip()) if token is None else token.start()
        if token is None or token.lastgroup != group:
            found = "the end" if token is None else token[0]
            wanted = "a text in quotes" if group == "text" else "a number"
            raise DataError(
                f"{path}, line {line()}: {found} instead of {wanted}; save it anew, as a text file of Praat"
            )
        return token[group].replace('""', '"')

    def number() -> float:
        digits = take("number")
        try:
            return float(digits)
        except ValueError:
            raise DataError(f"{path}, line {line()}: {digits} is no number; mend the line") from None

    def interval() -> tuple[int, float, float, str]:
        start = number()
        return line(), start, number(), take("text")

    if [take("text"), take("text")] != ["ooTextFile", "TextGrid"]:
        raise DataError(f"{path}: no TextGrid; expected what Praat or an aligner saves as TextGrid, as text")
    number(), number()
    tiers: list[tuple[str, list[tuple[int, float, float, str]]]] = []
    for _ in range(int(number())):
        kind, name = take("text"), take("text")
        number(), number()
        count = int(number())
        if kind == "IntervalTier":
            tiers.append((name, [interval() for _ in range(count)]))
        else:
            for _ in range(count):
                number(), take("text")
    if not tiers:
        raise DataError(f"{path}: no interval tier; expected one named phones")
    named = [rows for name, rows in tiers if name.strip().lower() in TIERS]
    return iter((named or [rows for _, rows in tiers])[-1])


def frame_labels(segments: Sequence[Segment], centres: np.ndarray) -> list[str]:
    """The phone, one of the 61, at each centre (T,) in seconds.

    Silence before the first phone, after the last, and where the file says nothing in between; a gap shorter than a
    frame belongs to the phone before it.
    """
    starts = np.array([s.start for s in segments])
    ends = np.array([s.end for s in segments])
    follows = np.append(starts[1:], np.inf)
    ends = np.where(follows - ends < FRAME - 1e-6, follows, ends)
    index = np.searchsorted(starts, centres, side="right") - 1
    silent = (index < 0) | (centres >= ends[index])
    return [SILENCE if quiet else segments[i].phone for i, quiet in zip(index, silent, strict=True)]
