"""Whose recording it is: speakers by the folders that recordings lie in, in any public layout, or by a table.

    VoxCeleb       id10001/1zcIwhmdeo4/00001.wav                  the folder id10001
    LibriSpeech    19/198/19-198-0000.flac                        the folder that file names begin with
    TIMIT          train/dr1/fcjf0/sa1.wav                        below part and dialect, which are no speakers
    VCTK           wav48/p225/p225_001.wav                        as LibriSpeech
    Common Voice   clips/x.mp3, validated.tsv with its client_id  the table
    any other      the folder above the recordings; where more lie between, the one below which names repeat

Imports neither torch nor Lightning.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datamodules.errors import DataError, and_more
from datamodules.files.reading import read_text

# folders that say what lies in them, not who speaks: parts (one speaker may be in several), and groups of speakers
PARTS = re.compile(
    r"(train|dev|test|valid|validation|eval|evaluation|val|enroll?(ment)?|wavs?|wav\d+|flac|mp3|ogg|aac|audio|clips|"
    r"recordings|sounds?|data|speech|corpus)([-_]?(set|clean|other|data|all|\d+|wav|flac|silence|trimmed))*",
    re.IGNORECASE,
)
GROUPS = re.compile(r"dr\d|m|f|male|female|men|women|man|woman|adults?|children|native|nonnative", re.IGNORECASE)
VOXCELEB = re.compile(r"id\d{5}")
TABLES = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv")  # of Common Voice; others list clips that were refused
NAMED = 5  # speakers in the line that says what was understood


class Speakers(NamedTuple):
    """Who speaks in each recording (None: it lies in no folder), and in words by what this was understood."""

    of: list[str | None]
    how: str


def speakers_of(names: Sequence[str], level: int | None = None, where: str = "") -> Speakers:
    """Speakers of recordings by the folders in their names.

    Args:
        names: Paths with forward slashes, relative to the folder with all of them.
        level: Which folder is the speaker: 1 the first, 2 the one in it, -1 the one right above a recording;
            None: found out.
        where: The folder, for messages.

    Raises:
        DataError: it cannot be told which folders are the speakers, or a recording lies in too few.
    """
    chains = [PurePosixPath(name).parent.parts for name in names]
    if level is not None:
        return _by_level(names, chains, level, where)
    if (known := [_voxceleb(chain) for chain in chains]) and all(place is not None for place in known):
        return Speakers([*_named(chains, [place or 0 for place in known], where)], "VoxCeleb's layout")
    places, how = _places(names, chains, where)
    inside = [(chain, place) for chain, place in zip(chains, places, strict=True) if place is not None]
    found = iter(_named([chain for chain, _ in inside], [place for _, place in inside], where))
    return Speakers([None if place is None else next(found) for place in places], how)


def describe(speakers: Sequence[str | None], how: str) -> str:
    """What was understood, in a line: 3 speakers: id10001 (120 recordings), ..."""
    counts = Counter(speaker for speaker in speakers if speaker is not None)
    shown = [f"{_short(name)} ({count:,} recordings)" for name, count in sorted(counts.items())[:NAMED]]
    more = f", and {len(counts) - NAMED:,} more" if len(counts) > NAMED else ""
    return f"{len(counts):,} speakers: {', '.join(shown)}{more} ({how})"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:12]}…"  # Common Voice has 128 hexadecimal digits


def _by_level(names: Sequence[str], chains: Sequence[tuple[str, ...]], level: int, where: str) -> Speakers:
    if not level:
        raise DataError("speaker_level is 0; expected 1 for the first folder, or -1 for the one above the recordings")
    if lone := [name for name, chain in zip(names, chains, strict=True) if len(chain) < abs(level)]:
        raise DataError(
            f"{where}/{lone[0]}{and_more(lone)}: lies in too few folders for --speaker_level {level}; move it, or "
            "choose another level"
        )
    places = [level - 1 if level > 0 else len(chain) + level for chain in chains]
    return Speakers([*_named(chains, places, where)], f"--speaker_level {level}")


def _voxceleb(chain: tuple[str, ...]) -> int | None:
    """Place of the folder id10001 where a video lies between it and the recording."""
    return next((k for k, name in enumerate(chain[:-1]) if VOXCELEB.fullmatch(name)), None)


def _places(names: Sequence[str], chains: Sequence[tuple[str, ...]], where: str) -> tuple[list[int | None], str]:
    """Which of its folders is the speaker of each recording; None: there is none."""
    spelled = [_spelled(chain, PurePosixPath(name).name) for chain, name in zip(chains, names, strict=True)]
    if (
        all(place is not None for place in spelled)
        and len({c[p] for c, p in zip(chains, spelled, strict=True) if p is not None}) > 1
    ):
        return spelled, "the folder that file names begin with"
    holding = set(chains)  # folders with recordings right in them
    lowest = [next((chain[:n] for n in range(1, len(chain)) if chain[:n] in holding), chain) for chain in chains]
    # what stands above all of them is no speaker, nor are parts and groups
    first = [0] * len(chains)

    def pass_over(may: Callable[[str], bool], each: bool) -> bool:
        """Go one folder down where `may` holds, of each recording by itself or only of all together."""
        down = [len(c) > k + 1 and may(c[k]) for c, k in zip(lowest, first, strict=True)]
        if not (any(down) if each else all(down)):
            return False
        first[:] = [k + go for k, go in zip(first, down, strict=True)]
        return True

    def is_part(name: str) -> bool:
        return PARTS.fullmatch(name) is not None

    def is_group(name: str) -> bool:
        return GROUPS.fullmatch(name) is not None

    def is_only(name: str) -> bool:
        return len({c[k] for c, k in zip(lowest, first, strict=True)}) == 1

    while pass_over(is_part, each=True) or (names and (pass_over(is_only, False) or pass_over(is_group, False))):
        pass
    depths = {len(chain) - start for chain, start in zip(lowest, first, strict=True) if chain}
    if depths <= {1}:
        how = "the folder above the recordings" if lowest == list(chains) else "the first folder with recordings"
        return [start if chain else None for chain, start in zip(lowest, first, strict=True)], how
    for depth in range(min(depths) - 1):
        above = defaultdict(set)
        for chain, start in zip(lowest, first, strict=True):
            if chain:
                above[chain[start + depth + 1]].add(chain[: start + depth + 1])
        if any(len(parents) > 1 for parents in above.values()):
            places = [start + depth if chain else None for chain, start in zip(lowest, first, strict=True)]
            return places, "the folder below which names repeat; another by --speaker_level N"
    deepest = max(lowest, key=len)
    levels = range(min(first) + 1, len(deepest) + 1)
    choices = [f"{n} ({', '.join(sorted({c[n - 1] for c in lowest if len(c) >= n})[:3])}, ...)" for n in levels]
    raise DataError(
        f"{where}: it cannot be told which folders are the speakers, as in {names[lowest.index(deepest)]}; say "
        f"--speaker_level {' or '.join(choices)}"
    )


def _spelled(chain: tuple[str, ...], file: str) -> int | None:
    """Place of the first folder that the name of the file begins with: p225/p225_001.wav."""
    hits = (k for k, name in enumerate(chain) if re.match(rf"{re.escape(name)}(?![A-Za-z0-9])", file))
    return next((k for k in hits if not PARTS.fullmatch(chain[k])), None)


def _named(chains: Sequence[tuple[str, ...]], places: Sequence[int], where: str) -> list[str]:
    """Names of speakers by the places of their folders; one name at two places is one speaker only in several parts."""
    above: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for chain, place in zip(chains, places, strict=True):
        above[chain[place]].add(tuple(name for name in chain[:place] if not PARTS.fullmatch(name)))
    several = {name for name, parents in above.items() if len(parents) > 1}
    found = []
    for chain, place in zip(chains, places, strict=True):
        name = chain[place]
        if name in several:  # told apart by what is above
            name = "-".join([part for part in chain[:place] if not PARTS.fullmatch(part)] + [name])
        found.append(name)
    own = {name: (chain[place], chain[:place]) for name, chain, place in zip(found, chains, places, strict=True)}
    for name in several:
        if name in own and own[name][0] != name:
            raise DataError(f"{where}: a folder {name} and another that would be called so; rename one")
    return found


def parts_joined(names: Sequence[str], speakers: Sequence[str | None]) -> str | None:
    """A line about speakers whose recordings lie in several parts (train, test) and are taken together; else None."""
    parts = defaultdict(set)
    for name, speaker in zip(names, speakers, strict=True):
        chain = PurePosixPath(name).parent.parts
        if speaker is not None and speaker in chain:
            parts[speaker].add("/".join(chain[: chain.index(speaker)]))
    joined = {speaker: places for speaker, places in parts.items() if len(places) > 1}
    if not joined:
        return None
    speaker, places = min(joined.items())
    return (
        f"{len(joined):,} of the speakers lie in several folders and count once each: {_short(speaker)} in "
        f"{' and '.join(sorted(places)[:3])}; rename one where they are not the same"
    )


def parts_mixed(names: Sequence[str]) -> str | None:
    """A line where recordings of train and of test folders are taken together; else None."""
    folders = {name for path in names for name in PurePosixPath(path).parent.parts}
    train, test = (sorted(f for f in folders if f.lower().startswith(kind)) for kind in ("train", "test"))
    if not (train and test and PARTS.fullmatch(train[0]) and PARTS.fullmatch(test[0])):
        return None
    return f"{train[0]}/ and {test[0]}/ are taken together; name one of them with --source to keep them apart"


class Table(NamedTuple):
    """Common Voice's tables: the folder they lie in, the speaker of each clip's name, the tables' names."""

    folder: Path
    speaker: dict[str, str]
    tables: list[str]


def read_tables(files: Sequence[Path]) -> Table | None:
    """Common Voice's tables among files; None where there are none.

    Raises:
        DataError: a row without clip or speaker, or tables in several folders.
    """
    tables = [path for path in files if path.name in TABLES and _is_table(path)]
    if not tables:
        return None
    if other := [path for path in tables if path.parent != tables[0].parent]:
        raise DataError(f"{other[0]}: {tables[0]} is there too; name one language's folder with --source")
    speaker: dict[str, str] = {}
    for path in tables:
        rows = csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in rows:
            if not row.get("path") or not row.get("client_id"):
                raise DataError(f"{path}, line {rows.line_num}: no path or client_id; copy or unpack the table again")
            speaker[PurePosixPath(row["path"].replace("\\", "/")).name] = row["client_id"]
    return Table(tables[0].parent, speaker, [path.name for path in tables])


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        return {b"client_id", b"path"} <= {
            cell.strip(b"\xef\xbb\xbf\r") for cell in file.readline(4096).rstrip().split(b"\t")
        }
