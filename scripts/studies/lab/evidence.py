"""What a study is, and how its verdict comes from measurements: by effect size and spread over seeds, never by hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

Result = Literal["holds", "does not hold", "not clear"]
Measurements = dict[str, Any]
"""What one seed gave: only what JSON can hold, because it is kept in a file."""
Table = tuple[list[str], list[list[Any]]]
"""Columns and rows."""
S = TypeVar("S")

SURE = 0.95


@dataclass(frozen=True)
class Finding:
    """One checkable part of a claim."""

    text: str
    result: Result
    numbers: str
    """What it was judged by."""


@dataclass(frozen=True)
class Study(Generic[S]):
    """A claim of the lectures that can fail, and the experiment that tries it.

    Args:
        number: Place in the order of the notes.
        heading: Of the notes' section.
        chinese: The same in Traditional Chinese.
        claim: In one sentence.
        source: Lecture or paper.
        idea: A few sentences of HTML.
        formula: HTML.
        varies: What is compared.
        code: Where the idea lives in the project, as "path:name" of a class or function.
        quick, full: Settings (a dataclass) for under a minute on two cores, and for real data.
        run: Measures one seed: (settings, seed, data root).
        judge: Findings from the measurements of all seeds; the claim holds where all of them do.
        figure, table: Of the measurements of all seeds.
        data: Homework whose files it needs: generated ones in quick, the user's in full.
        seeds: How many by default.
    """

    number: int
    heading: str
    chinese: str
    claim: str
    source: str
    idea: str
    formula: str
    varies: str
    code: tuple[str, ...]
    quick: S
    full: S
    run: Callable[[S, int, Path], Measurements]
    judge: Callable[[list[Measurements]], list[Finding]]
    figure: Callable[[list[Measurements]], Figure]
    table: Callable[[list[Measurements]], Table]
    data: str | None = None
    seeds: int = 3

    def settings(self, quick: bool) -> S:
        """Those of the size asked for."""
        return self.quick if quick else self.full


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a quantity, one value a seed, and its 95 % interval (Student's t); endless for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = stats.t.ppf(0.5 + SURE / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, mean - float(half), mean + float(half)


def effect(text: str, values: Sequence[float], more_than: float = 0.0) -> Finding:
    """Whether a quantity is larger than a margin, by the interval of its mean over seeds.

    For two ways that are compared, the values are their differences (or the logarithms of their ratios) seed by seed,
    and the margin is the least difference that would matter.

    Args:
        text: What is claimed.
        values: One a seed; a single one is never clear, nor is one that is not finite.
        more_than: The margin.
    """
    if not np.isfinite(values).all():
        return Finding(text, "not clear", "not finite for some seed")
    mean, low, high = interval(values)
    result: Result = "holds" if low > more_than else "does not hold" if high <= more_than else "not clear"
    spread = f", 95 % interval {low:.3g} to {high:.3g}" if len(values) > 1 else ""
    return Finding(text, result, f"{mean:.3g}{spread} over {len(values)} seeds; margin {more_than:.3g}")


def fact(text: str, value: float, at_most: float) -> Finding:
    """Whether something that nothing random enters stays below a bound, such as the error of an equality."""
    return Finding(text, "holds" if value <= at_most else "does not hold", f"{value:.3g}; bound {at_most:.3g}")


def verdict(findings: Sequence[Finding]) -> Result:
    """A claim holds where all its parts do, and does not where one does not.

    Raises:
        ValueError: there is no finding.
    """
    if not findings:
        raise ValueError("a claim needs at least one finding")
    results = [finding.result for finding in findings]
    if "does not hold" in results:
        return "does not hold"
    return "not clear" if "not clear" in results else "holds"


def across(measurements: Sequence[Measurements], key: str) -> np.ndarray:
    """One measurement of all seeds, (seeds, ...)."""
    return np.array([m[key] for m in measurements], dtype=float)


def mean_and_spread(values: Sequence[float] | np.ndarray) -> str:
    """A cell of a table: mean over seeds, and their standard deviation where there are several."""
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"
