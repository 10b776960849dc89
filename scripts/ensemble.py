"""leeml ensemble: the mean of several runs' predictions as one submission, with weights chosen on held-out rows.

The runs are of one homework and name the same test rows; their networks, features and settings may differ. HW1 averages
predictions, HW2 to HW4 class probabilities. (HW5: `leeml translate` with several --run_dir.) The folder of a k-fold run
counts as one run: the mean of its folds, and each labelled row as predicted by the fold that held it out.

--weights search is greedy selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of
models"), on the held-out rows that none of the runs trained on. What it reports was judged on the half of the rows that
the weights were not chosen on.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from callbacks.predictions import Predictions, digest, read_predictions, source_of, write_predictions
from callbacks.submission import table, write_csv
from datamodules.base import HomeworkData
from datamodules.errors import DataError
from scripts.cli.mistakes import Parser, UsageError
from scripts.kfold import ELSEWHERE, predict_rows, read_data
from scripts.run.checkpoint import load_checkpoint
from scripts.run.folder import RunFolder
from scripts.run.folds import FoldPredictions, join, parts_of
from scripts.train import LeemlCLI, run_cli

ROUNDS = 50  # of the greedy search: weights are multiples of 1 / 50


def mean(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Weighted mean of predictions (N,) or (N, C)."""
    total = sum(weight * value for weight, value in zip(weights, values, strict=True))
    return np.asarray(total / sum(weights))


def select(values: Sequence[np.ndarray], score: Callable[[np.ndarray], float], rounds: int = ROUNDS) -> list[float]:
    """Weights, of sum 1, by greedy selection with replacement.

    Each round adds the run that makes the mean of all chosen so far best; the best mean of all rounds is kept.

    Args:
        values: Each run's predictions of the same rows.
        score: Higher is better.
        rounds: How many are chosen.
    """
    counts = np.zeros(len(values))
    best, chosen = -np.inf, counts
    for _ in range(rounds):
        scores = [score(mean(values, counts + np.eye(len(values))[i])) for i in range(len(values))]
        counts = counts + np.eye(len(values))[int(np.argmax(scores))]
        if max(scores) > best:
            best, chosen = max(scores), counts
    return (chosen / chosen.sum()).tolist()


def open_cli(run: Path, subcommand: str, rest: Sequence[str]) -> LeemlCLI:
    """Run a subcommand of `leeml` on a run."""
    return run_cli([subcommand, "--run_dir", str(run), *rest])


class Member(NamedTuple):
    """What a run, or a k-fold run, says of rows."""

    said: Predictions
    data: HomeworkData | Any
    """Open for these rows."""


def joined_of(run: Path, parts: Sequence[RunFolder], rest: Sequence[str]) -> tuple[FoldPredictions, HomeworkData]:
    """What the folds of a k-fold run predicted when they were trained, and their data.

    Raises:
        UsageError: a flag would have changed it.
    """
    for word in rest:
        if word.startswith("--") and word.split("=")[0] not in (*ELSEWHERE, "--trust"):
            raise UsageError(f"{word}: the folds of {run} have predicted already, by their own settings; leave it out")
    return join(parts), read_data(parts[0], rest)


def predict(run: Path, rest: Sequence[str]) -> Member:
    """What a run predicts for the test rows now; its own submission file stays as it is. A k-fold run has it at hand.

    Raises:
        DataError: it predicts no table, or its predictions cannot be kept.
    """
    if parts := parts_of(run):
        joined, data = joined_of(run, parts, rest)
        if joined.test is None:
            raise DataError(joined.no_test)
        names = digest(row[0] for row in table(data, joined.test)[1])
        return Member(Predictions(np.arange(len(joined.test)), joined.test, names), data)
    path = run / "predictions.npz"
    before = path.stat().st_mtime_ns if path.is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        cli = open_cli(run, "predict", [*rest, "--output", str(Path(scratch) / "submission")])
    if path.is_file() and path.stat().st_mtime_ns == before:
        raise DataError(f"{path}: cannot be written, and holds older predictions; change its permissions")
    kept = read_predictions(path)
    if kept is None:
        raise DataError(f"{run}: predicts no table; text is joined by `leeml translate --run_dir A --run_dir B`")
    return Member(kept, cli.datamodule)


def predictions_of(run: Path, rest: Sequence[str], data: Path | None) -> Predictions:
    """What a run predicts for the test rows, computed only where it was not kept.

    Args:
        run: The run's folder.
        rest: Flags, which may name other data or settings: with them nothing that was kept is used.
        data: Folder of the data. What was kept counts if it comes from these data and the checkpoint of today.
    """
    kept = read_predictions(run / "predictions.npz")
    if kept is None or rest or data is None or kept.source != source_of(RunFolder(run).kept(), data):
        kept = predict(run, rest).said
    return kept


def held_out_of(run: Path, rest: Sequence[str]) -> Member:
    """What a run predicts for the rows that it holds out; a k-fold run holds out all rows, fold by fold."""
    if parts := parts_of(run):
        joined, data = joined_of(run, parts, rest)
        rows, values = joined.rows, joined.held
    else:
        cli = open_cli(run, "validate", rest)
        data = cli.datamodule
        if not isinstance(data, HomeworkData):
            raise DataError(
                f"{run}: its data have no labels and no score of rows to search weights by; leave --weights out"
            )
        rows, values = predict_rows(cli, data.val_dataloader())
    order = rows.argsort()
    kept = Predictions(rows[order], values[order], digest(data.labels(rows[order])[0]))
    if not parts:
        write_predictions(run / "held_out.npz", kept)
    return Member(kept, data)


