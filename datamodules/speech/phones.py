"""Phones: TIMIT's 61 and what they are folded to, alignments from .phn and TextGrid files, the phone of each frame."""

import difflib
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files.reading import read_text
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
# what they call sounds that are no phone, each frame of which must be something, and words they do not know
OTHER = {
    *("spn", "nsn", "unk", "noise", "laughter", "laugh", "breath", "br", "ns", "lg", "ls", "cg", "sn", "eps", "ssil"),
    *("vocnoise", "iver", "unknown", "music", "cough", "click", "inhale", "exhale", "gbg", "oov", "xxx", "?"),
}
TIERS = ("phones", "phone", "phonemes", "phoneme", "phn", "segments")
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


class Labels(NamedTuple):
    """How labels of alignments are read.

    tier: Name of the TextGrids' tier with the phones; None: found by its name or its labels.
    table: The phone, one of the 61, that other labels stand for, by the label in small letters.
    """

    tier: str | None = None
    table: Mapping[str, str] = {}


NO_LABELS = Labels()


def read_table(path: Path) -> dict[str, str]:
    """A table of labels for `Labels`: a line `label phone` each, the phone one of TIMIT's 61, or sil.

    Raises:
        DataError: names file and line.
        OSError: the file cannot be read.
    """
    table: dict[str, str] = {}
    for line, text in enumerate(read_text(path).splitlines(), 1):
        if not (fields := text.split()):
            continue
        if len(fields) != 2:
            raise DataError(f"{path}, line {line}: {text.strip()!r}; expected `label phone`")
        table[fields[0].lower()] = _known(fields[1], f"{path}, line {line}", NO_LABELS, Counter())
    return table


