"""HW1 files for the tests, written from the course's layout alone: nothing here uses the project's own code."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# course-spec.md, HW1, a. data: 34 states (which ones is not told), 3 days of 18 columns, file names with underscores
SURVEY_2023 = [
    "cli", "ili", "wnohh_cmnty_cli", "wbelief_masking_effective", "wbelief_distancing_effective",
    "wcovid_vaccinated_friends", "wlarge_event_indoors", "wothers_masked_public", "wothers_distanced_public",
    "wshop_indoors", "wrestaurant_indoors", "wworried_catch_covid", "hh_cmnty_cli", "nohh_cmnty_cli",
    "wearing_mask_7d", "public_transit", "worried_finances", "tested_positive",
]  # fmt: skip
STATES_2023 = [f"S{number:02}" for number in range(34)]


def header(states: Sequence[str], survey: Sequence[str], days: int, labelled: bool, suffix: bool) -> list[str]:
    """Column names; `suffix` tells repeated days apart as pandas does: cli, cli.1, cli.2."""
    names = [f"{name}.{day}" if suffix and day else name for day in range(days) for name in survey]
    return ["id", *states, *(names if labelled else names[:-1])]


def write_table(
    path: Path,
    states: Sequence[str],
    survey: Sequence[str],
    days: int,
    values: np.ndarray,
    ids: Sequence[int] | None = None,
    *,
    labelled: bool = True,
    suffix: bool = False,
    newline: str = "\n",
    encoding: str = "utf-8",
    quoting: int = csv.QUOTE_MINIMAL,
) -> Path:
    """Write rows of marks and answers, target last (it is left away where not `labelled`)."""
    ids = range(len(values)) if ids is None else ids
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, lineterminator=newline, quoting=quoting)  # type: ignore[arg-type]
        writer.writerow(header(states, survey, days, labelled, suffix))
        for number, row in zip(ids, values, strict=True):
            cells = [repr(float(v)) for v in (row if labelled else row[:-1])]
            writer.writerow([number, *(c.removesuffix(".0") for c in cells[: len(states)]), *cells[len(states) :]])
    return path


@dataclass
class World:
    """Days of a few states, cut into sliding windows of which some are missing; the truth about every row is known."""

    states: int = 6
    columns: int = 4
    days: int = 3
    windows: int = 14
    missing: float = 0.25
    seed: int = 0
    state: np.ndarray = field(init=False)
    """Number of each row's state."""
    start: np.ndarray = field(init=False)
    """Number of the first day of each row's window."""
    values: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        answers = rng.normal(size=(self.states, self.windows + self.days - 1, self.columns)).cumsum(1)
        answers = 30 + answers * rng.uniform(0.5, 4, self.columns)
        answers[:, 1:, -1] += 0.8 * np.diff(answers[:, :, 0], axis=1)
        pairs = [(s, d) for s in range(self.states) for d in range(self.windows)]
        kept = [pair for pair in pairs if rng.random() >= self.missing]
        self.state, self.start = np.array(kept).T
        rows = [np.concatenate([np.eye(self.states)[s], answers[s, d : d + self.days].ravel()]) for s, d in kept]
        self.values = np.array(rows)

    @property
    def names(self) -> list[str]:
        return [f"state{number}" for number in range(self.states)]

    @property
    def survey(self) -> list[str]:
        return [*(f"answer{number}" for number in range(self.columns - 1)), "tested_positive"]

    @property
    def target(self) -> np.ndarray:
        return self.values[:, -1]

    @property
    def yesterday(self) -> np.ndarray:
        """tested_positive of the day before the target's."""
        return self.values[:, -1 - self.columns]

    def window(self, row: int) -> set[tuple[int, int]]:
        """The (state, day) pairs whose values stand in a row."""
        return {(int(self.state[row]), int(self.start[row]) + k) for k in range(self.days)}

    def write(self, folder: Path, part: str = "train", *, labelled: bool = True, rows: slice = slice(None)) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"covid.{part}.csv"
        return write_table(path, self.names, self.survey, self.days, self.values[rows], labelled=labelled)
