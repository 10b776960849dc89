"""HW3: photos of food, by the course's folders of any year or a user's own (one folder a class)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from datamodules import course
from datamodules.base import ClassifierData, Facts, Fold
from datamodules.errors import DataError
from datamodules.generated import write_food
from datamodules.images.decoded import decode
from datamodules.images.folder import ImageFolder, Images, has_images, images_home, read_folder
from datamodules.images.rows import JudgedRows, Pictures, TrainRows, varied
from datamodules.samplers import EpochBatchSampler, ResumableLoader

STATISTICS_FROM = 2000  # images behind mean and deviation of the channels: enough for three digits


class FoodData(ClassifierData):
    """Course files of HW3, any edition, or any folder with a folder per class, recognised by what is there.

    Images are decoded once into a memory map (datamodules/images/decoded.py) and augmented one by one in a batch.
    The facts for the module: names and keys of the classes, the training images' mean and deviation by channel, and a
    digest of which images are held out.

    Args:
        folds: Cut training and validation images together into so many parts, stratified and shuffled (as
            `leeml kfold` does); null keeps the course's own validation folder, or cuts 5 parts where there is none.
        image_size: Side in pixels that images are squashed to, and judged at.
        augment: Transforms of torchvision.transforms.v2, by class_path, for training images.
        tta: Test-time augmentation: so many augmented views of each image beside the plain one, in test and predict.
        unlabelled: Unlabelled images for each labelled one in a training batch (semi-supervised training).
        normalise: Bring the channels to mean 0 and deviation 1 of the training images (else to 0 ... 1).
        batch_size: Labelled images of one optimizer step, over all ranks together.
        workers: Processes that make the batches beside the training; 0 is the training process itself; null: none on a
            CPU, and beside a GPU as many as there are cores (see HomeworkData.loading).
        bad_images: What to do about files that cannot be read: skip them with a warning, or refuse the data.
    """

    homework: ClassVar[str] = "hw3_food"
    kaggle: ClassVar[str] = "Kaggle competitions ml2021spring-hw3, ml2022spring-hw3b, ml2023spring-hw3"

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | int | None = None,
        folds: int | None = None,
        fold: int = 0,
        seed: int = 0,
        image_size: int = 128,
        augment: list[nn.Module] | None = None,
        tta: int = 0,
        unlabelled: int = 0,
        normalise: bool = True,
        batch_size: int = 64,
        workers: int | None = None,
        bad_images: Literal["skip", "refuse"] = "skip",
    ) -> None:
        super().__init__(root, dir, edition, folds or 5, fold, seed)
        for name, value in {"image_size": image_size, "batch_size": batch_size}.items():
            if value < 1:
                raise DataError(f"data.{name} is {value}: expected at least 1")
        for name, value in {"tta": tta, "unlabelled": unlabelled, "workers": workers or 0}.items():
            if value < 0:
                raise DataError(f"data.{name} is {value}: expected 0 or more")
        if tta and not augment:
            raise DataError(f"data.tta is {tta}, but data.augment is empty: its views would all be the same")
        self.own_split = folds is None
        self.image_size, self.tta, self.unlabelled = image_size, tta, unlabelled
        self.augment: nn.Module = v2.Compose(augment) if augment else nn.Identity()
        with torch.random.fork_rng(devices=[]):
            tried = self.augment(torch.zeros((3, image_size, image_size), dtype=torch.uint8))
        if tried.dtype != torch.uint8 or tried.ndim != 3:
            raise DataError(
                f"data.augment makes {tried.dtype} of shape {tuple(tried.shape)} of an image, not bytes (3, H, W); "
                "leave out ToDtype and Normalize, the module does both on the device"
            )
        self.normalise, self.batch_size, self.workers, self.bad_images = normalise, batch_size, workers, bad_images
        self.files: ImageFolder | None = None
        self.paths: list[Path] = []
        """Labelled images, training before validation; rows are numbers into it."""

    # files

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Whether images lie here in one of the course's ways."""
        return has_images(folder)

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a small generated set in the layout of 2022."""
        return write_food(folder, seed)

    @classmethod
    def fetch(cls, folder: Path, edition: str | None = None) -> list[Path]:
        """Download and unpack one edition, or all whose files have a known checksum, into folder/<edition>."""
        return course.fetch(cls.homework, folder, edition)

    def locate(self) -> Path:
        """The folder with the images."""
        folder = super().locate()
        base = self.dir or self.root / self.homework
        # one folder around the images is looked through, whatever its name: below root it may be another edition's
        inner = images_home(folder) or folder
        looked_through = self.dir is None and folder == base != inner
        if self.edition is not None and looked_through and inner.name != self.edition:
            raise DataError(f"{base / self.edition}: no files of edition {self.edition!r} here, only {inner.name}")
        return folder

    def read_files(self, stage: str) -> None:
        """Find the images, decode those the stage needs, cut the folds and find the facts."""
        folder = self.locate()
        expected = self.model_facts()
        self.files = files = read_folder(folder, expect=None if expected is None else list(expected["keys"]))
        if expected is not None and files.keys != expected["keys"]:
            raise DataError(
                f"{folder}: its classes are {_short(files.keys)}, but the model was trained on "
                f"{_short(expected['keys'])}; use the data the model belongs to"
            )
        if stage in ("fit", "validate") and files.train is None:
            raise DataError(f"{folder}: no training images here, and {stage} needs them. {self._ways()}")
        if stage == "predict":
            if files.test is None:
                raise DataError(f"{files.path / 'test'}: no test images here; put the images to be classified there")
            self._open_test(files.test)
            return
        if stage == "test" and files.test is not None and files.test.labels is not None:
            self._open_test(files.test)
            return
        if files.train is not None:
            self._open_labelled(files.train, files.val)
            self.facts = self._find_facts(files)
        if stage == "fit" and self.unlabelled:
            if files.unlabelled is None:
                raise DataError(
                    f"{folder}: data.unlabelled is {self.unlabelled}, but there are no unlabelled images here (a "
                    "folder training/unlabeled)"
                )
            self.unlabelled_pictures, good = self._decode(files.unlabelled.paths)
            self.unlabelled_rows = np.flatnonzero(good)
            if len(self.unlabelled_rows) < self.unlabelled:
                raise DataError(
                    f"{folder}: {len(self.unlabelled_rows)} unlabelled images that can be read, too few for "
                    f"data.unlabelled = {self.unlabelled}"
                )

    def summary(self) -> list[str]:
        """Images found, read and left out, those held out, and the classes."""
        assert self.files is not None
        folder, classes, held = self.locate(), self.files.classes, self.chosen_folds()[0]
        return [
            f"{folder}: {self.files.account}",
            f"{folder}: {len(held.train)} images to train on, {len(held.val)} held out, {len(classes)} classes: "
            f"{', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}",
        ]

    def _decode(self, paths: Sequence[Path]) -> tuple[Pictures, np.ndarray]:
        decoded = decode(paths, self.image_size, self.bad_images)
        assert self.files is not None
        bad = [paths[row].relative_to(self.files.path).as_posix() for row in np.flatnonzero(~decoded.good).tolist()]
        self.files.account.read -= len(bad)
        self.files.account.leave("that cannot be read; see the warning", bad)
        return Pictures(decoded.images), decoded.good

    def _open_labelled(self, train: Images, val: Images | None) -> None:
        parts = [part for part in (train, val) if part is not None]
        self.paths = [path for part in parts for path in part.paths]
        labels = [part.labels for part in parts if part.labels is not None]
        self.pictures, self.good = self._decode(self.paths)
        self.targets = torch.from_numpy(np.concatenate(labels))
        self.validation = np.arange(len(self.paths)) >= len(train.paths)

    def _open_test(self, test: Images) -> None:
        self.test_pictures, good = self._decode(test.paths)
        self.test_targets = None if test.labels is None else torch.from_numpy(test.labels)
        # a picture that cannot be read is not scored, but a submission has a line for it
        self.test_rows = np.arange(len(good)) if test.labels is None else np.flatnonzero(good)

    # rows

    def split(self) -> list[Fold]:
        """The course's own validation folder, or stratified shuffled parts of all labelled images."""
        assert self.files is not None
        rows, y = np.flatnonzero(self.good), self.targets.numpy()
        own = self.own_split and self.validation.any()
        train = rows[~self.validation[rows]] if own else rows
        counts = np.bincount(y[train], minlength=len(self.files.keys))
        rare = f"class {self.files.classes[counts.argmin()]} has {counts.min()} images to train on that can be read"
        if not counts.min() or (own and len(train) == len(rows)):
            raise DataError(f"{self.files.path}: {rare if not counts.min() else 'no validation image can be read'}")
        if own:
            if self.fold:
                raise DataError(f"data.fold is {self.fold}, but there is only the course's own split; set data.folds")
            return [Fold(train, rows[self.validation[rows]])]
        if counts.min() < self.n_folds:
            why = " (there is no validation folder, so parts are held out)" if self.own_split else ""
            raise DataError(
                f"{self.files.path}: {rare}, too few to cut into data.folds = {self.n_folds} parts{why}; choose fewer"
            )
        seed = int(np.random.default_rng(self.seed).integers(2**31))
        cut = StratifiedKFold(self.n_folds, shuffle=True, random_state=seed)
        return [Fold(rows[train], rows[val]) for train, val in cut.split(rows, y[rows])]

    def _find_facts(self, files: ImageFolder) -> Facts:
        train, val = self.chosen_folds()[0]
        expected = self.model_facts()
        if expected is not None:
            mean, deviation = expected["mean"], expected["deviation"]
        elif self.normalise:
            mean, deviation = self._statistics(train[:: -(-len(train) // STATISTICS_FROM)])
        else:
            mean, deviation = torch.zeros(3), torch.ones(3)
        return {
            "classes": files.classes,
            "keys": files.keys,
            "mean": mean,
            "deviation": deviation,
            "held_out": self.held_out(self._name(row) for row in val),
        }

    def _statistics(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and deviation (3,) of the channels over whole images; never many of them in memory."""
        sums = torch.zeros(2, 3, dtype=torch.float64)
        for part in torch.from_numpy(rows).split(16):
            pixels = self.pictures[part].double() / 255
            sums += torch.stack((pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))))
        mean, square = sums / (len(rows) * self.image_size**2)
        return mean.float(), (square - mean.square()).clamp(min=1e-12).sqrt().float()

    def _name(self, row: int) -> str:
        """A labelled image's folders and name below the data's folder."""
        assert self.files is not None
        return self.paths[row].relative_to(self.files.path).as_posix()

    # loaders

    def train_dataloader(self) -> DataLoader:
        """Batches x uint8 (B, 3, H, W), y (B,), row (B,); with unlabelled images also weak and strong."""
        rank, world = self.rank()
        tables = [self.chosen_folds()[0].train]
        other = None
        if self.unlabelled:
            other = self.unlabelled_pictures
            tables += np.array_split(self.unlabelled_rows, self.unlabelled)
        return ResumableLoader(
            TrainRows(self.pictures, self.targets, self.augment, self.seed, other),
            EpochBatchSampler(tables, self.batch_size, self.seed, rank, world),
            **self.loading(self.workers),
        )

    def val_dataloader(self) -> DataLoader:
        """Batches x uint8 (B, 3, S, S), y (B,), row (B,) of the images held out."""
        return self._judged(self.pictures, self.targets, self.chosen_folds()[0].val)

    def test_dataloader(self) -> DataLoader:
        """The test images where their names carry labels, else the images held out."""
        if self._scores_test():
            return self._judged(self.test_pictures, self.test_targets, self.test_rows, self.tta)
        if not self.paths:
            raise DataError(f"{self.locate()}: nothing to score: neither labelled test images nor training images")
        return self._judged(self.pictures, self.targets, self.chosen_folds()[0].val, self.tta)

    def predict_dataloader(self) -> DataLoader:
        """All test images in file order."""
        return self._judged(self.test_pictures, None, np.arange(len(self.test_pictures.images)), self.tta)

    def _judged(self, pictures: Pictures, labels: Tensor | None, rows: np.ndarray, views: int = 0) -> DataLoader:
        rank, world = self.rank()
        batches = [part for part in torch.from_numpy(rows[rank::world]).split(self.batch_size) if len(part)]
        judged = JudgedRows(pictures, labels, self.augment, views, self.seed)
        return DataLoader(judged, sampler=batches, batch_size=None, **self.loading(self.workers))

    def variants(self, count: int) -> Tensor:
        """A training image and `count` augmented versions of it, uint8 (1 + count, 3, S, S), or none."""
        if not self.paths:
            return torch.zeros((0, 3, self.image_size, self.image_size), dtype=torch.uint8)
        row = torch.from_numpy(self.chosen_folds()[0].train[:1])
        plain = self.pictures[row]
        if isinstance(self.augment, nn.Identity):
            return plain
        resize = v2.Resize([self.image_size, self.image_size])
        seen = [resize(varied(plain, row.unsqueeze(1), self.augment, self.seed, k, 4)) for k in range(count)]
        return torch.cat([plain, *seen])

    def draw(self) -> dict[str, Figure]:
        """A training image beside five augmented versions of it, unless images are taken as they are."""
        if len(seen := self.variants(5)) < 2:
            return {}
        figure = Figure(figsize=(2 * len(seen), 2.4), layout="constrained")
        for number, (axes, image) in enumerate(zip(figure.subplots(1, len(seen)), seen, strict=True)):
            axes.imshow(image.permute(1, 2, 0))
            axes.set_title(f"augmented {number}" if number else "as it is", fontsize=9)
            axes.axis("off")
        return {"augmentations": figure}

    # results

    def labels(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """File names and classes (N,) of labelled images."""
        return [self._name(row) for row in rows], self.targets.numpy()[rows]

    def _scores_test(self) -> bool:
        return self.files is not None and self.files.test is not None and self.files.test.labels is not None

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        if self._scores_test():
            return f"{len(self.test_rows)} test images whose names carry their class"
        return "held-out images (they also chose the best checkpoint: slightly optimistic)"

    def baselines(self) -> list[course.Baselines]:
        """The course's baselines of the edition that has so many training images."""
        count = len(self.files.train.paths) if self.files is not None and self.files.train is not None else 0
        return course.baselines_of(self.homework, count)

    def submission(self, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the course's file for probabilities (N, C), in natural order of the test files."""
        assert self.files is not None
        assert self.files.test is not None
        keys = [int(key) if key.isdecimal() else key for key in self.files.keys]
        paths = self.files.test.paths
        numbers = {int(path.stem) for path in paths if path.stem.isdecimal()}
        if len(numbers) == len(paths):  # the course's: a number, padded as the edition does
            ids = [f"{int(path.stem):0{self.files.id_width}d}" for path in paths]
        elif len({path.name for path in paths}) == len(paths):
            ids = [path.name for path in paths]
        else:
            ids = [path.relative_to(self.files.path).as_posix() for path in paths]
        return ["Id", "Category"], [[i, keys[c]] for i, c in zip(ids, self.decide(predictions), strict=True)]


def _short(keys: Sequence[str]) -> str:
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
