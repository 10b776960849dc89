"""Curves of a run: read from its metrics.csv, and drawn. Imports matplotlib only to draw, and never Lightning."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]
"""(optimizer step, value) in order."""

FEW = 30  # points, and fewer, get a marker each: a line through one point cannot be seen


def read_metrics(path: Path) -> dict[str, Curve]:
    """Curves in a metrics.csv: column -> [(step, value), ...]; a cell that is no number is left out."""
    curves: dict[str, Curve] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def last_epoch(path: Path) -> int | None:
    """The epoch, counted from 0, of the last row of a metrics.csv that names one."""
    found = None
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            found = row.get("epoch") or found
    return None if found is None else int(float(found))


def plot_curves(curves: dict[str, Curve], ylabel: str, log: bool, title: str = "") -> "Figure":
    """One line a curve against the optimizer step.

    Args:
        curves: Name -> curve.
        ylabel: What the values are, with their unit.
        log: Draw the values on a logarithmic scale, where all are above 0.
        title: Of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in sorted(curves.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, linewidth=1.2, marker="." if len(points) < FEW else None)
    axes.set(xlabel="optimizer step", ylabel=ylabel, title=title)
    if log and all(v > 0 for points in curves.values() for _, v in points):
        axes.set_yscale("log")
        every = [v for points in curves.values() for _, v in points]
        if max(every) < 10 * min(every):
            axes.yaxis.set_major_formatter(ScalarFormatter())  # within one power of ten: 2.2 and not 2.2 x 10^0
            axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")  # on a logarithmic scale most ticks are minor ones
    axes.legend()
    return figure
