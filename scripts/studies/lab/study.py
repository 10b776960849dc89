"""What a study is: statements of the lectures that can fail, the experiment that tries them, and how it is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from matplotlib.figure import Figure

from scripts.studies.lab.statements import Measurements, Said, Statement

Table = tuple[list[str], list[list[Any]]]
"""Columns and rows."""
S = TypeVar("S")


@dataclass(frozen=True)
class Play:
    """Something to play with in the page.

    Args:
        script: Its file in scripts/studies/lab/play/, without .js.
        data: What the script gets, from the measurements: only what JSON can hold.
    """

    script: str
    data: Callable[[list[Measurements]], Any] = lambda measurements: {}


@dataclass(frozen=True)
class Study(Generic[S]):
    """One idea of the lectures.

    Args:
        number: Place in the order of the notes.
        heading: Of the notes' section.
        lecture: What the lecture says, in about three sentences. HTML, as all texts but statements.
        formula: HTML.
        varies: What is compared in the experiment, and on what data.
        caption: How to read the picture.
        doubt: What would change one's mind: what the experiment leaves open.
        again: A command to try next, and why.
        source: Lecture and papers.
        code: Where the idea lives in the project, as "path:name" of a class or function.
        quick, full: Settings (a dataclass) for about a minute of one core, and for real data.
        run: Measures one seed: (settings, seed, data root).
        statements: Fixed before a seed is judged.
        figure, table: Of the measurements of all seeds.
        play: What can be played with, if anything.
        data: Homework whose files it needs: generated ones in quick, the user's in full.
        quick_looks, full_looks: Numbers of seeds after which the statements are judged.
    """

    number: int
    heading: Said
    lecture: Said
    formula: str
    varies: Said
    caption: Said
    doubt: Said
    again: tuple[str, Said]
    source: str
    code: tuple[str, ...]
    quick: S
    full: S
    run: Callable[[S, int, Path], Measurements]
    statements: tuple[Statement, ...]
    figure: Callable[[list[Measurements]], Figure]
    table: Callable[[list[Measurements]], Table]
    play: Play | None = None
    data: str | None = None
    quick_looks: tuple[int, ...] = (4, 8)
    full_looks: tuple[int, ...] = (4, 8, 16)

    def settings(self, quick: bool) -> S:
        """Those of the size asked for."""
        return self.quick if quick else self.full

    def looks(self, quick: bool) -> tuple[int, ...]:
        """Those of the size asked for."""
        return self.quick_looks if quick else self.full_looks


def across(measurements: Sequence[Measurements], key: str) -> np.ndarray:
    """One measurement of all seeds, (seeds, ...)."""
    return np.array([m[key] for m in measurements], dtype=float)


def mean_and_spread(values: Sequence[float] | np.ndarray) -> str:
    """A cell of a table: mean over seeds, and their standard deviation where there are several."""
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"
