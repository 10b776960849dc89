"""Reads the HW1 course files of any edition: what the columns are is found in the header, not assumed."""

import csv
import io
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files.reading import decode_text, read_text
from datamodules.files.walk import is_hidden

TARGET = "tested_positive"
LONGEST_HEADER = 1 << 16  # bytes
LARGEST = 1e15  # in size: the sum of the squares of 100 million such numbers is finite in float32


@dataclass(eq=False)
class CovidTable:
    """One course file: ids (N,), survey values (N, C) in file order, targets (N,) in percent if the file has them."""

    path: Path
    states: list[str]
    survey: list[str]
    days: int
    ids: list[int]
    values: np.ndarray
    target: np.ndarray | None

    @property
    def columns(self) -> list[str]:
        """Names of `values`, repeated days told apart as pandas does: cli, cli.1, cli.2; no id, no target."""
        return self.states + [name for day in range(self.days) for name in self.day_columns(day)][:-1]

    def day_columns(self, k: int) -> list[str]:
        """Names of day k's survey values, tested_positive last."""
        return [name if k == 0 else f"{name}.{k}" for name in self.survey]

    def day(self, k: int) -> np.ndarray:
        """Survey values of day k (N, S); the target's day has NaN in its last column where there is no target."""
        start, width = len(self.states), len(self.survey)
        block = self.values[:, start + k * width : start + (k + 1) * width]
        if k < self.days - 1:
            return block
        last = np.full(len(block), np.nan) if self.target is None else self.target
        return np.concatenate([block, last[:, None]], axis=1)

    def state(self) -> np.ndarray:
        """Number of each row's state (N,); -1 where no column is set."""
        one_hot = self.values[:, : len(self.states)]
        return np.where(one_hot.any(1), one_hot.argmax(1), -1) if self.states else np.full(len(self.ids), -1)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty."""
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a line of a CSV file ({error})") from None
    if not lines:
        raise DataError(f"{path}: the file is empty, expected a header line and one row a sample")
    if text[-1] not in "\r\n":  # a good file of some editors, or one cut short: the last number may lack digits
        warnings.warn(f"{path}:{reader.line_num}: the last line has no end; is the file whole?", stacklevel=3)
    return _without_empty_ends(path, lines)


def _without_empty_ends(path: Path, lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The lines without commas at their ends that no column follows, as some spreadsheets write them."""
    header = lines[0][1]
    width = max((n for n, cell in enumerate(header, 1) if cell.strip()), default=len(header))
    longer = [line for line, cells in lines if len(cells) > width and not any(map(str.strip, cells[width:]))]
    if longer:
        warnings.warn(
            f"{path}:{longer[0]}: {len(longer)} lines end in commas that no column follows; they are left out",
            stacklevel=4,
        )
    dropped = set(longer)
    return [(line, cells[:width] if line in dropped else cells) for line, cells in lines]


class TableFiles(NamedTuple):
    """The files of a folder to train on and to predict; what else could be one of them; other CSV files."""

    train: list[Path]
    test: list[Path]
    others: list[Path]


COURSE_NAMES = {"train": ("covid.train.csv", "covid_train.csv"), "test": ("covid.test.csv", "covid_test.csv")}
"""What the course calls its files, in 2021 and 2022, and in 2023."""


def find_tables(folder: Path) -> TableFiles:
    """CSV files by their headers, whatever their names; one of the course's names goes before all others.

    A file with the target on its last day is for training, one without for prediction, where its name does not say
    "train" or "test" itself.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    found: dict[str, list[Path]] = {"train": [], "test": []}
    others = []
    for path in files:
        part = next((part for part, names in COURSE_NAMES.items() if path.name in names), None)
        if part is None and path.suffix.lower() == ".csv" and not is_hidden(path.name):
            part = _part_of(path)
            if part is None:
                others.append(path)
        if part is not None:
            found[part].append(path)
    for part, names in COURSE_NAMES.items():
        if best := [path for name in names for path in found[part] if path.name == name]:
            others += [path for path in found[part] if path != best[0]]
            found[part] = best[:1]
    return TableFiles(found["train"], found["test"], others)


def _part_of(path: Path) -> str | None:
    """train or test, by the header and the name; None: it is no table of the course's kind."""
    with path.open("rb") as file:
        first = file.readline(LONGEST_HEADER)
    try:
        text = decode_text(first if first[:2] != b"\xff\xfe" else first + b"\0", path)
        *_, labelled = _header(path, next(csv.reader([text.rstrip("\r\n, ")]), []))
    except (DataError, csv.Error):
        return None
    words = re.findall(r"train|test", path.name.lower())
    return words[0] if len(set(words)) == 1 else ("train" if labelled else "test")


