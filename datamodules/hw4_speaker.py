"""HW4: who speaks, by the course's folders of log-mel features or one's own recordings."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import course
from datamodules.base import ClassifierData, Facts, Fold
from datamodules.errors import DataError
from datamodules.files import archives
from datamodules.files.walk import Account
from datamodules.generated import write_speakers
from datamodules.samplers import EpochBatchSampler, ResumableLoader, length_buckets
from datamodules.speech import Part, audio, speaker_folder, speaker_recordings
from datamodules.speech.crops import Crops
from datamodules.speech.packed import Packed, Precision, pack

JUDGED = 16384  # frames of a batch of validation, test and prediction, with padding


class SpeakerData(ClassifierData):
    """The course's Dataset folder of HW4, any edition, or what `leeml data prepare` made of recordings.

    All frames lie once in a memory map, opened at once from the second run on. Training sees stretches of
    `segment` frames; validation, test and prediction whole utterances. (The course's code validates on random
    stretches, which says little about whole utterances: its own 2022 network, one student found, gets 0.69 on the
    former and 0.86 on the latter.) The facts for the module: speakers, width of a frame.

    Args:
        folds: Number of parts the utterances are cut into, those of each speaker evenly.
        segment: Frames of a training stretch, of 10 ms each.
        batch_size: Utterances of one optimizer step, over all ranks together.
        train_snr: Lowest and highest signal-to-noise ratio, in decibels, of noise added in training; null: none.
        judge_frames: Judge, in validation and test, only so many frames in the middle (100: a second); null: all.
        judge_snr: Judge with noise of this signal-to-noise ratio; null: none.
        workers: Processes that make the training batches; 0 is the training process itself; null: none on a
            CPU, and beside a GPU as many as there are cores (see HomeworkData.loading).
        precision: Of the frames in the map.
    """

    homework: ClassVar[str] = "hw4_speaker"
    kaggle: ClassVar[str] = "Kaggle competitions ml2022spring-hw4, ml2023springhw4"

    def __init__(
        self,
        root: str | None = None,
        dir: str | None = None,
        edition: str | int | None = None,
        folds: int = 10,
        fold: int = 0,
        seed: int = 0,
        segment: int = 128,
        batch_size: int = 32,
        train_snr: tuple[float, float] | None = None,
        judge_frames: int | None = None,
        judge_snr: float | None = None,
        workers: int | None = None,
        precision: Precision = "float16",
    ) -> None:
        super().__init__(root, dir, edition, folds, fold, seed)
        for name, value in {"segment": segment, "batch_size": batch_size, "judge_frames": judge_frames}.items():
            if value is not None and value < 1:
                raise DataError(f"data.{name} is {value}: expected at least 1")
        if (workers or 0) < 0:
            raise DataError(f"data.workers is {workers}: expected 0 or more")
        if train_snr is not None and train_snr[0] > train_snr[1]:
            raise DataError(f"data.train_snr is {list(train_snr)}: expected the lower ratio first")
        self.segment, self.batch_size, self.train_snr = segment, batch_size, train_snr
        self.judge_frames, self.judge_snr = judge_frames, judge_snr
        self.workers, self.precision = workers, precision
        self.frames: Packed
        self.speakers: list[str] = []
        self.files: list[Path] = []
        self.targets = torch.zeros(0, dtype=torch.int64)
        self.test: Packed
        self.test_names: list[str] = []
        self.test_targets: Tensor | None = None

    # files

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Whether a Dataset folder of the course lies here, itself or around its files."""
        return any(speaker_folder.has_speakers(place) for place in (folder, folder / "Dataset"))

    @staticmethod
    def sample(folder: Path, seed: int = 0) -> list[Path]:
        """Write a small generated set in the course's layout."""
        return write_speakers(folder, seed)

    @classmethod
    def prepare(
        cls, folder: Path, source: Path | None = None, split: Part = "train", speaker_level: int | None = None
    ) -> list[Path]:
        """Unpack an archive of course files, or turn recordings, in a folder a speaker or listed, into their layout."""
        place = source or folder
        packed = [place] if place.is_file() else archives.archives_in(place)
        if packed and all(map(_holds_features, packed)):
            return super().prepare(folder, source)
        return speaker_recordings.prepare_recordings(source or folder, folder / "prepared", split, speaker_level)

    def read_files(self, stage: str) -> None:
        """Open what the stage needs, cut the folds and find the facts."""
        folder = self._folder()
        expected = self.model_facts()
        known = expected["classes"] if expected is not None else None
        if stage in ("test", "predict") and (folder / "testdata.json").is_file():
            self._open_test(folder, known, stage)
        if stage == "predict" or (stage == "test" and self.test_targets is not None):
            if not self.test_names:
                raise DataError(
                    f"{folder / 'testdata.json'}: missing; recordings of your own become a test set by leeml data "
                    f"prepare {self.homework} --source FOLDER --split test"
                )
            return
        found = speaker_folder.read_speakers(folder)
        self.speakers, self.files, self.targets = found.speakers, found.files, torch.from_numpy(found.labels)
        if known is not None and known != found.speakers:
            raise DataError(
                f"{folder}: its {len(found.speakers)} speakers are not the {len(known)} that the model was trained on; "
                "use the data the model belongs to"
            )
        self.frames = pack(found.files, speaker_folder.read_mel, self.precision)
        speaker_folder.check_lengths(found, self.frames.lengths)
        speaker_folder.check_speakers(found)
        val = self.chosen_folds()[0].val
        self.facts = {
            "classes": self.speakers,
            "features": audio.MELS,
            "held_out": self.held_out(self.files[row].name for row in val),
        }

    def summary(self) -> list[str]:
        """Utterances, how the recordings became them where we know, speakers, and what is held out."""
        folder = self._folder()
        train, val = self.chosen_folds()[0]
        account = Account("utterances", len(self.files))
        account.leave("feature files that no list names", speaker_folder.unlisted(folder))
        short = int((self.frames.lengths[train] < self.segment).sum())
        padded = f" ({short} of them shorter than data.segment = {self.segment}: padded)" if short else ""
        return [
            *speaker_folder.read_notes(folder, "train"),
            f"{folder}: {account}",
            f"{folder}: {len(train)} utterances of {len(self.speakers)} speakers to train on{padded}, {len(val)} held "
            "out",
        ]

    def _folder(self) -> Path:
        """The folder with the lists: the one found, or Dataset in it."""
        folder = self.locate()
        return folder if speaker_folder.has_speakers(folder) else folder / "Dataset"

    def _open_test(self, folder: Path, known: list[str] | None, stage: str) -> None:
        found = speaker_folder.read_test(folder)
        if stage == "test" and (found.speakers is None or known is None):
            return  # it cannot be scored, so it is not opened
        self.test = pack(found.files, speaker_folder.read_mel, self.precision)
        speaker_folder.check_lengths(found, self.test.lengths)
        self.test_names = found.names
        if found.speakers is None or known is None:
            return
        number = {speaker: n for n, speaker in enumerate(known)}
        if strangers := sorted(set(found.speakers) - set(number)):
            raise DataError(
                f"{folder / 'testdata.json'}: speaker {strangers[0]} is none of the {len(known)} that the model was "
                "trained on; take the utterances out"
            )
        self.test_targets = torch.tensor([number[speaker] for speaker in found.speakers])

    # rows

    def split(self) -> list[Fold]:
        """Each speaker's utterances, shuffled and dealt out to the folds."""
        noise = np.random.default_rng(self.seed)
        labels, fold = self.targets.numpy(), np.empty(len(self.targets), int)
        for speaker in range(len(self.speakers)):
            own = noise.permutation(np.flatnonzero(labels == speaker))
            fold[own] = (np.arange(len(own)) + noise.integers(self.n_folds)) % self.n_folds
        rows = np.arange(len(labels))
        folds = [Fold(rows[fold != k], rows[fold == k]) for k in range(self.n_folds)]
        if empty := [k for k, part in enumerate(folds) if not len(part.val)]:
            raise DataError(
                f"{self.locate()}: {len(rows)} utterances leave fold {empty[0]} of data.folds = {self.n_folds} empty; "
                "choose fewer"
            )
        return folds

    # loaders

    def train_dataloader(self) -> DataLoader:
        """Stretches x (B, T, 40), y (B,), row (B,), and mask (B, T) where some are padded."""
        rank, world = self.rank()
        data = Crops(self.frames, self.targets, self.segment, self.train_snr, self.seed)
        rows = EpochBatchSampler([self.chosen_folds()[0].train], self.batch_size, self.seed, rank, world)
        return ResumableLoader(data, rows, **self.loading(self.workers))

    def val_dataloader(self) -> DataLoader:
        """The utterances held out."""
        return self._judged(self.frames, self.targets, self.chosen_folds()[0].val)

    def test_dataloader(self) -> DataLoader:
        """The test utterances where their speakers are known, else those held out."""
        if self.test_targets is None:
            return self.val_dataloader()
        return self._judged(self.test, self.test_targets, np.arange(len(self.test)))

    def predict_dataloader(self) -> DataLoader:
        """All test utterances, whole."""
        return self._judged(self.test, None, np.arange(len(self.test)))

    def _judged(self, packed: Packed, labels: Tensor | None, chosen: np.ndarray) -> DataLoader:
        """Every one of the chosen utterances once, shared out over ranks; without labels (predict) as it is."""
        rank, world = self.rank()
        if 0 < len(chosen) < world:
            raise DataError(
                f"{len(chosen)} utterances to judge cannot be shared out over {world} processes; start fewer"
            )
        chosen = chosen[rank::world]
        frames, snr = (None, None) if labels is None else (self.judge_frames, self.judge_snr)
        buckets = length_buckets(packed.lengths[chosen], JUDGED) if len(chosen) else []
        batches = [torch.from_numpy(np.sort(chosen[bucket])) for bucket in buckets]
        data = Crops(packed, labels, frames, None if snr is None else (snr, snr), self.seed)
        return DataLoader(data, sampler=batches, batch_size=None, **self.loading(0))

    # results

    def labels(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """File names and speakers' numbers (N,) of labelled utterances."""
        return [self.files[row].name for row in rows], self.targets.numpy()[rows]

    def describe_test(self) -> str:
        """What `leeml test` scored, in words."""
        how = "whole" if self.judge_frames is None else f"{self.judge_frames} frames each"
        noise = "" if self.judge_snr is None else f", noise at {self.judge_snr:g} dB"
        if self.test_targets is not None:
            return f"{len(self.test_targets)} test utterances whose speakers are known ({how}{noise})"
        return f"held-out utterances ({how}{noise}; they also chose the best checkpoint: slightly optimistic)"

    def baselines(self) -> list[course.Baselines]:
        """The course's baselines of the editions that have so many training utterances."""
        return course.baselines_of(self.homework, len(self.targets))

    def submission(self, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the course's file for probabilities (N, C), in the order of testdata.json."""
        facts: Facts = self.model_facts() or self.facts or {}
        speakers = facts["classes"]
        return ["Id", "Category"], [
            [name, speakers[c]] for name, c in zip(self.test_names, self.decide(predictions), strict=True)
        ]


def _holds_features(archive: Path) -> bool:
    """Whether the first recording in an archive is the course's features of one."""
    endings = (Path(name).suffix.lower() for name in archives.names_in(archive))
    return next((ending for ending in endings if ending in (".pt", *audio.ENDINGS)), None) == ".pt"
