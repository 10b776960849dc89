"""Files of sentence pairs, plain or .gz: two files with a sentence a line each, or one with tab-separated columns."""

import zlib
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError
from datamodules.files.reading import LARGEST, decode_text, in_words, read_bytes

CHINESE = ("zh_hant", "zh")  # names of its column, the better one first
TABLES = (".tsv", ".tsv.gz", ".txt", ".txt.gz")  # ends of the names of tab-separated files
HARMLESS, RATIO, STEP = 1 << 26, 100, 1 << 24  # bytes that any gz may hold; times its size that larger ones may; a step
PSEUDO = "。"  # every line of the course's test.zh, whose true lines are not published


class Bitext(NamedTuple):
    """Where the sentences of either language lie: the same table twice, or a file each; a test set may lack one."""

    en: Path | None
    zh: Path | None

    @property
    def files(self) -> list[Path]:
        """The files of both languages, each once."""
        return list(dict.fromkeys(path for path in self if path is not None))

    def __str__(self) -> str:
        return " and ".join(map(str, self.files))


class Lines(NamedTuple):
    """As many sentences of either language; `first` is the number of the line where the first pair stands."""

    en: list[str]
    zh: list[str]
    first: int = 1


def find_bitext(folder: Path, name: str, alone: bool = False) -> Bitext:
    """A table, or the files <name>.en and <name>.zh, plain or .gz; relative to `folder`. What is not there is None.

    Args:
        folder: Where to look.
        name: Of the table, or what stands before .en and .zh.
        alone: Take a file <name> or <name>.gz for the language that is missing, as the course's monolingual Chinese
            ted_zh_corpus.deduped.gz beside a translation ted_zh_corpus.deduped.en.
    """
    if name.endswith(TABLES):
        table = folder / name
        return Bitext(table, table) if table.is_file() else Bitext(None, None)
    sides = [
        next((path for end in ("", ".gz") if (path := folder / f"{name}.{language}{end}").is_file()), None)
        for language in ("en", "zh")
    ]
    if alone and sides.count(None) == 1:
        one = next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)
        sides = [path or one for path in sides]
    return Bitext(*sides)


def read_bitext(bitext: Bitext) -> Lines:
    """All lines of both languages, as many of each; empty ones for a language that is not there.

    Raises:
        DataError: other numbers of lines, no UTF-8, a gz that is cut short, or a table without the columns needed.
        OSError: a file cannot be read; `filename` says which.
    """
    if bitext.en is not None and bitext.en == bitext.zh:
        return _read_table(bitext.en)
    en, zh = (None if path is None else read_lines(path) for path in bitext)
    if en is not None and zh is not None and len(en) != len(zh):
        raise DataError(
            f"{bitext.en} has {len(en):,} lines, {bitext.zh} has {len(zh):,}: expected as many, line n of "
            "one translating line n of the other; get both from one source again"
        )
    blank = [""] * len(en or zh or [])
    return Lines(en or blank, zh or blank)


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, plain or .gz, without their ends; only line feeds end one, whatever else Unicode has.

    Raises:
        DataError: no regular file, too large, no UTF-8 (nor UTF-16 with its mark), or a gz that is cut short.
        OSError: the file cannot be read; `filename` says which.
    """
    data = read_bytes(path)
    if path.suffix == ".gz":
        data = _unpacked(path, data)
    text = decode_text(data, path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _unpacked(path: Path, data: bytes) -> bytes:
    """What a gz file holds, of one member or several, up to a limit."""
    found = bytearray()
    largest = min(LARGEST, max(HARMLESS, RATIO * len(data)))
    try:
        while data:
            member = zlib.decompressobj(wbits=31)
            while data and not member.eof:
                found += member.decompress(data, STEP)
                data = member.unconsumed_tail
                if len(found) > largest:
                    own, most = in_words(path.stat().st_size), in_words(largest)
                    raise DataError(f"{path}: {own}, but more than {most} of text would come of it; cut it up")
            if not member.eof:
                raise EOFError("it ends too early")
            data = member.unused_data.lstrip(b"\0")  # some tools pad with zeros
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: cut short or no gz file ({error}); copy or download it again") from None
    return bytes(found)


def _read_table(path: Path) -> Lines:
    lines = read_lines(path)
    names = lines[0].split("\t") if lines else []
    chinese = next((name for name in CHINESE if name in names), None)
    if "en" in names and chinese:
        en, zh, first = names.index("en"), names.index(chinese), 1
    elif len(names) < 2 or "en" in names or chinese:
        raise DataError(
            f"{path}, line 1: {', '.join(names) or 'nothing'}; expected tab-separated columns, English and then "
            "Chinese, or a header that names en and zh_hant (or zh)"
        )
    else:
        en, zh, first = 0, 1, 0
    pairs = Lines([], [], first + 1)
    for number, line in enumerate(lines[first:], first + 1):
        fields = line.split("\t") if line.strip() else [""] * (max(en, zh) + 1)
        if len(fields) <= max(en, zh):
            raise DataError(f"{path}, line {number}: {len(fields)} columns, expected at least {max(en, zh) + 1}")
        pairs.en.append(fields[en])
        pairs.zh.append(fields[zh])
    return pairs


def is_pseudo(lines: list[str]) -> bool:
    """Whether the lines are those of the course's test.zh, which translate nothing."""
    return {line.strip() for line in lines} <= {PSEUDO, ""}
