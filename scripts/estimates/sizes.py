"""The course's own sizes, and from them the facts and batches a module would get: random numbers of true shapes."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.hw1_covid import CovidData
from datamodules.hw2_phoneme import PhonemeData, derived_batch
from datamodules.hw3_food import FoodData
from datamodules.hw4_speaker import SpeakerData
from datamodules.hw5_translation import TranslationData
from datamodules.images.rows import WEAK, varied
from datamodules.samplers import length_buckets
from datamodules.speech.audio import MELS
from datamodules.speech.libriphone import WIDTH
from datamodules.speech.noise import add_noise
from datamodules.text.pairs import pair_batch
from datamodules.text.tokenizer import BOS, EOS, PAD, UNK, Tokenizer, train_tokenizer
from scripts.cli.mistakes import UsageError

EDITIONS = ("2021", "2022", "2023")


class Covid(NamedTuple):
    """Rows, states, days and columns a day of the training file."""

    rows: int
    states: int
    days: int
    columns: int


class Speech(NamedTuple):
    """Labelled utterances and their frames, the shortest and the longest of them, and the classes."""

    utterances: int
    frames: int
    shortest: int
    longest: int
    classes: int


class Food(NamedTuple):
    """Labelled images to train on and to validate with, and unlabelled ones."""

    train: int
    validation: int
    unlabelled: int


COVID = {"2021": Covid(2700, 40, 3, 18), "2022": Covid(2699, 37, 5, 16), "2023": Covid(3009, 34, 3, 18)}
SPEECH = {
    # rows are published, no utterances: assumed are those of TIMIT's training part without the sentences that all
    # its speakers say, and their lengths; steps and memory hardly depend on them, as a batch is filled with frames
    "2021": Speech(3696, 1_229_932, 90, 780, 39),
    "2022": Speech(4286, 2_644_158, 139, 998, 41),
    "2023": Speech(3429, 2_116_794, 139, 998, 41),
}
FOOD = {"2021": Food(3080, 660, 6786), "2022": Food(9866, 3430, 0), "2023": Food(10000, 3643, 0)}
FOODS = 11
SPEAKERS, UTTERANCES = 600, {"2021": 69_438, "2022": 56_666, "2023": 56_666}
WHOLE = 658  # frames of an utterance of HW4, the mean
PAIRS = {"2021": 393_980, "2022": 393_980, "2023": 394_052}  # after cleaning
TOKENS = 24.0  # of a sentence, with eos: an assumption, the mean of a tokenizer of 8,000 pieces


class Workload(NamedTuple):
    """What a module of a homework is built from and trained on."""

    facts: dict[str, Any]
    batch: Callable[[int], dict[str, Any]]
    """A batch of so many rows."""
    tried: tuple[int, int]
    """Rows of the two batches that are counted."""
    rows: float
    """Of a batch of training, the mean."""
    most: float
    """Of the largest batch, which decides the memory."""
    batches: int
    """Of an epoch."""
    judged: float
    """Rows of a validation, in rows of training."""
    batch_of: str
    """A batch in words."""
    loading: float = 0.0
    """Seconds of one core that a row takes before it is on the card."""


def covid(data: CovidData, edition: str) -> Workload:
    """HW1: x (M, B, C)."""
    size = COVID[edition]
    days = size.days - 1
    count = size.states + size.days * size.columns - 1
    if data.columns is not None:
        chosen = len(data.columns)
    else:
        chosen = {"all": count, "targets": size.states + days}.get(data.select, min(data.k, count))
    used = max(1, round(data.feature_share * chosen))
    folds = data.n_folds if data.fold is None else 1
    members = folds * data.members
    held = size.rows // data.n_folds
    facts = {
        "features": [str(number) for number in range(count)],
        "used": torch.arange(used).repeat(members, 1),
        "mean": torch.zeros(members, used),
        "scale": torch.ones(members, used),
        "is_state": (torch.arange(used) < size.states).repeat(members, 1),
        "target_mean": torch.zeros(members),
        "target_scale": torch.ones(members),
        "anchor": size.states if data.target == "change" else None,
        "fold": torch.zeros(members, dtype=torch.int64),
    }

    def batch(rows: int) -> dict[str, Tensor]:
        return {"x": torch.rand(members, rows, count), "y": torch.rand(members, rows)}

    rows = min(data.batch_size, size.rows - held)
    batches = -(-(size.rows - held) // data.batch_size)
    text = f"{rows} rows of {used} features for each of {members} networks"
    return Workload(facts, batch, (16, 32), rows, rows, batches, held, text)


@lru_cache
def _buckets(
    mean: float, shortest: int, longest: int, count: int, room: int, sides: int
) -> tuple[int, tuple[int, ...]]:
    """Batches of an epoch of sequences whose lengths are spread as speech and sentences are, and their mean lengths."""
    noise = np.random.default_rng(0)
    drawn = np.exp(noise.normal(0, 0.5, count))[:, None] * np.exp(noise.normal(0, 0.15, (count, sides)))
    lengths = np.clip(drawn * mean / drawn.mean(), shortest, longest).round().astype(np.int64)
    means = tuple(round(float(side)) for side in lengths.mean(0))
    return len(length_buckets(lengths if sides > 1 else lengths[:, 0], room)), means


def phoneme(data: PhonemeData, edition: str) -> Workload:
    """HW2: windows (B, n, 39) or utterances (U, T, 39)."""
    size = SPEECH[edition]
    train = 1 - 1 / data.n_folds
    facts = {
        "classes": [str(number) for number in range(size.classes)],
        "silence": 0,
        "features": WIDTH,
        "window": data.window,
        "transitions": torch.zeros(size.classes, size.classes),
    }
    frames = round(size.frames * train)
    room = data.batch_size or derived_batch(frames)
    if data.window is not None:

        def windows(rows: int) -> dict[str, Tensor]:
            return {"x": torch.randn(rows, data.window or 1, WIDTH), "y": torch.randint(size.classes, (rows,))}

        text = f"{room} windows of {data.window} frames"
        return Workload(facts, windows, (16, 32), room, room, -(-frames // room), size.frames - frames, text)
    count = round(size.utterances * train)
    batches, (length,) = _buckets(size.frames / size.utterances, size.shortest, size.longest, count, room, 1)

    def utterances(rows: int) -> dict[str, Any]:
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[:, -1] = False  # a batch in which nothing is padded is rare
        places = mask.flatten().nonzero().squeeze(1)
        y = torch.randint(size.classes, (rows, length))
        x, lengths = torch.randn(rows, length, WIDTH).half(), [length - 1] * rows
        return {"x": x, "mask": mask, "y": y, "places": places, "lengths": lengths}

    most = max(room, size.longest) / length
    text = f"{count / batches:.1f} utterances of {length} frames"
    return Workload(facts, utterances, (2, 4), count / batches, most, batches, size.utterances - count, text)


def noise_seconds(frames: int, stretches: int = 16) -> float:
    """Seconds of one core that the noise of a stretch (frames, 40) takes, as the loader makes it."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal((frames, MELS), np.float32)
    add_noise(some, 0.0, rng)
    begun = time.process_time()
    for _ in range(stretches):
        add_noise(some, 0.0, rng)
    return (time.process_time() - begun) / stretches