def read_segments(
    path: Path, rate: int, duration: float, labels: Labels = NO_LABELS
) -> tuple[list[Segment], Counter[str]]:
    """Segments of a .phn or TextGrid file in order, and how often labels stood for a phone of another name.

    Args:
        path: The file.
        rate: Samples per second of the recording as it lies on disk, in which a .phn file counts.
        duration: Of the recording in seconds.
        labels: How its labels are read.

    Raises:
        DataError: names file, line and tier.
        OSError: the file cannot be read.
    """
    rows = _phn(path, rate) if path.suffix.lower() == ".phn" else _textgrid(path, labels)
    found: list[Segment] = []
    mapped: Counter[str] = Counter()
    for place, start, end, name in rows:
        before = found[-1].end if found else 0.0
        if not 0 <= start < end < math.inf:
            raise DataError(
                f"{place}: {name!r} from {start:g} s to {end:g} s, expected 0 <= start < end; correct the times"
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
        found.append(Segment(start, end, _known(name, place, labels, mapped)))
    if not found:
        raise DataError(f"{path}: no phone in it; align the recording, or move both away")
    return found, mapped


def _known(name: str, place: str, labels: Labels, mapped: Counter[str]) -> str:
    """One of the 61 phones: case, stress (AH0) and Kaldi's place in the word (AH0_B) do not count."""
    label = name.strip().lower()
    if label in labels.table:
        mapped[label] += 1
        return labels.table[label]
    phone = re.sub(r"(?<=[a-z0-9])_[bies]$", "", label)
    if phone in SILENT:
        return SILENCE
    if phone not in FOLDED[61]:
        phone = re.sub(r"(?<=[a-z])[012]$", "", phone)
    if phone in FOLDED[61]:
        return phone
    if phone in OTHER or re.fullmatch(r"[\[<{(].*[\]>})]", phone):  # [noise], <unk>, {NS}
        mapped[label] += 1
        return SILENCE
    near = difflib.get_close_matches(phone, FOLDED[61], 1, 0.5)
    hint = f", such as {near[0]!r}" if near else ""
    raise DataError(
        f"{place}: unknown phone {name!r}; expected one of TIMIT's 61{hint}, or 'sil', or a line `{label or name} "
        "phone` in --phone_table FILE"
    )


def _is_phone(name: str, labels: Labels) -> bool:
    try:
        _known(name, "", labels, Counter())
    except DataError:
        return False
    return True


Row = tuple[str, float, float, str]  # where it stands, start, end, label


def _phn(path: Path, rate: int) -> list[Row]:
    """Rows of lines `start end phone`, times in samples."""
    rows = []
    for line, text in enumerate(read_text(path).splitlines(), 1):
        if not (fields := text.split()):
            continue
        place = f"{path}, line {line}"
        try:
            start, end, name = fields
            rows.append((place, int(start) / rate, int(end) / rate, name))
        except ValueError:
            raise DataError(f"{place}: {text.strip()!r}; expected `start end phone`, in samples") from None
    return rows


def _textgrid(path: Path, labels: Labels) -> list[Row]:
    """Rows of the phones of a TextGrid, in Praat's long or short text format; of all speakers where several speak."""
    tiers = _tiers(path)
    names = ", ".join(repr(name) for name, _ in tiers)
    if labels.tier is not None:
        chosen = [tier for tier in tiers if tier[0].strip().lower() == labels.tier.strip().lower()]
        if not chosen:
            raise DataError(f"{path}: no tier {labels.tier!r} (--tier); there are {names}")
    else:
        chosen = [tier for tier in tiers if tier[0].strip().lower() in TIERS]
        # a tier a speaker, such as "anna - phones" of the Montreal Forced Aligner
        chosen = chosen or [tier for tier in tiers if re.search(r"(?i)\b(phone(me)?s?|phn)\b", tier[0])]
        # else by what is in it
        spoken = [tier for tier in tiers if any(row[3].strip() for row in tier[1])]
        chosen = chosen or [tier for tier in spoken if all(_is_phone(row[3], labels) for row in tier[1])]
        if not chosen and len(spoken) == 1:
            chosen = spoken  # whose first label that is no phone is named
    if not chosen:
        raise DataError(f"{path}: no tier holds phones alone; there are {names}; name the right one with --tier")
    if len({tuple(row[1:] for row in rows) for _, rows in chosen}) == 1:
        return chosen[0][1]
    return _of_all_speakers(path, chosen, labels)


def _of_all_speakers(path: Path, tiers: Sequence[tuple[str, list[Row]]], labels: Labels) -> list[Row]:
    """Rows of several tiers in order of time, without silence; no two speak at a time.

    Raises:
        DataError: two do, and names both.
    """
    spoken = [
        (name, row) for name, rows in tiers for row in rows if row[3].strip().lower() not in SILENT and row[1] < row[2]
    ]
    spoken.sort(key=lambda pair: pair[1][1])
    for (first, above), (second, below) in pairwise(spoken):
        if first != second and below[1] < above[2] - 1e-6:
            raise DataError(
                f"{below[0]}: {below[3]!r} at {below[1]:g} s, while tier {first!r} has {above[3]!r} to {above[2]:g} s; "
                "expected one tier of phones, or speakers one after the other; name the right tier with --tier"
            )
    return [row for _, row in spoken] or list(tiers[0][1])


def _tiers(path: Path) -> list[tuple[str, list[Row]]]:
    """Name and rows of all interval tiers.

    A TextGrid is one list of strings in quotes, free-standing numbers and flags; whatever else stands there is a
    comment (Praat's manual, "TextGrid file formats").
    """
    text = read_text(path)
    pattern = r'"(?P<text>(?:[^"]|"")*)"|(?<!\S)(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?)(?!\S)|!.*'
    tokens = (token for token in re.finditer(pattern, text) if token.lastgroup)
    lines = [match.start() for match in re.finditer("\n", text)]
    position = 0
    tier = ""

    def place() -> str:
        return f"{path}, line {bisect_left(lines, position) + 1}{tier}"

    def take(group: str) -> str:
        nonlocal position
        token = next(tokens, None)
        position = len(text.rstrip()) if token is None else token.start()
        if token is None or token.lastgroup != group:
            found = "the end" if token is None else token[0][:40]
            wanted = "a text in quotes" if group == "text" else "a number"
            raise DataError(f"{place()}: {found} instead of {wanted}; save it again, as a text file of Praat")
        return token[group].replace('""', '"')

    def number() -> float:
        digits = take("number")
        try:
            return float(digits)
        except ValueError:
            raise DataError(f"{place()}: {digits} is no number; correct the line") from None

    def count() -> int:
        found = number()
        if not 0 <= found <= len(text):
            raise DataError(f"{place()}: {found:g} intervals or tiers; save it again, as a text file of Praat")
        return int(found)

    def interval() -> Row:
        start = number()
        where = place()
        return where, start, number(), take("text")

    if [take("text"), take("text")] != ["ooTextFile", "TextGrid"]:
        raise DataError(f"{path}: no TextGrid; expected what Praat or an aligner saves as TextGrid, as text")
    number(), number()
    tiers: list[tuple[str, list[Row]]] = []
    for _ in range(count()):
        tier = ""
        kind, name = take("text"), take("text")
        tier = f", tier {name!r}"
        number(), number()
        size = count()
        if kind == "IntervalTier":
            tiers.append((name, [interval() for _ in range(size)]))
        else:
            for _ in range(size):
                number(), take("text")
    if not tiers:
        raise DataError(f"{path}: no interval tier; expected one named phones")
    return tiers


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
