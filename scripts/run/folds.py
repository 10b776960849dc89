"""The parts of a k-fold run, each a run of its own: what they predicted, and whether they belong together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.files import whole
from callbacks.predictions import UNREADABLE
from datamodules.errors import DataError
from scripts.cli.yaml_files import read_yaml
from scripts.run.folder import RunFolder
from scripts.run.listing import read_config

FREE = (  # keys in which the folds of one k-fold run may differ
    "data.init_args.fold", "data.init_args.root", "data.init_args.dir", "data.init_args.edition",
    "data.init_args.workers", "trainer.accelerator", "trainer.logger", "trust",
)  # fmt: skip


@dataclass
class FoldPredictions:
    """What the model of one fold said.

    Args:
        rows: Numbers of the rows held out (N,).
        held: Their predictions (N, ...).
        test: Predictions for the test file, in its order; None where there is none.
        no_test: Why there is none.
    """

    rows: np.ndarray
    held: np.ndarray
    test: np.ndarray | None = None
    no_test: str = ""

    def save(self, path: Path) -> None:
        """Write them as one file, which is then the sign that the fold is done.

        Raises:
            DataError: one of them is no finite number.
        """
        for name, values in {"a row held out": self.held, "the test file": self.test}.items():
            if values is not None and not np.isfinite(values).all():
                raise DataError(f"{path.parent}: a prediction for {name} is not finite; train this fold in another way")
        parts = {"rows": self.rows, "held": self.held, "no_test": np.array(self.no_test)}
        if self.test is not None:
            parts["test"] = self.test
        with whole(path) as scratch, open(scratch, "wb") as file:
            np.savez_compressed(file, **parts)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "FoldPredictions":
        """Read what `save` wrote.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as parts:
                return cls(parts["rows"], parts["held"], parts.get("test"), str(parts["no_test"]))
        except UNREADABLE as error:
            raise DataError(f"{path}: damaged ({error}); delete it, and the fold is predicted once more") from None


def predictions(part: RunFolder) -> Path:
    """The file of a fold's predictions."""
    return part.path / "fold_predictions.npz"


def data_options(run: RunFolder) -> dict[str, Any]:
    """The arguments of the data in a run's configuration; none where it names no class with arguments."""
    data = read_config(run.path)["data"]
    parts = [data.get(name) for name in ("init_args", "dict_kwargs")] if isinstance(data, dict) else []
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def count_of(part: RunFolder) -> int:
    """How many folds the k-fold run has that a fold is of.

    Raises:
        DataError: its data say nothing of folds.
    """
    count = data_options(part).get("folds")
    if not isinstance(count, int):
        raise DataError(f"{part.config}: data has no number of folds, so this is no part of a k-fold run")
    return count


def parts_of(path: Path) -> list[RunFolder]:
    """The parts of a finished k-fold run, one for each fold or one for all; none where the folder is no k-fold run.

    Raises:
        DataError: a fold is not done.
    """
    if predictions(RunFolder(path)).is_file():
        return [RunFolder(path)]
    begun = [part for part in map(RunFolder, sorted(path.glob("fold_*"))) if part.config.is_file()]
    if not begun or RunFolder(path).config.is_file():
        return []
    parts = [RunFolder(path / f"fold_{k}") for k in range(count_of(begun[0]))]
    if missing := missing_of(parts):
        raise DataError(f"{path}: folds {missing} are missing: leeml kfold --run_dir {path} --resume")
    return parts


def missing_of(parts: Sequence[RunFolder]) -> str:
    """Numbers of the folds that have predicted nothing yet."""
    return ", ".join(str(k) for k, part in enumerate(parts) if not predictions(part).is_file())


def join(parts: Sequence[RunFolder]) -> FoldPredictions:
    """The predictions of all folds: rows held out one fold after the other, and the mean for the test file.

    Raises:
        DataError: the folds were not made alike, or a row is held out by two of them.
    """
    for part in parts[1:]:
        check_alike(read_yaml(part.config), part.path, read_yaml(parts[0].config), parts[0].path)
    found = [FoldPredictions.load(predictions(part)) for part in parts]
    rows = np.concatenate([f.rows for f in found])
    if len(np.unique(rows)) < len(rows):
        raise DataError(f"{parts[0].path.parent}: a row is held out by two folds; they are of different data")
    tests = [f.test for f in found if f.test is not None]
    missing = next((f.no_test for f in found if f.test is None), "")
    test = np.mean(tests, axis=0) if len(tests) == len(found) else None
    return FoldPredictions(rows, np.concatenate([f.held for f in found]), test, missing)


def check_alike(config: Mapping[str, Any], path: Path, other: Mapping[str, Any], other_path: Path) -> None:
    """Hold the configurations of two folds against each other.

    Raises:
        DataError: names the first key in which they must not differ.
    """
    ours, theirs = dict(_flat(config)), dict(_flat(other))
    for key in sorted({*ours, *theirs} - {*FREE}):
        if ours.get(key) != theirs.get(key):
            raise DataError(
                f"{path}: {key} is {ours.get(key)}, in {other_path} it is {theirs.get(key)}: the folds of one k-fold "
                "run are made alike; use the same flags, or another --run_dir"
            )


def _flat(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping) and key not in FREE:
        for name, value in config.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, config