def core_seconds(transform: nn.Module, size: int, images: int = 16) -> float:
    """Seconds of one core that a transform takes for an image (3, size, size), as the loader has them."""
    if isinstance(transform, nn.Identity):
        return 0.0
    some = torch.randint(256, (images, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    keys = torch.arange(images).unsqueeze(1)
    varied(some[:1], keys[:1], transform)
    begun = time.process_time()
    varied(some, keys, transform)
    return (time.process_time() - begun) / images


def food(data: FoodData, edition: str) -> Workload:
    """HW3: images uint8 (B, 3, H, W)."""
    size = FOOD[edition]
    labelled = size.train + size.validation
    train = size.train if data.own_split else round(labelled * (1 - 1 / data.n_folds))
    facts = {
        "classes": [str(number) for number in range(FOODS)],
        "mean": torch.full((3,), 0.5),
        "deviation": torch.full((3,), 0.25),
    }
    plain = torch.zeros(3, data.image_size, data.image_size, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        shape = data.augment(plain).shape

    def images(rows: int, own: Any) -> Tensor:
        return torch.randint(256, (rows, *own), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)

    def batch(rows: int) -> dict[str, Tensor]:
        found = {"x": images(rows, shape), "y": torch.randint(FOODS, (rows,))}
        if data.unlabelled:
            found |= {"weak": images(rows * data.unlabelled, plain.shape)}
            found |= {"strong": images(rows * data.unlabelled, shape)}
        return found

    batches = -(-train // data.batch_size)
    loading = core_seconds(data.augment, data.image_size) * (1 + data.unlabelled)
    if data.unlabelled:
        loading += core_seconds(WEAK, data.image_size) * data.unlabelled
    more = f" and {data.unlabelled * data.batch_size} unlabelled ones, two views each" if data.unlabelled else ""
    text = f"{data.batch_size} images of {shape[1]} x {shape[2]} pixels{more}"
    rows = data.batch_size
    judged = (labelled - train) * plain.shape[1] * plain.shape[2] / (shape[1] * shape[2])
    return Workload(facts, batch, (2, 4), rows, rows, batches, judged / (1 + data.unlabelled), text, loading)


def speaker(data: SpeakerData, edition: str) -> Workload:
    """HW4: stretches (B, T, 40)."""
    train = round(UTTERANCES[edition] * (1 - 1 / data.n_folds))
    facts = {"classes": [str(number) for number in range(SPEAKERS)], "features": MELS}

    def batch(rows: int) -> dict[str, Tensor]:
        return {"x": torch.randn(rows, data.segment, MELS).half(), "y": torch.randint(SPEAKERS, (rows,))}

    rows = data.batch_size
    judged = (UTTERANCES[edition] - train) * WHOLE / data.segment
    text = f"{rows} stretches of {data.segment} frames"
    loading = noise_seconds(data.segment) if data.train_snr else 0.0
    return Workload(facts, batch, (2, 4), rows, rows, -(-train // rows), judged, text, loading)


@lru_cache
def _tokenizer() -> Tensor:
    """A small one: only its being there counts, the vocabulary of the network is that of the data's settings."""
    return Tokenizer(train_tokenizer(["some words of a small tokenizer", "and some more of them"], 300)).as_tensor()


def translation(data: TranslationData, edition: str) -> Workload:
    """HW5: source (B, S), target (B, T)."""
    train = round(PAIRS[edition] * (1 - 1 / data.n_folds))
    facts = {
        "tokenizer": _tokenizer(),
        "vocabulary": data.vocabulary,
        "pad": PAD, "unk": UNK, "bos": BOS, "eos": EOS,
        "source": data.source,
        "target": data.target,
        "max_length": data.max_length,
    }  # fmt: skip
    batches, (s, t) = _buckets(TOKENS, 2, data.max_length, train, data.max_tokens, 2)

    def batch(rows: int) -> dict[str, Any]:
        source, target = (torch.randint(EOS + 1, data.vocabulary, (rows, length)) for length in (s, t))
        source[:, -1] = target[:, -1] = EOS
        return pair_batch(source, target, torch.arange(rows))

    most = data.max_tokens / max(s, t)
    text = f"{train / batches:.0f} pairs of {s} and {t} tokens"
    return Workload(facts, batch, (2, 4), train / batches, most, batches, PAIRS[edition] - train, text)


WORKLOADS: dict[type, Callable[[Any, str], Workload]] = {
    CovidData: covid, PhonemeData: phoneme, FoodData: food, SpeakerData: speaker, TranslationData: translation,
}  # fmt: skip


def workload(data: Any, edition: str) -> Workload:
    """What the data would give its module, of the course's edition.

    Raises:
        UsageError: data of another homework, or pairs of one's own.
    """
    for kind, of in WORKLOADS.items():
        if isinstance(data, kind):
            return of(data, edition)
    raise UsageError(f"{type(data).__name__}: the course's sizes are known of HW1 to HW5 only")
