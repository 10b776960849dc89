"""What the homeworks' LightningDataModules share: where the files lie, folds, and the facts a module must know."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from matplotlib.figure import Figure

from datamodules.course import Baselines
from datamodules.errors import DataError
from datamodules.files import archives
from datamodules.files.places import default_root

Facts = dict[str, Any]  # what the data knows and the module needs: numbers, strings, lists, tensors (weights_only-safe)


class Fold(NamedTuple):
    """Row numbers of one split; rows that leak from one side to the other are in neither."""

    train: np.ndarray
    val: np.ndarray


@runtime_checkable
class TakesFacts(Protocol):
    """A module that is built from the facts of the data, such as every HomeworkModule."""

    facts: Facts | None

    def expect(self, facts: Facts) -> None:
        """Take the facts, and build the network from them."""


def cores() -> int:
    """Cores that this process may use, which a container or scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class HomeworkData(LightningDataModule, ABC):
    """Finds a homework's folder, splits its rows into folds, and holds the facts for the module.

    A subclass may have `submission(predictions) -> (header, rows)`, the table that predict writes (see Submits in
    callbacks/submission.py); without it the table holds row numbers and predictions. Text needs none: batches of the
    module's `predict_step` carry lines of it.

    Args:
        root: Folder with one sub-folder a homework (default: $LEEML_DATA, else data/ in the project).
        dir: The very folder with the course's files; wins over root and edition.
        edition: Sub-folder of root/<homework>, such as 2022; needed only where several lie there.
        folds: Number of parts the labelled rows are cut into.
        fold: The part held out for validation; null trains one member group a fold in one pass (`leeml kfold`).
        seed: Seed of the split and of the order of the rows.
    """

    homework: ClassVar[str]
    kaggle: ClassVar[str] = "see their documentation"
    """Where the course publishes the data, for messages."""
    score_name: ClassVar[str]
    """What `score` measures."""
    in_one_folder: ClassVar[bool] = False
    """Whether what the course packed in several archives belongs together."""
    no_kfold: ClassVar[str | None] = None
    """Why `leeml kfold` has no sense here, if it has none: no folds, or predictions without a mean."""

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | int | None = None,
        folds: int = 5,
        fold: int | None = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if folds < 2:
            raise DataError(f"data.folds is {folds}: at least 2 are needed to hold rows out")
        if fold is not None and not 0 <= fold < folds:
            raise DataError(f"data.fold is {fold}: expected 0 to {folds - 1}, as data.folds is {folds}")
        if seed < 0:
            raise DataError(f"data.seed is {seed}: expected 0 or more")
        self.root = Path(root).expanduser() if root else default_root()
        self.dir = Path(dir).expanduser() if dir else None
        self.edition = None if edition is None else str(edition)
        self.n_folds = folds
        self.fold = fold
        self.seed = seed
        self.facts: Facts | None = None
        self.settled: dict[str, Any] = {}
        """Arguments that were null and are derived from the files, for the run's config.yaml; set by `read_files`."""
        self._expected: Facts | None = None

    def setup(self, stage: str) -> None:
        """Read the files, and hand their facts to a module that has none yet."""
        self.read_files(stage)
        if stage == "fit":
            for line in self.summary():
                rank_zero_info(line)
        module = self.trainer.lightning_module if self.trainer else None
        if isinstance(module, TakesFacts) and module.facts is None and self.facts is not None:
            module.expect(self.facts)

    @abstractmethod
    def read_files(self, stage: str) -> None:
        """Open what the stage (fit, validate, test, predict) needs, cut the folds and set `facts`.

        Where there are `model_facts`, the files are held against them.
        """

    def expect(self, facts: Facts) -> None:
        """Take the facts of a trained module, which the files must fit. Only needed without a Trainer."""
        self._expected = facts

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Whether course files of this homework lie in this very folder; `locate` looks for them."""
        return False

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a small generated set in the course's layout into `folder`; returns the files."""
        raise DataError("there is no generated set of these data")

    @classmethod
    def fetch(cls, folder: Path, edition: str | None = None) -> list[Path]:
        """Download what the course published into folder/<edition>; returns the files."""
        raise DataError(
            f"no checksum of {cls.homework}'s published files is known, so they are not fetched unseen; the addresses "
            f"are in docs/{cls.homework}.md, their files belong into {folder}"
        )

    @classmethod
    def prepare(cls, folder: Path, source: Path | None = None) -> list[Path]:
        """Turn raw files (of `source`, else of the folder) into the course's layout below `folder`; returns the files.

        Archives are unpacked, which is all that most homeworks need. Further parameters of a homework with a default,
        Literals, whole numbers and paths, become flags of `leeml data prepare`.
        """
        place = source or folder
        found = [place] if place.is_file() else archives.archives_in(place)
        if not found:
            what = "no zip or tar here" if place.exists() else "no such file or folder"
            raise DataError(
                f"{place}: {what}; name one with --source FILE (unpacked files are read as they are: --data.dir)"
            )
        places = {archive: folder / ("unpacked" if cls.in_one_folder else archives.stem(archive)) for archive in found}
        for archive, target in places.items():
            archives.unpack(archive, target)
        return list(dict.fromkeys(places.values()))

    @classmethod
    def describe(cls, root: Path) -> list[str]:
        """What the data under `root`, or in this very folder, is to a network, for `leeml data describe`."""
        data = cls(dir=str(root)) if cls.has_files(root) else cls(root=str(root))
        data.setup("validate")
        return [*data.summary(), *data.details()]

    def summary(self) -> list[str]:
        """What was found, read and left out, and what is trained on, line by line; called after `read_files`."""
        return []

    def details(self) -> list[str]:
        """More for `leeml data describe` that takes time to find."""
        return []

    def split(self) -> list[Fold]:
        """All folds of the labelled rows; called after the files are read. Without folds there is no `leeml kfold`."""
        raise DataError(f"{type(self).__name__} cuts its rows into no folds")

    def labels(self, rows: np.ndarray) -> tuple[list[Any], np.ndarray]:
        """Names and true values of labelled rows, for `leeml kfold` and `leeml ensemble`."""
        raise DataError(f"{type(self).__name__} has no labels of rows")

    @staticmethod
    def score(true: np.ndarray, predicted: np.ndarray) -> float:
        """The course's measure over a set of rows, of what `decide` returns; for the same two."""
        raise DataError("these data have no score of rows")

    def locate(self) -> Path:
        """The folder with the course's files.

        Raises:
            DataError: nothing there, several editions to choose from, or not the edition asked for.
        """
        if self.dir is not None:
            if not self.has_files(self.dir):
                self._say_packed(self.dir)
                raise DataError(f"{self.dir}: no {self.homework} files in this folder (--data.dir). {self._ways()}")
            return self.dir
        base = self.root / self.homework
        found = {p.name: p for p in sorted(base.iterdir()) if self.has_files(p)} if base.is_dir() else {}
        if self.edition in found:
            return found[self.edition]
        if self.has_files(base):  # they lie here without a folder by edition
            return base
        if not found:
            self._say_packed(base)
        if self.edition is not None:
            there = f"it holds {', '.join(found)}" if found else "it holds no edition"
            raise DataError(
                f"{base / self.edition}: no files of edition {self.edition!r} here ({there}). {self._ways()}"
            )
        if len(found) > 1:
            found.pop("sample", None)  # generated data steps back where there is real data
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder (--data.root or LEEML_DATA). {self._ways()}")
        if not found and self.has_files(self.root):
            raise DataError(
                f"{self.root}: the {self.homework} files lie here themselves; say --data.dir {self.root} instead of "
                f"--data.root, or move them into {base}"
            )
        if not found:
            raise DataError(f"{base}: no {self.homework} files found. {self._ways()}")
        if len(found) > 1:
            names = ", ".join(found)
            raise DataError(
                f"{base}: several editions here: {names}. Choose one, e.g. --data.edition {next(iter(found))}"
            )
        return next(iter(found.values()))

    def draw(self) -> dict[str, Figure]:
        """Pictures of the data, to be drawn at the end of a fit: name -> figure."""
        return {}

    def chance_loss(self) -> float | None:
        """Training loss of the best answer that ignores the input; None where it is not known."""
        return None

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        return "the test set"

    def baselines(self) -> list[Baselines]:
        """The course's baselines of the editions that the files at hand may be of; none for other or generated data."""
        return []

    def _say_packed(self, folder: Path) -> None:
        if packed := archives.archives_in(folder):
            raise DataError(
                f"{packed[0]}: unpack it first: leeml data prepare {self.homework} --source {packed[0]} (into data/ of "
                "the project, or into the folder named after it)"
            )

    def _ways(self) -> str:
        ways = [f"put the course's files there by hand ({self.kaggle})"]
        if self._has_own("fetch"):
            ways.append(f"`leeml data fetch {self.homework}`")
        ways.append(f"`leeml data prepare {self.homework} --source FILE_OR_FOLDER` for an archive or raw files")
        ways.append(f"`leeml data sample {self.homework}` for a small generated set")
        elsewhere = "Data elsewhere: --data.dir FOLDER_WITH_THE_FILES, --data.root DIR or LEEML_DATA"
        return f"Ways to get them: {'; '.join(ways)}. {elsewhere}"

    def _has_own(self, method: str) -> bool:
        return getattr(type(self), method).__func__ is not getattr(HomeworkData, method).__func__

    def decide(self, predictions: np.ndarray) -> np.ndarray:
        """What the course asks for, from the module's predictions or a mean of several (classes from probabilities)."""
        return predictions

    def rank(self) -> tuple[int, int]:
        """This process and the number of them.

        Raises:
            DataError: Lightning would share the rows out a second time.
        """
        if self.trainer is None:
            return 0, 1
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise DataError(
                "set trainer.use_distributed_sampler to false: these loaders share rows out over ranks themselves"
            )
        return self.trainer.global_rank, self.trainer.world_size

    @property
    def on_gpu(self) -> bool:
        """Whether the trainer at hand computes on an NVIDIA GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def loading(self, workers: int | None) -> dict[str, Any]:
        """How a DataLoader makes batches on the CPU: in how many processes, and whether in pinned memory, for a GPU.

        Args:
            workers: Processes; None: none where the CPU trains too, else the cores that this process may use, shared
                out over the GPUs of this machine, less one for the training process, and 8 at most.
        """
        if workers is None:
            ranks = getattr(self.trainer, "num_devices", 1)
            workers = max(0, min(8, cores() // ranks - 1)) if self.on_gpu else 0
        more = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
        return {"num_workers": workers, "pin_memory": self.on_gpu, **more}

    def model_facts(self) -> Facts | None:
        """The facts of a trained module, which the files at hand must fit."""
        module = self.trainer.lightning_module if self.trainer else None
        return (module.facts if isinstance(module, TakesFacts) else None) or self._expected

    def held_out(self, names: Iterable[str]) -> str:
        """A digest of the names of what is held out, to be kept in the facts.

        Raises:
            DataError: the model at hand was trained with something else held out.
        """
        found = hashlib.sha256("\n".join(names).encode()).hexdigest()
        expected = self.model_facts()
        if expected is not None and expected["held_out"] != found:
            raise DataError(
                f"{self.locate()}: other rows are held out here than in the run, which trained on some of them; keep "
                "the run's training files, data.folds, data.fold and data.seed (and data.split where there is one)"
            )
        return found

    def chosen_folds(self) -> list[Fold]:
        """The folds this run trains on: the one named by `fold`, or all of them for a one-pass k-fold run."""
        folds = self.split()
        return folds if self.fold is None else [folds[self.fold]]


class ClassifierData(HomeworkData):
    """A homework whose module predicts class probabilities, judged by accuracy."""

    score_name: ClassVar[str] = "accuracy"

    def chance_loss(self) -> float:
        """Entropy in nats of the training rows' classes: the cross-entropy of guessing by how often each occurs."""
        _, shares = np.unique(self.labels(self.chosen_folds()[0].train)[1], return_counts=True)
        shares = shares / shares.sum()
        return float(-(shares * np.log(shares)).sum())

    def decide(self, predictions: np.ndarray) -> np.ndarray:
        """The likeliest class (N,) for probabilities (N, C)."""
        return predictions.argmax(1)

    @staticmethod
    def score(true: np.ndarray, predicted: np.ndarray) -> float:
        """Share of classes that are right."""
        return float(np.mean(true == predicted))
