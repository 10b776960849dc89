"""What becomes of a table's columns before a network sees them: differences, scaling, and the choice of some."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import numpy as np
from sklearn.feature_selection import SelectKBest, f_regression, mutual_info_regression

from datamodules.errors import DataError
from datamodules.tables.covid import TARGET, CovidTable

Kind = Literal["raw", "differences"]
Choice = Literal["all", "targets", "f_test", "mutual_info"]


def feature_matrix(table: CovidTable, kind: Kind) -> tuple[np.ndarray, list[str]]:
    """Features (N, C) in real units and their names; see CovidData.features for the kinds."""
    if kind == "raw":
        return table.values, table.columns
    last = table.days - 1
    day = [table.day(k) for k in range(table.days)]
    name = [table.day_columns(k) for k in range(table.days)]
    parts = [table.values[:, : len(table.states)], day[last][:, :-1], day[last - 1][:, -1:]]
    names = [*table.states, *name[last][:-1], name[last - 1][-1]]
    for k in range(last, 0, -1):
        width = len(table.survey) - (k == last)  # the last day's target is what we look for
        parts.append((day[k] - day[k - 1])[:, :width])
        names += [f"{a}-{b}" for a, b in zip(name[k], name[k - 1], strict=True)][:width]
    return np.concatenate(parts, axis=1), names


def scaler_statistics(x: np.ndarray, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale (C,) of training rows (N, C): a feature becomes (x - mean) / scale.

    Args:
        x: Features of the training rows alone.
        plain: Which features stay as they are, (C,) bool.
    """
    mean, scale = np.where(plain, 0.0, x.mean(0)), np.where(plain, 1.0, x.std(0))
    # what never varies (in float32's digits) says nothing, in a held-out state too: it becomes 0
    scale[x.std(0) <= 1e-7 * np.abs(x).max(0)] = np.inf
    return mean, scale


def select_features(
    x: np.ndarray, y: np.ndarray, names: Sequence[str], is_state: np.ndarray, choice: Choice, k: int, seed: int
) -> np.ndarray:
    """Numbers of the features in use, in their order, chosen on training rows alone.

    Args:
        x: Features of the training rows, (N, C).
        y: What is to be predicted, (N,).
        names: Of the features.
        is_state: Which of them mark a state, (C,) bool.
        choice: See CovidData.select.
        k: How many, for f_test and mutual_info.
        seed: Of mutual_info, which adds noise.

    Raises:
        DataError: there are fewer than k features.
    """
    if choice == "targets":
        return np.flatnonzero(is_state | np.char.startswith(list(names), TARGET))
    if choice == "all":
        return np.arange(len(names))
    if k > len(names):
        raise DataError(f"data.k is {k}, but there are only {len(names)} features")
    test = f_regression if choice == "f_test" else partial(mutual_info_regression, random_state=seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # columns that never vary come last
        return SelectKBest(test, k=k).fit(x, y).get_support(indices=True)


def named_features(wanted: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """Numbers of features given by number, name or pattern, in their order.

    Raises:
        DataError: nothing is wanted, or something that is not there.
    """
    found: set[int] = set()
    for item in wanted:
        if isinstance(item, int):
            hits = [item] if 0 <= item < len(names) else []
        else:
            hits = [i for i, name in enumerate(names) if fnmatchcase(name, item)]
        if not hits:
            raise DataError(f"data.columns: no feature {item!r}; there are {len(names)}: {', '.join(names)}")
        found.update(hits)
    if not found:
        raise DataError("data.columns is empty: name at least one feature, or leave it out to use them all")
    return np.array(sorted(found))