def _header(path: Path, header: list[str]) -> tuple[list[str], list[str], int, bool]:
    """Read states, survey columns, number of days and whether there is a target from a header line."""
    if not header or header[0].strip() != "id":
        header = header or [""]
        raise DataError(f"{path}:1: the first column is {header[0][:40]!r}, expected 'id' (and commas between columns)")
    names = [name.strip() for name in header[1:]]
    if "" in names:
        raise DataError(f"{path}:1: column {names.index('') + 2} has no name; name it, or take the column out")
    if len(set(names)) == len(names) and TARGET in names:  # later days are told apart as pandas does: cli.1, cli.2
        first = names[: names.index(TARGET) + 1]
        bare = [re.sub(r"\.\d+$", "", name) for name in names]
        names = first + [b if b in first else name for b, name in zip(bare, names, strict=True)][len(first) :]
    blocks: list[list[str]] = [[]]
    for name in names:
        blocks[-1].append(name)
        if name == TARGET:
            blocks.append([])
    labelled = not blocks[-1]
    if labelled:
        blocks.pop()
    else:
        blocks[-1].append(TARGET)
    days = len(blocks)
    if days < 2:
        raise DataError(f"{path}:1: found {days} day(s) of survey columns ending in {TARGET!r}, expected 2 or more")
    # the survey is what most days agree on; before the first day's columns stand the states
    survey = max(blocks[1:], key=lambda b: (blocks[1:].count(b) + (blocks[0][-len(b) :] == b), len(b)))
    if len(survey) < 2:
        raise DataError(f"{path}:1: a day has no column but {TARGET!r}, expected survey columns before it")
    for number, block in enumerate([blocks[0][-len(survey) :], *blocks[1:]], start=1):
        if block != survey:
            missing, extra = [n for n in survey if n not in block], [n for n in block if n not in survey]
            what = f"missing {missing}, unexpected {extra}" if missing or extra else f"order {block}"
            raise DataError(f"{path}:1: day {number} differs from the other days: {what}; expected {survey}")
    states = blocks[0][: -len(survey)]
    twice = [name for name, n in Counter(states + survey).items() if n > 1]
    if twice:
        raise DataError(f"{path}:1: column {twice[0]!r} stands twice before the second day, expected once")
    return states, survey, days, labelled


def read_table(path: Path) -> CovidTable:
    """Read a course CSV of any edition by its header (BOM, UTF-16, CRLF, quotes, commas at line ends are fine).

    Raises:
        DataError: names file, line and column of what is not as expected.
    """
    (_, header), *rows = _lines(path)
    states, survey, days, labelled = _header(path, header)
    if not rows:
        raise DataError(f"{path}: only a header line, expected one row a sample below it")
    seen: dict[int, int] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{path}:{line}: {len(cells)} columns, expected {len(header)} as in the header")
        whole = re.fullmatch(r"(\d+)(\.0*)?", cells[0].strip())
        if not whole:
            raise DataError(f"{path}:{line}: column 1 (id) is {cells[0][:40]!r}, expected a whole number")
        key = int(whole[1])
        if key in seen:
            raise DataError(f"{path}:{line}: id {key} stands already in line {seen[key]}; remove one of the rows")
        seen[key] = line

    def refuse(cell: np.ndarray, expected: str) -> DataError:
        row, column = cell
        line, cells = rows[row]
        name, found = header[column + 1].strip(), cells[column + 1][:40]
        return DataError(f"{path}:{line}: column {column + 2} ({name}) is {found!r}, expected {expected}")

    try:
        values = np.array([cells[1:] for _, cells in rows], dtype=np.float64)
    except ValueError:
        values = np.array([[_number(text) for text in cells[1:]] for _, cells in rows])
    if len(bad := np.argwhere(~np.isfinite(values))):
        raise refuse(bad[0], "a finite number")
    if len(bad := np.argwhere(np.abs(values) > LARGEST)):
        raise refuse(bad[0], f"a number of at most {LARGEST:.0e}, as squares of larger ones leave the range of float32")
    marks = values[:, : len(states)]
    if len(bad := np.argwhere((marks != 0) & (marks != 1))):
        raise refuse(bad[0], "0 or 1, the mark of a state")
    if len(bad := np.argwhere((marks.cumsum(1) > 1) & (marks == 1))):
        raise refuse(bad[0], f"0, as the row is marked as of {states[marks[bad[0][0]].argmax()]} already")
    target = values[:, -1] if labelled else None
    return CovidTable(path, states, survey, days, list(seen), values[:, :-1] if labelled else values, target)


def _number(text: str) -> float:
    """The number that a cell holds; NaN for a text."""
    try:
        return float(text)
    except ValueError:
        return np.nan


def window_groups(table: CovidTable) -> np.ndarray:
    """Group number (N,) of each row: rows of a state that share the values of some day, or are linked by such rows.

    Course rows are sliding windows, so a day's survey stands in several rows; a random split puts the same day on both
    sides.
    """
    parent = np.arange(len(table.ids))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[int, bytes], int] = {}
    for key, row in day_keys(table):
        parent[find(row)] = find(first.setdefault(key, row))
    return np.array([find(i) for i in range(len(parent))])


def day_keys(table: CovidTable) -> list[tuple[tuple[int, bytes], int]]:
    """((state, values of one day), row) for every day of every row."""
    state = table.state()
    days = [np.ascontiguousarray(table.day(k)) for k in range(table.days)]
    return [((int(state[row]), day[row].tobytes()), row) for day in days for row in range(len(state))]
