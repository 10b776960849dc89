"""HW1: predict the share of positive COVID-19 tests from surveys of the last days (course files of 2021 to 2023)."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.feature_selection import f_regression, mutual_info_regression
from sklearn.model_selection import GroupKFold, KFold
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Facts, Fold, HomeworkData
from datamodules.covid_table import TARGET, CovidTable, day_keys, read_table, window_groups
from datamodules.download import RemoteFile, fetch, google_drive
from datamodules.errors import DataError
from datamodules.sample import write_covid
from datamodules.samplers import MemberBatchSampler, ResumableLoader

Split = Literal["random", "interleaved", "state", "time", "grouped"]


class CovidRows(Dataset):
    """Gathers whole batches: rows (B,) or (M, B) -> dict of x (..., B, C), y (..., B) and the row numbers."""

    def __init__(self, x: Tensor, y: Tensor | None = None, fold: Tensor | None = None) -> None:
        self.parts = {k: v for k, v in {"x": x, "y": y, "fold": fold}.items() if v is not None}

    def __len__(self) -> int:
        return len(self.parts["x"])

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {"row": rows} | {name: part[rows] for name, part in self.parts.items()}


class CovidData(HomeworkData):
    """Course files of HW1, any edition, recognised by their header.

    The facts for the module: names of the features and, for each fold, which of them are used and their mean and
    standard deviation over that fold's training rows alone.

    Args:
        split: How rows are held out. random (as the course; optimistic, because rows are overlapping windows),
            interleaved (row i in fold i mod folds: the course's 2021 sample), state (whole states), time (a stretch of
            each state's rows, fold 0 the last one; rows that share a day with it are left out), grouped (rows linked
            by a shared day stay together).
        features: raw columns, or differences: states, the last day, and each day's change (same information, other
            basis).
        target: What the network learns: tested_positive itself, or its change since the day before.
        standardise: Bring features, or features and target, to mean 0 and deviation 1 (state marks stay 0 or 1).
        select: Which features are used: all, targets (states and earlier tested_positive), or the best `k` by F-test
            or mutual information on the training rows.
        k: Number of features for f_test and mutual_info.
        columns: Features by name, pattern (cli*) or number (0 = first column after id), instead of `select`.
        batch_size: Rows a network sees in one optimizer step, over all ranks together.
        members: Networks trained in one pass on each fold.
    """

    homework: ClassVar[str] = "hw1_covid"
    score_name: ClassVar[str] = "mse"
    kaggle: ClassVar[str] = "Kaggle competitions ml2021spring-hw1, ml2022spring-hw1, ml2023spring-hw1"
    course_lines: ClassVar[dict[str, dict[str, float]]] = {
        "2021": {"simple": 2.03004, "medium": 1.28359, "strong": 0.88017},
        "2022": {"simple": 2.28371, "medium": 1.49430, "strong": 1.05728, "boss": 0.86161},
        "2023": {"simple": 1.96993, "medium": 1.15678, "strong": 0.92619, "boss": 0.81456},
    }

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | None = None,
        split: Split = "random",
        folds: int = 5,
        fold: int | None = 0,
        seed: int = 0,
        features: Literal["raw", "differences"] = "raw",
        target: Literal["level", "change"] = "level",
        standardise: Literal["none", "features", "both"] = "both",
        select: Literal["all", "targets", "f_test", "mutual_info"] = "all",
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
        """Whether a course file of any edition lies here."""
        return any((folder / name).is_file() for part in ("train", "test") for name in _names(part))

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a generated set of the course's size in the layout of 2022."""
        return write_covid(folder, seed)

    @classmethod
    def fetch(cls, folder: Path, edition: str | None = None) -> list[Path]:
        """Download one edition, or all three, into folder/<edition>."""
        if edition is not None and edition not in PUBLISHED:
            raise DataError(f"no edition {edition!r} of {cls.homework} was published, there are {', '.join(PUBLISHED)}")
        return [
            path for year, files in PUBLISHED.items() if edition in (None, year) for path in fetch(files, folder / year)
        ]

    def prepare_data(self) -> None:
        """Nothing to prepare: the files are read as they are."""

    def setup(self, stage: str) -> None:
        """Read the files; with training rows (all stages but predict) also cut the folds and find the facts."""
        folder = self.locate()
        paths = {
            part: next((folder / n for n in _names(part) if (folder / n).is_file()), None) for part in ("train", "test")
        }
        if stage == "fit" and paths["train"] is None:
            raise DataError(f"{folder}: no {_names('train')[0]} here, and training needs it. {self._ways()}")
        if stage != "predict" and paths["train"] is not None:
            self.train = read_table(paths["train"])
            if self.train.target is None:
                raise DataError(f"{self.train.path}:1: the last day has no {TARGET!r} column, a training file needs it")
            self.facts = self._find_facts(self.train, folder.name)
        if stage in ("test", "predict"):
            if paths["test"] is not None:
                self.test = read_table(paths["test"])
            elif stage == "predict":
                raise DataError(f"{folder}: no {_names('test')[0]} here, and predict needs it. {self._ways()}")
        self._check_model()

    def _check_model(self) -> None:
        """A trained module must find its own features in these files."""
        expected: Facts | None = getattr(self.trainer and self.trainer.lightning_module, "facts", None)
        for table in (self.train, self.test):
            if expected is None or table is None:
                continue
            if table.columns == expected["columns"]:
                if self._matrix(table)[1] != expected["features"]:
                    raise DataError(f"data.features is {self.features!r}, but the model was trained on the other kind")
                continue
            lacks = [c for c in expected["columns"] if c not in table.columns]
            extra = [c for c in table.columns if c not in expected["columns"]]
            what = (
                f"lacks {_short(lacks)}, has {_short(extra)} too many"
                if lacks or extra
                else "has them in another order"
            )
            raise DataError(
                f"{table.path}:1: other columns than the model was trained on: it {what}. "
                "Use the files of the model's own edition, or train a model on this one"
            )

    # rows

    def _matrix(self, table: CovidTable) -> tuple[np.ndarray, list[str]]:
        """Features (N, C) in real units and their names."""
        if self.features == "raw":
            return table.values, table.columns
        one_hot, last = table.values[:, : len(table.states)], table.days - 1
        names = [
            table.columns[len(table.states) + k * len(table.survey) :][: len(table.survey)] for k in range(table.days)
        ]
        parts, out = [one_hot, table.day(last)[:, :-1], table.day(last - 1)[:, -1:]], list(table.states)
        out += [*names[last], names[last - 1][-1]]
        for k in range(last, 0, -1):
            change = table.day(k) - table.day(k - 1)
            width = len(names[k])  # one less on the last day: its target is what we look for
            parts.append(change[:, :width])
            out += [f"{a}-{b}" for a, b in zip(names[k], names[k - 1], strict=False)]
        return np.concatenate(parts, axis=1), out

    def split(self) -> list[Fold]:
        """All folds of the training rows, by the rule named in `split`."""
        assert self.train is not None
        n, k, rng = len(self.train.ids), self.n_folds, np.random.default_rng(self.seed)
        seed = int(rng.integers(2**31))
        rows = np.arange(n)
        if self.split_by == "random":
            if n < k:
                raise DataError(f"{self.train.path}: {n} rows cannot be cut into data.folds = {k} parts")
            return [Fold(*fold) for fold in KFold(k, shuffle=True, random_state=seed).split(rows)]
        if self.split_by == "interleaved":
            return [Fold(rows[rows % k != i], rows[rows % k == i]) for i in range(k)]
        if self.split_by == "time":
            return self._time_folds(self.train)
        groups = self.train.state() if self.split_by == "state" else window_groups(self.train)
        if (found := len(np.unique(groups))) < k:
            raise DataError(
                f"{self.train.path}: {found} groups cannot be cut into data.folds = {k} parts by {self.split_by}"
            )
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
        return folds

    def _find_facts(self, table: CovidTable, edition: str) -> Facts:
        """What the module needs: each member's features and their statistics over its own fold's training rows."""
        assert table.target is not None
        x, names = self._matrix(table)
        anchor = names.index(f"{TARGET}.{table.days - 2}" if table.days > 2 else TARGET)
        change = table.target - x[:, anchor] if self.target == "change" else table.target
        is_state = np.array([name in table.states for name in names])
        rng = np.random.default_rng((self.seed, 1))
        rows: list[dict[str, np.ndarray]] = []
        numbers = range(self.n_folds) if self.fold is None else [self.fold]
        for number, fold in zip(numbers, self.chosen_folds(), strict=True):
            mean, scale = x[fold.train].mean(0), x[fold.train].std(0)
            constant = scale < 1e-12
            plain = is_state | (self.standardise == "none")
            mean, scale = np.where(plain, 0.0, mean), np.where(plain, 1.0, scale)
            scale[constant] = np.inf  # what never varies says nothing, in a held-out state too: it becomes 0
            chosen = self._select(x[fold.train], change[fold.train], names, is_state)
            for _ in range(self.members):
                size = max(1, round(self.feature_share * len(chosen)))
                used = np.sort(rng.permutation(chosen)[:size]) if size < len(chosen) else chosen
                out = {"used": used, "mean": mean[used], "scale": scale[used], "is_state": is_state[used]}
                t = change[fold.train] if self.standardise == "both" else np.array([-1.0, 1.0])
                rows.append(out | {"fold": np.array(number), "target_mean": t.mean(), "target_scale": t.std()})
        stacked = {key: np.stack([r[key] for r in rows]) for key in rows[0]}
        tensors = {
            k: torch.from_numpy(v.astype(np.float32) if v.dtype == np.float64 else v) for k, v in stacked.items()
        }
        return {
            "edition": edition,
            "columns": table.columns,
            "features": names,
            "anchor": anchor if self.target == "change" else None,
        } | tensors

    def _select(self, x: np.ndarray, y: np.ndarray, names: list[str], is_state: np.ndarray) -> np.ndarray:
        """Numbers of the features in use, chosen on training rows alone."""
        if self.columns is not None:
            return _named(self.columns, names)
        if self.select == "targets":
            return np.array([i for i, name in enumerate(names) if is_state[i] or name.startswith(TARGET)])
        if self.select == "all":
            return np.arange(len(names))
        if self.k > len(names):
            raise DataError(f"data.k is {self.k}, but there are only {len(names)} features")
        varied = np.flatnonzero(x.std(0) > 1e-12)
        if self.select == "f_test":
            score = f_regression(x[:, varied], y)[0]
        else:
            score = mutual_info_regression(x[:, varied], y, random_state=self.seed)
        return np.sort(varied[np.argsort(-score, kind="stable")[: self.k]])

    # loaders

    def _rows(self, table: CovidTable, fold: Tensor | None = None) -> CovidRows:
        x = torch.from_numpy(self._matrix(table)[0].astype(np.float32))
        y = None if table.target is None else torch.from_numpy(table.target.astype(np.float32))
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return CovidRows(*(part if part is None else part.to(device) for part in (x, y, fold)))

    def train_dataloader(self) -> DataLoader:
        """Batches x (M, B, C), y (M, B) of M members."""
        assert self.train is not None
        world = self.trainer.world_size if self.trainer else 1
        if world > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise DataError(
                "set trainer.use_distributed_sampler to false: these loaders share rows out over ranks themselves"
            )
        rows = [fold.train for fold in self.chosen_folds() for _ in range(self.members)]
        sampler = MemberBatchSampler(
            rows, self.batch_size, self.seed, self.trainer.global_rank if self.trainer else 0, world
        )
        return ResumableLoader(self._rows(self.train), sampler)

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
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(rows, sampler=[which[rank::world]], batch_size=None)  # type: ignore[arg-type]

    def labels(self, rows: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Ids and targets (N,) in percent of training rows."""
        assert self.train is not None and self.train.target is not None
        return [self.train.ids[i] for i in rows], self.train.target[rows]

    @staticmethod
    def score(true: np.ndarray, predicted: np.ndarray) -> float:
        """Mean squared error in percent squared."""
        return float(np.mean((true - predicted) ** 2))

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        if self.test is not None and self.test.target is not None:
            return f"{self.test.path.name}, {len(self.test.ids)} rows with their target"
        return "held-out rows of the training file (they also chose the best checkpoint: slightly optimistic)"

    def describe_lines(self) -> list[str]:
        """The course's public leaderboard lines of the edition whose columns these files have."""
        table = self.test or self.train
        shape = (len(table.states), table.days) if table else None
        if shape not in COURSE_LINES:
            return []
        year, metric, lines = COURSE_LINES[shape]
        text = "  ".join(f"{level} {value}" for level, value in lines.items())
        folder = table.path.parent.name if table else ""
        note = "generated data: not comparable" if folder == "sample" else "on the course's own hidden test rows"
        return [f"{year}, {metric}: {text} ({note})"]

    def submission(self, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the course's submission file for predictions (N,) in percent."""
        assert self.test is not None
        return ["id", TARGET], [[i, float(p)] for i, p in zip(self.test.ids, predictions, strict=True)]


# what tells the editions apart (states, days), and their public leaderboard lines
COURSE_LINES: dict[tuple[int, int] | None, tuple[str, str, dict[str, float]]] = {
    (40, 3): ("2021", "RMSE", {"simple": 2.03004, "medium": 1.28359, "strong": 0.88017}),
    (37, 5): ("2022", "MSE", {"simple": 2.28371, "medium": 1.49430, "strong": 1.05728, "boss": 0.86161}),
    (34, 3): ("2023", "MSE", {"simple": 1.96993, "medium": 1.15678, "strong": 0.92619, "boss": 0.81456}),
}


def _names(part: str) -> list[str]:
    """File names of 2021 and 2022, and of 2023."""
    return [f"covid.{part}.csv", f"covid_{part}.csv"]


def _short(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"


def _named(wanted: list[int | str], names: list[str]) -> np.ndarray:
    """Numbers of features given by number, name or pattern."""
    found: set[int] = set()
    for item in wanted:
        if isinstance(item, int):
            hits = [item] if 0 <= item < len(names) else []
        else:
            hits = [i for i, name in enumerate(names) if fnmatchcase(name, item)]
        if not hits:
            raise DataError(f"data.columns: no feature {item!r}; there are {len(names)}: {', '.join(names)}")
        found.update(hits)
    return np.array(sorted(found))


def _published(year: str, train: tuple[str, str], test: tuple[str, str], *extra: tuple[str, str]) -> list[RemoteFile]:
    """The two files of an edition: (Google Drive id, SHA-256) of each, and further addresses of each."""
    names = [n for n in (_names("train"), _names("test"))]
    pick = 1 if year == "2023" else 0
    return [
        RemoteFile(names[i][pick], sha, (google_drive(drive), *(pair[i] for pair in extra)))
        for i, (drive, sha) in enumerate((train, test))
    ]


PUBLISHED = {
    "2021": _published(
        "2021",
        ("19CCyCgJrUxtvgZF53vnctJiOJ23T5mqF", "7b70cccab9712a6f6c780eddbdde2484a43c98e1b63b765d64692b8f2ed9225a"),
        ("1CE240jLm2npU-tdz81-oVKEF3T2yfT1O", "6b5ba63b3d025889ebe7ee222b23b39d1a0c45761cfb3babfaa20a5ec0dbc051"),
    ),
    "2022": _published(
        "2022",
        ("1kLSW_-cW2Huj7bh84YTdimGBOJaODiOS", "298378b3db6a233e6cba686533c55844072b7c84e5e2eecf830a9e86a8dce475"),
        ("1iiI5qROrAhZn-o4FPqsE97bMzDEFvIdg", "d7bc0afb67a741638d745efa53dd4f967ca65f1e774957e701ff7822af6a37c3"),
    ),
    "2023": _published(
        "2023",
        ("1BjXalPZxq9mybPKNjF3h5L3NcF7XKTS-", "c983dff31c12e67e751f37d98044b516e59d7d40d7c21f491066be2b8fb017fc"),
        ("1B55t74Jg2E5FCsKCsUEkPKIuqaY7UIi1", "330aeee0567ac59e756ef0dfb093e02f3a9af5b6291f4b955d283823b33b75c3"),
        (
            "https://www.dropbox.com/s/lmy1riadzoy0ahw/covid.train.csv?dl=1",
            "https://www.dropbox.com/s/zalbw42lu4nmhr2/covid.test.csv?dl=1",
        ),
    ),
}
