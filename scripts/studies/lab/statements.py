"""What a study states, and how seeds decide each statement: fixed looks, intervals that stay true at all of them.

A statement, its measure, its margin and the looks (numbers of seeds after which it is judged) are fixed before any seed
is judged. At each of K looks the mean over seeds gets an interval of Student's t with error 0.05 / K. All K intervals
then cover the true mean together with a probability of at least 95 % (Bonferroni), so that one may stop at any of them:
repeated confidence intervals, Jennison and Turnbull 1989, J. R. Statist. Soc. B 51, 305. This takes seeds to be
independent and their means to be about normal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

Result = Literal["holds", "does not hold", "too small to matter", "undecided"]
Measurements = dict[str, Any]
"""What one seed gave: only what JSON can hold, because it is kept in a file."""

ERROR = 0.05


class Said(NamedTuple):
    """The same in English and in Traditional Chinese."""

    english: str
    chinese: str


class Interval(NamedTuple):
    """A mean, and where it surely lies."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Statement:
    """One thing that can turn out false.

    Args:
        says: The statement.
        measure: The effect that one seed shows; two ways are compared seed by seed.
        margin: For "more than" the least effect that matters (of a ratio a factor above 1); for "at most" and "exact"
            the bound.
        unit: What follows the number: "times as many steps", "points of accuracy".
        scale: "ratio": a quotient, whose geometric mean is taken; "share": a difference of shares, said in percentage
            points; "plain": as it is.
        kind: "more than": holds where the effect is larger than the margin; "at most": holds where it is not; "exact":
            nothing random enters, so that every seed must stay below the bound.
    """

    says: Said
    measure: Callable[[Measurements], float]
    margin: float
    unit: Said
    scale: Literal["ratio", "share", "plain"] = "plain"
    kind: Literal["more than", "at most", "exact"] = "more than"


@dataclass(frozen=True)
class Verdict:
    """How a statement came out, in a form that JSON can hold.

    Args:
        says: The statement, in English and Chinese.
        result: What was decided.
        words: Effect and interval as a sentence, in English and Chinese.
        effect, low, high: Mean over seeds and its interval, in the statement's scale.
        seeds: How many decided it.
    """

    says: Said
    result: Result
    words: Said
    effect: float
    low: float
    high: float
    seeds: int


def interval(values: Sequence[float], error: float = ERROR) -> Interval:
    """Mean of a quantity, one value a seed, and its interval by Student's t; endless for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(1 - error / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def decide(kind: str, margin: float, found: Interval) -> Result:
    """What an interval says about "more than" or "at most" a margin."""
    if kind == "at most":
        return "holds" if found.high <= margin else "does not hold" if found.low > margin else "undecided"
    if found.low > margin:
        return "holds"
    if found.high > margin:
        return "undecided"
    return "too small to matter" if found.low >= -margin else "does not hold"


def needed(margin: float, values: Sequence[float], error: float) -> int | None:
    """About how many seeds would move the interval off the margin, from the mean and spread so far."""
    mean, low, high = interval(values, error)
    away = abs(mean - margin)
    if len(values) < 2 or away == 0:
        return None
    half = (high - low) / 2
    return max(len(values) + 1, math.ceil(len(values) * (half / away) ** 2))


def judge(statement: Statement, measurements: Sequence[Measurements], looks: Sequence[int]) -> Verdict:
    """The verdict at the first look that decides; "undecided" where none of those that were reached does.

    Args:
        statement: What is judged.
        measurements: One a seed, in the order of seeds.
        looks: Numbers of seeds, growing, fixed beforehand.
    """
    values = np.array([statement.measure(found) for found in measurements], dtype=float)
    if statement.kind == "exact":
        worst = float(np.max(values))  # not a number stays one, and is not below the bound
        result: Result = "holds" if worst <= statement.margin else "does not hold"
        return _verdict(statement, result, Interval(worst, worst, worst), len(values), None)
    margin = statement.margin
    if statement.scale == "ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            values, margin = np.log(values), math.log(margin)
    error = ERROR / len(looks)
    reached = [look for look in looks if look <= len(values)] or [len(values)]
    for seeds in reached:
        now = values[:seeds].tolist()
        found = interval(now, error) if np.isfinite(now).all() else Interval(math.nan, -math.inf, math.inf)
        result = decide(statement.kind, margin, found)
        if result != "undecided":
            return _verdict(statement, result, found, seeds, None)
    more = needed(margin, now, error) if np.isfinite(now).all() else None
    return _verdict(statement, "undecided", found, seeds, more)


def _verdict(statement: Statement, result: Result, found: Interval, seeds: int, more: int | None) -> Verdict:
    """The verdict with its sentence."""
    if statement.scale == "ratio" and statement.kind != "exact":
        found = Interval(*(math.exp(value) if value < 700 else math.inf for value in found))
    mean, low, high = (said(value, statement.scale) for value in found)
    margin = said(statement.margin, statement.scale)
    unit = statement.unit
    if statement.kind == "exact":
        words = Said(f"{mean} {unit.english}; bound {margin}", f"{mean} {unit.chinese}；上限 {margin}")
    elif not all(map(math.isfinite, found)):
        words = Said(f"not measurable with {seeds} seeds", f"{seeds} 個隨機種子量不出來")
    else:
        of = Said("seed" if seeds == 1 else "seeds", "個隨機種子")
        limit = Said("more than", "大於") if statement.kind == "more than" else Said("at most", "不超過")
        words = Said(
            f"{mean} {unit.english}, 95 % sure between {low} and {high} ({limit.english} {margin} was stated; {seeds} "
            f"{of.english})",
            f"{mean} {unit.chinese}，95 % 確定在 {low} 到 {high} 之間（主張：{limit.chinese} {margin}；{seeds} "
            f"{of.chinese}）",
        )
    if more is not None:
        words = Said(
            f"{words.english}; about {more} seeds would decide it", f"{words.chinese}；大約需要 {more} 個種子才能確定"
        )
    return Verdict(statement.says, result, words, *found, seeds)


def said(value: float, scale: str) -> str:
    """A number as it is read: of a share in percentage points."""
    if scale == "share":
        return f"{100 * value:.3g}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def summary(results: Sequence[Result]) -> str:
    """How many statements came out how: "4 of 6 hold, 1 too small to matter, 1 undecided"."""
    parts = [f"{results.count('holds')} of {len(results)} hold"]
    others = {"too small to matter": "too small to matter", "does not hold": "refuted", "undecided": "undecided"}
    parts += [f"{results.count(kind)} {words}" for kind, words in others.items() if kind in results]
    return ", ".join(parts)
