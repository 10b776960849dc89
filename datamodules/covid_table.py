"""Reads the HW1 course files of any edition: what the columns are is found in the header, not assumed."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.errors import DataError

TARGET = "tested_positive"


@dataclass
class CovidTable:
    """One course file: ids (N,), survey values (N, C) in file order, targets (N,) in percent where the file has them."""

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
        names = [name if day == 0 else f"{name}.{day}" for day in range(self.days) for name in self.survey]
        return self.states + names[:-1]

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
        return np.where(one_hot.any(1), one_hot.argmax(1), -1)


def _header(path: Path, header: list[str]) -> tuple[list[str], list[str], int, bool]:
    """Read states, survey columns, number of days and whether there is a target from a header line."""
    if not header or header[0].strip() != "id":
        raise DataError(f"{path}:1: the first column is {header[0] if header else ''!r}, expected 'id'")
    raw = [name.strip() for name in header[1:]]
    names = [m[1] if (m := re.fullmatch(r"(.+)\.\d+", name)) and m[1] in raw else name for name in raw]
    blocks: list[list[str]] = [[]]
    for name in names:
        blocks[-1].append(name)
        if name == TARGET:
            blocks.append([])
    labelled = not blocks[-1]
    days = len(blocks) - (1 if labelled else 0)
    if labelled:
        blocks.pop()
    else:
        blocks[-1].append(TARGET)
    if days < 2:
        raise DataError(f"{path}:1: found {days} day(s) of survey columns ending in {TARGET!r}, expected 2 or more")
    survey = list(Counter(tuple(block) for block in blocks[1:]).most_common(1)[0][0])
    first = blocks[0][-len(survey) :]
    for number, block in enumerate([first, *blocks[1:]], start=1):
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
    """Read a course CSV of any edition by its header (BOM, CRLF and quotes are fine).

    Raises:
        DataError: names file, line and column of what is not as expected.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(reader.line_num, row) for reader in [csv.reader(file)] for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise DataError(f"{path}: the file is empty, expected a header line and one row a sample")
    header = rows[0][1]
    states, survey, days, labelled = _header(path, header)
    if len(rows) == 1:
        raise DataError(f"{path}: only a header line, expected one row a sample below it")
    seen: dict[int, int] = {}
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}:{line}: {len(row)} columns, expected {len(header)} as in the header")
        if not re.fullmatch(r"\d+(\.0*)?", row[0].strip()):
            raise DataError(f"{path}:{line}: id is {row[0]!r}, expected a whole number")
        key = int(float(row[0]))
        if key in seen:
            raise DataError(f"{path}:{line}: id {key} stands already in line {seen[key]}; remove one of the rows")
        seen[key] = line
    try:
        values = np.array([row[1:] for _, row in rows[1:]], dtype=np.float64)
        bad = np.argwhere(~np.isfinite(values))
        cell = tuple(bad[0]) if len(bad) else None
    except ValueError:
        cell = next(
            (r, c) for r, (_, row) in enumerate(rows[1:]) for c, text in enumerate(row[1:]) if not _number(text)
        )
    if cell is not None:
        line, row = rows[1 + cell[0]]
        raise DataError(
            f"{path}:{line}: column {cell[1] + 2} ({header[cell[1] + 1]}) is {row[cell[1] + 1]!r}, expected a finite number"
        )
    target = values[:, -1] if labelled else None
    return CovidTable(path, states, survey, days, list(seen), values[:, :-1] if labelled else values, target)


def _number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


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