def checkpoint_of(run: Path) -> Path:
    """A checkpoint that tells what the run, or each fold of a k-fold run, was trained for."""
    parts = parts_of(run)
    return parts[0].checkpoint("last") if parts else RunFolder(run).kept()


def search(runs: Sequence[Path], rest: Sequence[str]) -> list[float]:
    """Weights chosen on rows that all runs hold out; prints what they gain on rows they were not chosen on.

    Raises:
        DataError: no row is held out by all of them.
    """
    found = [held_out_of(run, rest) for run in runs]
    data: HomeworkData = found[0].data
    common = sorted(set.intersection(*(set(said.rows.tolist()) for said, _ in found)))
    names = {digest(own.labels(np.array(common))[0]) for _, own in found} if common else set()
    if len(names) != 1:
        raise DataError(
            "no row is held out by all of these runs, so there is none to choose weights on; leave out --weights for "
            "equal ones, or train the runs with the same data, data.fold and data.seed"
        )
    rows = np.array(common)
    values = [said.values[np.searchsorted(said.rows, rows)] for said, _ in found]
    mode = load_checkpoint(checkpoint_of(runs[0]))["config"]["checkpoint"]["mode"]
    true, sign = data.labels(rows)[1], 1 if mode == "max" else -1

    def score(part: np.ndarray, predicted: np.ndarray) -> float:
        return sign * data.score(true[part], data.decide(predicted))

    middle = len(rows) // 2  # rows that lie close together are alike, so halves are not drawn row by row
    halves = [np.arange(middle), np.arange(middle, len(rows))]
    honest: list[float] = []
    equal: list[float] = []
    for chosen_on, judged_on in (halves, halves[::-1]):
        weights = select([value[chosen_on] for value in values], partial(score, chosen_on))
        for into, by in ((honest, weights), (equal, [1.0] * len(runs))):
            into.append(sign * score(judged_on, mean([value[judged_on] for value in values], by)))
    weights = select(values, partial(score, np.arange(len(rows))))
    print(f"\n  {len(rows)} rows that no run trained on, {data.score_name}:")
    for run, value, weight in zip(runs, values, weights, strict=True):
        print(f"  weight {weight:.2f}  {sign * score(np.arange(len(rows)), value):.4f}  {run}")
    print(f"  on the half they were not chosen on: weights {np.mean(honest):.4f}, equal weights {np.mean(equal):.4f}")
    return weights


def check_alike(runs: Sequence[Path], kept: Sequence[Predictions]) -> None:
    """Refuse runs whose predictions cannot be averaged.

    Raises:
        DataError: of other homeworks, other classes, or other rows.
    """
    first = load_checkpoint(checkpoint_of(runs[0]))
    for run, own in zip(runs[1:], kept[1:], strict=True):
        other = load_checkpoint(checkpoint_of(run))
        if other["homework"] != first["homework"]:
            raise DataError(f"{run}: of {other['homework']}, but {runs[0]} is of {first['homework']}")
        if other["facts"].get("classes") != first["facts"].get("classes"):
            raise DataError(f"{run}: names other classes than {runs[0]}; they were trained on different data")
        if (own.names, own.values.shape) != (kept[0].names, kept[0].values.shape):
            raise DataError(
                f"{run}: its predictions are for other rows than those of {runs[0]}; run both again with the same "
                "data: leeml ensemble ... --data.root DIR"
            )


def parse_weights(text: str, count: int) -> list[float] | None:
    """Numbers for so many runs; None for "search".

    Raises:
        UsageError: it is neither.
    """
    if text == "search":
        return None
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UsageError(f"--weights {text}: expected {count} numbers such as {','.join(['1'] * count)}, or search")
    return weights


def main(args: list[str]) -> int:
    """Write the submission of several runs."""
    parser = Parser(
        prog="leeml ensemble", description=__doc__,
        epilog="--data flags, such as --data.root DIR, go to every run.",
    )  # fmt: skip
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of two or more runs")
    parser.add_argument("--run_dir", action="append", default=[], type=Path, metavar="RUN", help="the same, as a flag")
    parser.add_argument("--weights", default="", help="one number a run, such as 2,1,1, or search (default: equal)")
    parser.add_argument("--output", type=Path, default=Path("submission.csv"), help="default: submission.csv here")
    own, rest = parser.parse_known_args(args[1:])
    runs = [path.absolute() for path in [*own.runs, *own.run_dir]]
    if len(runs) < 2:
        raise UsageError("an ensemble needs two or more runs: leeml ensemble RUN RUN ...")
    weights = parse_weights(own.weights, len(runs)) if own.weights else [1.0] * len(runs)
    first, data = predict(runs[0], rest)  # its data, open for the test rows, makes the table
    where = data.locate() if isinstance(data, HomeworkData) else None
    kept = [first, *(predictions_of(run, rest, where) for run in runs[1:])]
    check_alike(runs, kept)
    weights = search(runs, rest) if weights is None else weights
    header, rows = table(data, mean([one.values for one in kept], weights))
    write_csv(own.output, header, rows)
    print(f"\n  {own.output}: {len(rows)} rows, mean of {len(runs)} runs")
    return 0
