"""HW1: predict the share of positive COVID-19 tests from surveys of the last days (course files of 2021 to 2023)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, KFold
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import course
from datamodules.base import Facts, Fold, HomeworkData
from datamodules.errors import DataError
from datamodules.files.walk import Account
from datamodules.generated import write_covid
from datamodules.samplers import MemberBatchSampler, ResumableLoader
from datamodules.tables.covid import COURSE_NAMES, TARGET, CovidTable, day_keys, find_tables, read_table, window_groups
from datamodules.tables.features import (
    Choice,
    Kind,
    feature_matrix,
    named_features,
    scaler_statistics,
    select_features,
)

SplitRule = Literal["random", "interleaved", "state", "time", "grouped"]


class CovidRows(Dataset):
    """Gathers whole batches: rows (B,) or (M, B) -> dict of x (..., B, C), y (..., B) and the row numbers."""

    def __init__(self, x: Tensor, y: Tensor | None = None, fold: Tensor | None = None) -> None:
        self.parts = {k: v for k, v in {"x": x, "y": y, "fold": fold}.items() if v is not None}

    def __len__(self) -> int:
        return len(self.parts["x"])

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        index = rows.to(self.parts["x"].device, non_blocking=True)
        return {"row": rows} | {name: part[index] for name, part in self.parts.items()}


class CovidData(HomeworkData):
    """Course files of HW1, any edition, recognised by their header.

    The facts for the module: names of the features and, for each fold, which of them are used and their mean and
    standard deviation over that fold's training rows alone.

    Args:
        split: How rows are held out. random (as the course; optimistic, because rows are overlapping windows),
            interleaved (row i in fold i mod folds: the course's 2021 sample), state (whole states), time (a stretch of
            each state's rows, fold 0 the last one; rows that share a day with it are left out), grouped (rows linked
            by a shared day stay together: whole states where no window is missing).
        features: raw columns, or differences: states, the last day, and each day's change (same information, other
            basis).
        target: What the network learns: tested_positive itself, or its change since the day before.
        standardise: Bring features, or features and target, to mean 0 and deviation 1 (state marks stay 0 or 1).
        select: Which features are used: all, targets (states and earlier tested_positive), or the best `k` by F-test
            or mutual information on the training rows.
        k: Number of features for f_test and mutual_info.
        columns: Features by name, pattern (cli*) or number (0 = first column after id), instead of `select`.
        feature_share: Share of the chosen features that each network gets, drawn for it alone.
        batch_size: Rows a network sees in one optimizer step, over all ranks together.
        members: Networks trained in one pass on each fold.
    """

    homework: ClassVar[str] = "hw1_covid"
    score_name: ClassVar[str] = "mse"
    kaggle: ClassVar[str] = "Kaggle competitions ml2021spring-hw1, ml2022spring-hw1, ml2023spring-hw1"

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | int | None = None,
        split: SplitRule = "random",
        folds: int = 5,
        fold: int | None = 0,
        seed: int = 0,
        features: Kind = "raw",
        target: Literal["level", "change"] = "level",
        standardise: Literal["none", "features", "both"] = "both",
        select: Choice = "all",
        k: int = 16,
        columns: list[int | str] | None = None,
        feature_share: float = 1.0,
        batch_size: int = 256,
        members: int = 1,
    ) -> None:
        super().__init__(root, dir, edition, folds, fold, seed)
        if not 0 < feature_share <= 1:
            raise DataError(f"data.feature_share is {feature_share}: expected a share above 0, at most 1")
        for name, value in {"batch_size": batch_size, "members": members, "k": k}.items():
            if value < 1:
                raise DataError(f"data.{name} is {value}: expected at least 1")
        self.split_by, self.features, self.target, self.standardise = split, features, target, standardise
        self.select, self.k, self.columns, self.feature_share = select, k, columns, feature_share
        self.batch_size, self.members = batch_size, members
        self.train: CovidTable | None = None
        self.test: CovidTable | None = None

    # files

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Whether a course file of any edition lies here, by its name or its header."""
        found = find_tables(folder)
        return bool(found.train or found.test)

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a generated set of the course's size in the layout of 2022."""
        return write_covid(folder, seed)

    @classmethod
    def fetch(cls, folder: Path, edition: str | None = None) -> list[Path]:
        """Download one edition, or all three, into folder/<edition>."""
        return course.fetch(cls.homework, folder, edition)

    def read_files(self, stage: str) -> None:
        """Read the files; with training rows (all stages but predict) also cut the folds and find the facts."""
        folder = self.locate()
        found = find_tables(folder)
        train = None if stage == "predict" else _only("train", found.train)
        test = _only("test", found.test) if stage in ("test", "predict") else None
        if stage in ("fit", "validate") and train is None:
            raise DataError(f"{folder}: no {COURSE_NAMES['train'][0]} here, and training needs it. {self._ways()}")
        if stage == "predict" and test is None:
            raise DataError(f"{folder}: no {COURSE_NAMES['test'][0]} here, and predict needs it. {self._ways()}")
        if stage in ("test", "predict") and test is not None:
            self.test = read_table(test)
        if stage != "predict" and train is not None:
            self.train = read_table(train)
            if self.train.target is None:
                raise DataError(f"{train}:1: the last day has no {TARGET!r} column, a training file needs it")
        self._check_model()
        if stage != "predict" and self.train is not None:
            self.facts = self._find_facts(self.train, folder.name)
            if stage != "test" or self.test is None or self.test.target is None:
                self._check_split(self.train)

    def _check_split(self, table: CovidTable) -> None:
        """A trained module may only be scored on, or trained further with, the rows that its run held out."""
        expected = self.model_facts()
        assert self.facts is not None
        if expected is not None and not torch.equal(expected["held_out"], self.facts["held_out"]):
            raise DataError(
                f"{table.path}: other rows are held out here than in the run, which trained on some of them; keep the "
                "run's training file, data.split, data.seed, data.folds and data.fold"
            )

    def _check_model(self) -> None:
        """A trained module must find its own features in these files."""
        expected = self.model_facts()
        for table in (self.train, self.test):
            if expected is None or table is None:
                continue
            if table.columns != expected["columns"]:
                lacks = [c for c in expected["columns"] if c not in table.columns]
                extra = [c for c in table.columns if c not in expected["columns"]]
                what = f"lacks {_short(lacks)}, has {_short(extra)} too many" if lacks or extra else "has another order"
                raise DataError(
                    f"{table.path}:1: other columns than the model was trained on: it {what}. "
                    "Use the files of the model's own edition, or train a model on this one"
                )
            if feature_matrix(table, self.features)[1] != expected["features"]:
                raise DataError(
                    f"data.features is {self.features!r}, but the model was trained on the other kind; keep it"
                )

    def summary(self) -> list[str]:
        """Rows, columns, and other CSV files in the folder."""
        assert self.train is not None
        table, (train, val) = self.train, self.chosen_folds()[0]
        folder = table.path.parent
        found = find_tables(folder)
        files = Account("CSV files", len(found.train) + len(found.test))
        files.leave("no course files, or not called so", [path.name for path in found.others])
        return [
            f"{folder}: {files}",
            f"{table.path.name}: {Account('rows', len(table.ids))}; {len(table.states)} states, {table.days} days of "
            f"{len(table.survey)} columns; {len(train)} rows to train on, {len(val)} held out",
        ]

    # rows

    def split(self) -> list[Fold]:
        """All folds of the training rows, by the rule named in `split`."""
        assert self.train is not None
        k, rows = self.n_folds, np.arange(len(self.train.ids))
        groups = rows  # each on its own
        if self.split_by == "state":
            groups = self.train.state()
        if self.split_by == "grouped":
            groups = window_groups(self.train)
        if (found := len(np.unique(groups))) < k:
            what = "rows" if groups is rows else "groups of rows"
            raise DataError(
                f"{self.train.path}: {found} {what} cannot be cut into data.folds = {k} parts by {self.split_by}"
            )
        if self.split_by == "interleaved":
            return [Fold(rows[rows % k != i], rows[rows % k == i]) for i in range(k)]
        if self.split_by == "time":
            return self._time_folds(self.train)
        seed = int(np.random.default_rng(self.seed).integers(2**31))
        if self.split_by == "random":
            return [Fold(*fold) for fold in KFold(k, shuffle=True, random_state=seed).split(rows)]
        return [Fold(*fold) for fold in GroupKFold(k, shuffle=True, random_state=seed).split(rows, groups=groups)]

    def _time_folds(self, table: CovidTable) -> list[Fold]:
        """Fold i is the i-th last stretch of each state's rows; training rows that share a day with it are dropped."""
        state, order = table.state(), np.argsort(table.ids, kind="stable")
        part = np.empty(len(state), dtype=int)
        for s in np.unique(state):
            rows = order[state[order] == s]
            part[rows] = self.n_folds - 1 - np.arange(len(rows)) * self.n_folds // len(rows)
        keys = day_keys(table)
        folds = []
        for i in range(self.n_folds):
            held = {key for key, row in keys if part[row] == i}
            shared = np.zeros(len(state), dtype=bool)
            shared[[row for key, row in keys if key in held]] = True
            folds.append(Fold(np.flatnonzero(~shared), np.flatnonzero(part == i)))
            for name, side in folds[-1]._asdict().items():
                if not len(side):
                    raise DataError(
                        f"{table.path}: no {name} rows in fold {i}: {len(state)} rows of {len(np.unique(state))} "
                        f"states are too few for data.folds = {self.n_folds} by time"
                    )
        return folds

    def _find_facts(self, table: CovidTable, edition: str) -> Facts:
        """What the module needs: each member's features and their statistics over its own fold's training rows."""
        assert table.target is not None
        x, names = feature_matrix(table, self.features)
        anchor = names.index(table.day_columns(table.days - 2)[-1])
        y = table.target - x[:, anchor] if self.target == "change" else table.target
        is_state = np.isin(names, table.states)
        rng = np.random.default_rng((self.seed, 1))
        members: list[dict[str, Any]] = []
        numbers = range(self.n_folds) if self.fold is None else [self.fold]
        for number, fold in zip(numbers, self.chosen_folds(), strict=True):
            rows, wanted = x[fold.train], y[fold.train]
            mean, scale = scaler_statistics(rows, is_state | (self.standardise == "none"))
            target = (wanted.mean(), wanted.std() or 1.0) if self.standardise == "both" else (0.0, 1.0)
            if self.columns is not None:
                chosen = named_features(self.columns, names)
            else:
                chosen = select_features(rows, wanted, names, is_state, self.select, self.k, self.seed)
            size = max(1, round(self.feature_share * len(chosen)))
            for _ in range(self.members):
                used = np.sort(rng.permutation(chosen)[:size])
                out = {"used": used, "mean": mean[used], "scale": scale[used], "is_state": is_state[used]}
                members.append(out | {"fold": number, "target_mean": target[0], "target_scale": target[1]})
        stacked = {key: torch.from_numpy(np.stack([m[key] for m in members])) for key in members[0]}
        return {
            "edition": edition,
            "columns": table.columns,
            "features": names,
            "anchor": anchor if self.target == "change" else None,
            "held_out": torch.tensor([table.ids[i] for fold in self.chosen_folds() for i in fold.val]),
            "train_rows": [torch.from_numpy(fold.train) for fold in self.chosen_folds()],
            "last_batch": (max(len(fold.train) for fold in self.chosen_folds()) - 1) % self.batch_size + 1,
        } | {key: value.float() if value.is_floating_point() else value for key, value in stacked.items()}

    # loaders

    def _rows(self, table: CovidTable, fold: Tensor | None = None) -> CovidRows:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        x = torch.from_numpy(feature_matrix(table, self.features)[0]).float().to(device)
        y = None if table.target is None else torch.from_numpy(table.target).float().to(device)
        return CovidRows(x, y, None if fold is None else fold.to(device))

    def train_dataloader(self) -> DataLoader:
        """Batches x (M, B, C), y (M, B) of M members."""
        assert self.train is not None
        rank, world = self.rank()
        rows = [fold.train for fold in self.chosen_folds() for _ in range(self.members)]
        return ResumableLoader(
            self._rows(self.train), MemberBatchSampler(rows, self.batch_size, self.seed, rank, world)
        )

    def val_dataloader(self) -> DataLoader:
        """One batch x (B, C), y (B,), fold (B,): the held-out rows, each with the number of its fold."""
        assert self.train is not None
        fold = torch.full((len(self.train.ids),), -1)
        for i, part in enumerate(self.split()):
            fold[torch.from_numpy(part.val)] = i
        held = torch.cat([torch.from_numpy(f.val) for f in self.chosen_folds()])
        return self._whole(self._rows(self.train, fold), held)

    def test_dataloader(self) -> DataLoader:
        """The course's test file where it carries the target, else the held-out rows of the training file."""
        if self.test is not None and self.test.target is not None:
            return self._whole(self._rows(self.test), torch.arange(len(self.test.ids)))
        if self.train is None:
            raise DataError(
                f"{self.locate()}: nothing to score: no test file with a {TARGET!r} column and no training file"
            )
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """All rows of the test file in file order."""
        assert self.test is not None
        return self._whole(self._rows(self.test), torch.arange(len(self.test.ids)))

    def _whole(self, rows: CovidRows, which: Tensor) -> DataLoader:
        """One batch a rank: every world-th row, so that each row is seen once."""
        rank, world = self.rank()
        return DataLoader(rows, sampler=[which[rank::world]], batch_size=None)

    def labels(self, rows: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Ids and targets (N,) in percent of training rows."""
        assert self.train is not None
        assert self.train.target is not None
        return [self.train.ids[i] for i in rows], self.train.target[rows]

    @staticmethod
    def score(true: np.ndarray, predicted: np.ndarray) -> float:
        """Mean squared error in percent squared."""
        return float(np.mean((true - predicted) ** 2))

    def chance_loss(self) -> float:
        """Variance of the target over the training rows, in percent squared: the error of always saying its mean."""
        return float(np.mean([self.labels(fold.train)[1].var() for fold in self.chosen_folds()]))

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        if self.test is not None and self.test.target is not None:
            return f"{self.test.path.name}, {len(self.test.ids)} rows with their target"
        return "held-out rows of the training file (they also chose the best checkpoint: slightly optimistic)"

    def baselines(self) -> list[course.Baselines]:
        """The course's baselines of the edition whose columns these files have."""
        if (table := self.test or self.train) is None:
            return []
        if table.path.parent.name == "sample":  # generated
            return []
        return course.baselines_of(self.homework, (len(table.states), table.days))

    def submission(self, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the course's submission file for predictions (N,) in percent."""
        assert self.test is not None
        return ["id", TARGET], [[i, float(p)] for i, p in zip(self.test.ids, predictions, strict=True)]


def _only(part: str, files: list[Path]) -> Path | None:
    """The one file of a part; None where there is none."""
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise DataError(
            f"{files[0].parent}: {len(files)} files could be the {part} file: {names}; move the others away, or "
            f"call the right one {COURSE_NAMES[part][0]}"
        )
    return files[0] if files else None


def _short(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"
