"""HW2: the phone of every frame of speech, by the course's files of any year or one's own aligned recordings."""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import course
from datamodules.base import ClassifierData, Facts, Fold
from datamodules.errors import DataError
from datamodules.files import archives
from datamodules.files.walk import Account
from datamodules.generated import write_phonemes
from datamodules.samplers import EpochBatchSampler, LengthBucketSampler, ResumableLoader, length_buckets
from datamodules.speech import Part, libriphone, timit11
from datamodules.speech.frames import ReadyWindows, Utterances, Windows
from datamodules.speech.libriphone import TIMIT_FRAMES, WIDTH, UtteranceList
from datamodules.speech.packed import Packed, Precision, pack
from datamodules.speech.phones import Labels, PhoneSet, classes, read_table

JUDGED = 4096  # frames of a batch of validation, test and prediction: no more than its windows need little memory
SILENCES = ("sil", "h#")  # names of the class that is no phone
CLASSES = 41  # of LibriPhone, whose files do not name them
EPOCH_STEPS = 50  # of an epoch of few frames, where no batch size is given
FEWEST, MOST = 500, 8_000  # frames of such a batch: an utterance of usual length; what any GPU has memory for


class PhonemeData(ClassifierData):
    """Course files of HW2: LibriPhone of 2022 and 2023, TIMIT-11 of 2021, or what `leeml data prepare` made.

    Frames lie once in a memory map; windows are gathered, and utterances padded, when a batch is made. The facts for
    the module: names of the classes, which one is silence, width of a frame, how often one class follows another.

    Args:
        folds: Number of parts the labelled utterances are cut into.
        window: Frames that the network sees at once to name the one in their middle, odd; null: whole utterances.
        split: What is held out together: utterance (as the course) or speaker. Default: speaker where they are known.
            Of TIMIT-11 utterances that follow each other, the first fold at the end: neighbours may share a speaker.
        batch_size: Frames of one optimizer step over all ranks together; of whole utterances, with their padding, and
            never less than 2 w - 1 times the longest, with w ranks. null: see `derived_batch`.
        precision: Of the frames.

    Utterances of TIMIT-11 are rebuilt from its rows (datamodules/speech/timit11.py). Where the rows are in another
    order than the course's, that cannot be done: they are read as they are, windows have at most 11 frames, a stretch
    of rows is held out, and its neighbours are left out.
    """

    homework: ClassVar[str] = "hw2_phoneme"
    score_name: ClassVar[str] = "frame accuracy"
    kaggle: ClassVar[str] = "Kaggle competitions ml2021spring-hw2, ml2022spring-hw2"

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | int | None = None,
        folds: int = 5,
        fold: int = 0,
        seed: int = 0,
        window: int | None = 1,
        split: Literal["utterance", "speaker"] | None = None,
        batch_size: int | None = 512,
        precision: Precision = "float16",
    ) -> None:
        super().__init__(root, dir, edition, folds, fold, seed)
        if window is not None and (window < 1 or window % 2 == 0):
            raise DataError(f"data.window is {window}: expected an odd number of frames, or null for whole utterances")
        if batch_size is not None and batch_size < 1:
            raise DataError(f"data.batch_size is {batch_size}: expected at least 1, or null")
        self.window, self.split_by, self.batch_size, self.precision = window, split, batch_size, precision
        self.names: list[str] = []
        """Names of the classes."""
        self.frames: Packed | np.ndarray
        """Of the labelled utterances, or rows of TIMIT-11."""
        self.targets = torch.zeros(0, dtype=torch.int64)
        self.part: UtteranceList | None = None
        self.in_order = False
        """Whether utterances of one speaker may follow each other, and speakers are not known, as in TIMIT-11."""
        self.test: Packed | np.ndarray
        self.test_targets: Tensor | None = None

    # files

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Whether one of the course's layouts lies here."""
        return _home(folder) is not None

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a small generated set in the layout of 2022."""
        return write_phonemes(folder, seed)

    @classmethod
    def prepare(
        cls,
        folder: Path,
        source: Path | None = None,
        split: Part = "train",
        phones: PhoneSet = 39,
        speaker_level: int | None = None,
        tier: str | None = None,
        phone_table: Path | None = None,
    ) -> list[Path]:
        """Unpack an archive of course files, or turn recordings and their phone alignments into the course's layout."""
        sources = archives.archives_in(folder) if source is None else [source]
        if len(sources) != 1:
            raise DataError(
                f"{folder}: {len(sources)} archives here; name one, or a folder of recordings, with --source"
            )
        source = sources[0]
        if source.is_file() and _holds_course_files(source):
            if (split, phones) != ("train", 39):
                raise DataError(
                    f"{source}: holds course files, which are only unpacked; leave out --split and --phones"
                )
            place = folder / archives.stem(source)
            archives.unpack(source, place)
            return [place]
        labels = Labels(tier, read_table(phone_table.expanduser()) if phone_table else {})
        return libriphone.prepare_recordings(source, folder / "prepared", split, phones, speaker_level, labels)

    def read_files(self, stage: str) -> None:
        """Open what the stage needs, cut the folds and find the facts."""
        folder = _home(self.locate())
        assert folder is not None
        expected = self.model_facts()
        timit = any((folder / f"{part}_11.npy").is_file() for part in ("train", "test"))
        if expected is not None and expected["window"] != self.window:
            found, wanted = (window or "null" for window in (self.window, expected["window"]))
            raise DataError(f"data.window is {found}, but the model was trained with {wanted}")
        labelled_test = not timit and (folder / "test_labels.txt").is_file()
        if stage == "predict" or (stage == "test" and labelled_test):
            self._open_test(folder, timit, expected)
            return
        if timit:
            self._open_timit(folder)
        else:
            self._open_train(folder)
        if expected is not None and expected["classes"] != self.names:
            raise DataError(
                f"{folder}: has {_short(self.names)}, but the model was trained on {_short(expected['classes'])}"
            )
        self.facts = self._find_facts()
        if self.batch_size is None:
            every = sum(map(len, self.chosen_folds()[0]))  # the same batch for all folds, whose lengths differ
            self.settled["batch_size"] = derived_batch(every * (self.n_folds - 1) // self.n_folds)

    @property
    def frames_a_step(self) -> int:
        """The batch size given, or derived."""
        return self.batch_size or self.settled["batch_size"]

    def summary(self) -> list[str]:
        """Utterances or rows, how the recordings became them where we know, frames and classes."""
        folder, (train, val) = _home(self.locate()), self.chosen_folds()[0]
        assert folder is not None
        if self.part is None:
            account, held, notes = Account("rows", len(self.frames)), "by stretches of frames", []
        else:
            account, held = Account("utterances", len(self.part.names)), f"by {self._groups()[0]}"
            account.leave("feature files that train_split.txt does not name; add them there", self.part.unnamed)
            notes = libriphone.read_notes(folder, "train")
        return [
            *notes,
            f"{folder}: {account}",
            f"{folder}: {len(train)} frames to train on, {len(val)} held out {held}, {len(self.names)} classes",
        ]

    def _open_train(self, folder: Path) -> None:
        names = libriphone.read_phones(folder)
        if not (folder / "train_split.txt").is_file():
            raise DataError(f"{folder}: no training utterances here (train_split.txt); {self._ways()}")
        self.part = part = libriphone.read_layout(folder, "train")
        assert part.labels is not None
        if names is None:
            for name, labels in zip(part.names, part.labels, strict=True):
                if labels.max() >= CLASSES:
                    raise DataError(
                        f"{folder / 'train_labels.txt'}: utterance {name} has class {labels.max()}; expected 0 to "
                        f"{CLASSES - 1} as in the course, or the names of your own classes, one a line, in phones.txt"
                    )
        self.frames = packed = pack(part.files, libriphone.read_features, self.precision)
        libriphone.check_lengths(part, packed.lengths.tolist())
        self.targets = torch.from_numpy(np.concatenate(part.labels))
        self.names = names or [str(number) for number in range(CLASSES)]

    def _open_timit(self, folder: Path) -> None:
        files = libriphone.read_timit11(folder)
        self.targets, self.names = torch.from_numpy(files.labels), classes(39)
        self.frames = self._rebuilt(folder / "train_11.npy", files.train)
        if isinstance(self.frames, Packed):
            self.in_order, ends = True, self.frames.rows.tolist()
            names = [f"rows {start}-{end - 1}" for start, end in pairwise(ends)]
            self.part = UtteranceList(names, [], np.split(files.labels, ends[1:-1]), None)

    def _rebuilt(self, path: Path, rows: np.ndarray) -> Packed | np.ndarray:
        """Utterances of TIMIT-11, or its rows as they are where that is enough."""
        found = timit11.rebuild(path, self.precision)
        if found is None and (self.window is None or self.window > TIMIT_FRAMES):
            raise DataError(
                f"{path}: fewer than half of the rows go on from the row before, so no utterances can be rebuilt; set "
                f"data.window to at most {TIMIT_FRAMES}, or get the course's arrays, whose rows are in order"
            )
        return rows if found is None else found

    def _open_test(self, folder: Path, timit: bool, expected: Facts | None) -> None:
        if timit:
            path = folder / "test_11.npy"
            self.test = self._rebuilt(path, libriphone.read_windows(path))
            return
        names = libriphone.read_phones(folder)
        if expected is not None and names is not None and names != expected["classes"]:
            raise DataError(
                f"{folder}: has {_short(names)}, but the model was trained on {_short(expected['classes'])}"
            )
        if not (folder / "test_split.txt").is_file():
            raise DataError(
                f"{folder}: no test utterances here (test_split.txt); recordings of your own become a test set by "
                f"leeml data prepare {self.homework} --source FOLDER --split test"
            )
        part = libriphone.read_layout(folder, "test", len(expected["classes"]) if expected else None)
        self.test = packed = pack(part.files, libriphone.read_features, self.precision)
        if part.labels is not None:
            libriphone.check_lengths(part, packed.lengths.tolist())
            self.test_targets = torch.from_numpy(np.concatenate(part.labels))

    # rows

    def _groups(self) -> tuple[str, np.ndarray]:
        """What is held out together, in words, and its number for each utterance (U,)."""
        assert self.part is not None
        if self.part.speakers is None and self.split_by == "speaker":
            raise DataError(
                f"{self.locate()}: the speakers are not known (no speakers.txt); set data.split to utterance"
            )
        if self.part.speakers is None or self.split_by == "utterance":
            return "utterance", np.arange(len(self.part.names))
        return "speaker", np.unique(self.part.speakers, return_inverse=True)[1]

    def _cut(self) -> list[Fold]:
        """Utterance numbers of each fold."""
        what, groups = self._groups()
        if (count := len(np.unique(groups))) < self.n_folds:
            raise DataError(f"{self.locate()}: {count} {what}s cannot be cut into data.folds = {self.n_folds} parts")
        if self.in_order:
            return self._stretches()
        seed = int(np.random.default_rng(self.seed).integers(2**31))
        cut = GroupKFold(self.n_folds, shuffle=True, random_state=seed)
        return [Fold(*fold) for fold in cut.split(groups, groups=groups)]

    def _stretches(self) -> list[Fold]:
        """The same in stretches of about as many rows, the first fold at the end, as the course holds out the tail."""
        assert isinstance(self.frames, Packed)
        rows = self.frames.rows.numpy()
        folds = self.n_folds - 1 - (rows[:-1] + rows[1:]) // 2 * self.n_folds // rows[-1]
        found = [Fold(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(self.n_folds)]
        if not all(len(fold.val) for fold in found):
            raise DataError(
                f"{self.locate()}: {len(folds)} utterances cannot be cut into data.folds = {self.n_folds} stretches of "
                "about as many rows; lower data.folds"
            )
        return found

    def _chosen(self) -> Fold:
        """Utterance numbers of the fold of this run."""
        return self._cut()[self.fold or 0]

    def _frames(self, utterances: np.ndarray) -> np.ndarray:
        """Row numbers of all their frames."""
        assert isinstance(self.frames, Packed)
        offsets = self.frames.rows.tolist()
        return np.concatenate([np.arange(offsets[u], offsets[u + 1]) for u in utterances.tolist()])

    def split(self) -> list[Fold]:
        """Frames of each fold: whole utterances or speakers; else stretches of rows, the first fold at the end."""
        if isinstance(self.frames, Packed):
            return [Fold(self._frames(train), self._frames(val)) for train, val in self._cut()]
        count, far = len(self.frames), TIMIT_FRAMES - 1  # rows as close as that show some of the same frames
        ends = [count - count * k // self.n_folds for k in range(self.n_folds + 1)]
        rows = np.arange(count)
        return [
            Fold(rows[(rows < start - far) | (rows >= end + far)], rows[start:end]) for end, start in pairwise(ends)
        ]

    def _find_facts(self) -> Facts:
        train, val = self.chosen_folds()[0]
        held = [f"{val[0]}-{val[-1]}"] if self.part is None else [self.part.names[u] for u in self._chosen().val]
        known = [self.names.index(name) for name in SILENCES if name in self.names]
        return {
            "classes": self.names,
            "silence": known[0] if known else 0,  # the course's 41 classes have no names, but 0 is silence
            "features": WIDTH,
            "window": self.window,
            "transitions": self._transitions(train),
            "held_out": self.held_out(held),
        }

    def _transitions(self, train: np.ndarray) -> Tensor:
        """Log-probability (C, C) that one class follows another from frame to frame, each pair counted once more."""
        count = len(self.names)
        y = self.targets.numpy()[train]
        follows = np.diff(train) == 1
        if isinstance(self.frames, Packed):
            follows &= ~np.isin(train[1:], self.frames.rows.numpy())
        pairs = np.bincount((y[:-1] * count + y[1:])[follows], minlength=count**2).reshape(count, count) + 1
        return torch.from_numpy(np.log(pairs / pairs.sum(1, keepdims=True))).float()

    # loaders

    def train_dataloader(self) -> DataLoader:
        """Windows x (B, n, 39), y (B,), row (B,), or utterances x (U, T, 39), mask, y, row (U, T)."""
        rank, world = self.rank()
        if self.window is None and isinstance(self.frames, Packed):
            chosen = self._chosen().train
            sampler = LengthBucketSampler(
                chosen, self.frames.lengths[chosen], self.frames_a_step, self.seed, rank, world
            )
            return ResumableLoader(self._dataset(self.frames, self.targets), sampler)
        rows = EpochBatchSampler([self.chosen_folds()[0].train], self.frames_a_step, self.seed, rank, world)
        return ResumableLoader(self._dataset(self.frames, self.targets), rows)

    def val_dataloader(self) -> DataLoader:
        """The utterances held out: their windows with lengths (U,), or the utterances themselves."""
        units = self._chosen() if isinstance(self.frames, Packed) else self.chosen_folds()[0]
        return self._judged(self.frames, self.targets, units.val)

    def test_dataloader(self) -> DataLoader:
        """The test utterances where their labels are there, else the frames held out."""
        return self.predict_dataloader() if self.test_targets is not None else self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """All test utterances; rows count their frames in the order of the split file."""
        return self._judged(self.test, self.test_targets, np.arange(len(self.test)))

    def _dataset(self, frames: Packed | np.ndarray, labels: Tensor | None) -> Windows | ReadyWindows | Utterances:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if not isinstance(frames, Packed):
            return ReadyWindows(frames, labels, self.window or TIMIT_FRAMES)
        return Windows(frames, labels, self.window, device) if self.window else Utterances(frames, labels, device)

    def _judged(self, frames: Packed | np.ndarray, labels: Tensor | None, chosen: np.ndarray) -> DataLoader:
        """Every one of the chosen utterances once (without utterances: rows), shared out over ranks."""
        rank, world = self.rank()
        if len(chosen) < world:  # a rank without any would let the others wait for it
            raise DataError(f"{len(chosen)} to judge cannot be shared out over {world} processes; start fewer")
        chosen = chosen[rank::world]
        if not isinstance(frames, Packed):
            batches = list(torch.from_numpy(chosen).split(JUDGED))
        else:
            buckets = length_buckets(frames.lengths[chosen], JUDGED)
            batches = [torch.from_numpy(np.sort(chosen[bucket])) for bucket in buckets]
        return DataLoader(self._dataset(frames, labels), sampler=batches, batch_size=None)

    # results

    def labels(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """utterance:frame (without utterances the row) and classes (N,) of labelled frames."""
        if self.part is None or not isinstance(self.frames, Packed):
            return [str(row) for row in rows], self.targets.numpy()[rows]
        offsets = self.frames.rows.numpy()
        utterance = np.searchsorted(offsets, rows, side="right") - 1
        names = self.part.names
        found = zip(utterance.tolist(), (rows - offsets[utterance]).tolist(), strict=True)
        return [f"{names[u]}:{t}" for u, t in found], self.targets.numpy()[rows]

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        if self.test_targets is not None:
            return f"{len(self.test_targets)} frames of the test utterances, whose labels are there"
        return "held-out frames (they also chose the best checkpoint: slightly optimistic)"

    def baselines(self) -> list[course.Baselines]:
        """The course's baselines of the edition that has so many training frames."""
        return course.baselines_of(self.homework, len(self.targets))

    def submission(self, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the course's file for probabilities (N, C) of all test frames in order."""
        return ["Id", "Class"], [[number, int(c)] for number, c in enumerate(self.decide(predictions))]


def derived_batch(frames: int) -> int:
    """Frames of an optimizer step for so many to train on: a fiftieth of them, from 500 to 8,000.

    On few minutes of speech many small steps learn more than a few large ones (docs/hw2_phoneme.md); on hours of it
    8,000 frames use a GPU well, and a step fits into the memory of any.
    """
    return min(MOST, max(FEWEST, frames // EPOCH_STEPS))


def _home(folder: Path) -> Path | None:
    """The folder itself or a usual folder inside it, where files of one of the layouts lie."""
    inside = ("libriphone", "timit_11", "libriphone/libriphone", "timit_11/timit_11")  # the last two by Kaggle's zips
    for place in (folder, *(folder / name for name in inside)):
        if any(
            (place / name).is_file() for name in ("train_split.txt", "test_split.txt", "train_11.npy", "test_11.npy")
        ):
            return place
    return None


def _holds_course_files(archive: Path) -> bool:
    return any(name.endswith(("_split.txt", "_11.npy")) for name in archives.names_in(archive))


def _short(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
