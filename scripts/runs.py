"""leeml runs: a table of all runs, or what differs between two of them.

`leeml runs [DIR]` lists the runs at or below DIR; `leeml runs diff A B [--output FILE.png]` shows which settings of two
runs differ, and draws the curves of both in one picture.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from callbacks.curves import Curve
from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from scripts.cli.mistakes import Parser, UsageError
from scripts.run.listing import RunInfo, curves_of, describe_run, differences, find_runs, read_config

COLUMNS = ("run", "homework", "level", "began", "epochs", "best", "test", "git", "state")
MOST = 48  # characters of a cell


def cells(info: RunInfo, folder: Path) -> dict[str, str]:
    """A run's row, as text."""
    scores = ", ".join(f"{name.removeprefix('test/')} {value:.4g}" for name, value in info.test.items())
    best = "" if info.best is None else f"{info.monitor.removeprefix('val/')} {info.best:.4g}"
    path = info.path.relative_to(folder) if info.path.is_relative_to(folder) else info.path
    row = (str(path), info.homework, info.level, info.began, info.epochs, best, scores, info.git, info.state)
    return dict(zip(COLUMNS, row, strict=True))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns of even width; a cell that is too long is cut."""
    shown = [columns, *([cell if len(cell) <= MOST else f"{cell[: MOST - 1]}…" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown)


def show_runs(args: list[str]) -> int:
    """Print the table of all runs in a folder."""
    parser = Parser(prog="leeml runs", description=__doc__)
    parser.add_argument("dir", nargs="?", type=Path, default=PROJECT / "runs", metavar="DIR", help="default: runs/")
    parser.add_argument("--sort", choices=COLUMNS, default="began", help="column to sort by (default: began)")
    parser.add_argument("--reverse", action="store_true", help="largest, or latest, first")
    parser.add_argument("--json", action="store_true", help="all that is known, one JSON list")
    own = parser.parse_args(args)
    folder = own.dir.expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one that holds your runs: leeml runs DIR")
    infos, damaged = [], []
    for path in find_runs(folder):
        try:
            infos.append(describe_run(path))
        except Exception as error:  # whatever it is, one damaged run must not hide the others
            damaged.append(str(error) if isinstance(error, DataError) else f"{path}: damaged ({error!r})")
    if own.sort == "best":
        infos.sort(key=lambda info: (info.best is None, info.best or 0.0), reverse=own.reverse)
    else:
        infos.sort(key=lambda info: cells(info, folder)[own.sort], reverse=own.reverse)
    if own.json:
        print(json.dumps([{**info._asdict(), "path": str(info.path)} for info in infos], indent=2))
    elif infos:
        rows = [cells(info, folder) for info in infos]
        print(table(COLUMNS, [tuple(row.values()) for row in rows]))
    else:
        print(f"no runs in {folder}; begin one: leeml fit --config configs/hw1_covid/medium.yaml")
    for line in damaged:
        print(f"left out: {line}")
    return 0


def show_diff(args: list[str]) -> int:
    """Print the settings that differ, and draw the curves of both runs."""
    parser = Parser(prog="leeml runs diff", description="which settings of two runs differ, and the curves of both")
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, default=Path("runs_diff.png"), help="picture (default: runs_diff.png)")
    own = parser.parse_args(args)
    if own.output.suffix != ".png":
        raise UsageError(f"--output {own.output}: expected a name that ends in .png")
    names = [str(path) for path in own.runs]
    configs = [read_config(path) for path in own.runs]
    found = differences(*configs)
    print(table(("setting", *names), found) if found else "the settings are the same")
    curves = [curves_of(path) for path in own.runs]
    both = [name for name in curves[0] if name in curves[1] and not name.startswith("lr-")]
    if not both:
        print("no picture: the runs have no curve in common")
        return 0
    draw_both(names, curves, both, own.output)
    print(f"\ncurves: {own.output}")
    return 0


def draw_both(names: list[str], curves: list[dict[str, Curve]], both: list[str], path: Path) -> None:
    """One panel a metric that both runs have, with a line a run, as a PNG file."""
    from matplotlib.figure import Figure

    from callbacks.curves import FEW
    from callbacks.files import whole
    from modules.pictures.captions import explain

    figure = Figure(figsize=(7, 1 + 2.6 * len(both)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(both), 1, squeeze=False).flat, both, strict=True):
        for name, own in zip(names, curves, strict=True):
            steps, values = zip(*own[metric], strict=True)
            axes.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < FEW else None)
        axes.set(xlabel="optimizer step", ylabel=metric)
        every = [value for own in curves for _, value in own[metric]]
        if min(every) > 0 and max(every) > 10 * min(every):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    explain("runs_diff", figure)
    with whole(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)


def main(args: list[str]) -> int:
    """List runs, or compare two."""
    return show_diff(args[2:]) if args[1:2] == ["diff"] else show_runs(args[1:])
