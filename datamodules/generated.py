"""Small generated sets in the courses' own layouts, to try things offline and for the tests; not for conclusions."""

import csv
import shutil
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from datamodules.errors import DataError
from datamodules.images.folder import PART_OF, has_images
from datamodules.speech import Part
from datamodules.speech.audio import normalise
from datamodules.speech.libriphone import Utterance, write_layout
from datamodules.speech.speaker_folder import LISTS, write_dataset
from datamodules.speech.speaker_folder import Utterance as SpokenBy

STATES = [
    "AL", "AK", "AZ", "AR", "CA", "CO", "CT", "FL", "GA", "ID", "IL", "IN", "IA", "KS", "KY", "LA", "MD", "MA",
    "MI", "MN", "MS", "MO", "NE", "NV", "NJ", "NM", "NY", "NC", "OH", "OK", "OR", "RI", "SC", "TX", "UT", "VA",
    "WA",
]  # fmt: skip
SURVEY = [
    "cli", "ili", "hh_cmnty_cli", "nohh_cmnty_cli", "wearing_mask", "travel_outside_state", "work_outside_home",
    "shop", "restaurant", "spent_time", "large_event", "public_transit", "anxious", "depressed",
    "worried_finances", "tested_positive",
]  # fmt: skip
DAYS, WINDOWS, TRAIN_ROWS = 5, 102, 2699
PHONES, SPOKEN = 41, {"train": 60, "test": 15}  # classes, of which 0 is silence, and utterances
SPEAKERS, HEARD = 16, {"train": 12, "test": 3}  # voices, and utterances of each
PAIRS, WORDS = {"raw": 3000, "test": 200}, {"noun": 40, "verb": 25, "adjective": 15, "place": 12, "time": 8}
HAN = (
    "人大山水火木日月天地風雨雪花草果米魚鳥牛馬羊書車船門窗路橋田國家城市村店學校園心手口目耳頭足身衣食住行走看聽說讀寫"
    "唱想愛給買來去開吃喝玩做笑坐飛高長新舊好美紅黃藍白黑明暗早晚春夏秋冬東西南北前後上下左中外老友父母子女王生電光音色"
)
FOODS, FOOD_IMAGES = 11, {"training": 24, "validation": 6, "test": 4, "unlabeled": 8}  # images a class


def _smooth(noise: np.ndarray, days: int) -> np.ndarray:
    """Running mean over the last axis; the survey's values are such means too."""
    return np.lib.stride_tricks.sliding_window_view(noise, days, axis=-1).mean(-1)


def _survey(rng: np.random.Generator) -> np.ndarray:
    """(states, days, columns): an epidemic wave a state, seen through noisy questions; tested_positive last."""
    states, days, columns = len(STATES), WINDOWS + DAYS - 1, len(SURVEY)
    wave = np.cumsum(rng.normal(0, 0.08, (states, days)), axis=1) + rng.normal(0, 0.5, (states, 1))
    wave = _smooth(np.pad(wave, ((0, 0), (6, 0)), mode="edge"), 7)
    load = np.concatenate([rng.uniform(0.5, 1.0, 4), rng.normal(0, 0.3, columns - 5)])
    level = np.concatenate([[0.8, 0.8, 20.0, 15.0], rng.uniform(5, 70, columns - 5)])
    noise = _smooth(rng.normal(0, 1.0, (states, columns - 1, days + 6)), 7).transpose(0, 2, 1)
    offset = rng.normal(0, 0.3, (states, 1, columns - 1))
    answers = level * np.exp(0.35 * (wave[:, :, None] * load + offset) + 0.05 * noise)
    shared = noise[:, :, :4].mean(-1)  # who answered today moves the test rate and the symptom questions together
    positive = 12 * np.exp(0.6 * wave) * (1 + 0.6 * shared + 0.02 * rng.normal(0, 1, (states, days)))
    return np.concatenate([answers, positive[:, :, None]], axis=2)


def write_covid(folder: Path, seed: int = 0) -> list[Path]:
    """Write covid.train.csv (2,699 rows) and covid.test.csv (1,075 rows) as in 2022: 37 states, 5 days of 16 columns.

    Rows are sliding windows of each state's days, as in the course's files; the test file has no target.
    """
    rng = np.random.default_rng(seed)
    survey = _survey(rng)
    rows = [(s, d) for s in range(len(STATES)) for d in range(WINDOWS)]
    order = rng.permutation(len(rows))
    parts = {"covid.train.csv": np.sort(order[:TRAIN_ROWS]), "covid.test.csv": np.sort(order[TRAIN_ROWS:])}
    if there := sorted(folder.glob("covid*.csv")):
        raise DataError(f"{there[0]}: covid files are here already; they are left as they are")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for name, chosen in parts.items():
            width = None if name == "covid.train.csv" else -1
            with open(Path(scratch) / name, "w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["id", *STATES, *(SURVEY * DAYS)[:width]])
                for number, row in enumerate(chosen):
                    state, day = rows[row]
                    values = survey[state, day : day + DAYS].ravel()[:width]
                    writer.writerow(
                        [number, *(int(s == state) for s in range(len(STATES))), *(f"{v:.7f}" for v in values)]
                    )
        folder.mkdir(exist_ok=True)
        return [Path(shutil.move(Path(scratch) / name, folder / name)) for name in parts]


def _dish(rng: np.random.Generator, food: int) -> Image.Image:
    """A lobed, striped shape on a blurred ground; lobes, stripes and hue tell the food, none of them for certain."""
    height, width = rng.integers(144, 177, 2).tolist()
    y, x = np.mgrid[:height, :width].astype(np.float32)
    scale = rng.uniform(0.28, 0.42) * min(height, width)
    x, y = (x - width * rng.uniform(0.38, 0.62)) / scale, (y - height * rng.uniform(0.38, 0.62)) / scale
    turn = rng.uniform(0, 2 * np.pi)
    angle = np.arctan2(y, x) + turn
    edge = 1 + 0.35 * np.cos((2 + food % 4) * angle)
    inside = np.clip((edge - np.hypot(x, y)) * 8, 0, 1)
    pitch = 4 + 5 * (food % 3) + rng.normal(0, 0.8)
    stripes = np.sin(pitch * (x * np.cos(turn) + y * np.sin(turn)))
    hue = (food / FOODS + rng.normal(0, 0.035)) % 1
    value = 0.75 + 0.2 * stripes + rng.normal(0, 0.05)
    dish = np.stack([np.full_like(x, hue), np.full_like(x, rng.uniform(0.5, 0.9)), value], -1)
    ground = rng.uniform(0, 255, (4, 4, 3)).astype(np.uint8)
    rgb = Image.fromarray((dish.clip(0, 1) * 255).astype(np.uint8), "HSV").convert("RGB")
    mixed = np.asarray(Image.fromarray(ground).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = 12 * rng.standard_normal((height, width, 1), np.float32)
    mixed = mixed + inside[..., None] * (np.asarray(rgb) - mixed) + noise
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def write_food(folder: Path, seed: int = 0) -> list[Path]:
    """Write training/, validation/ and test/ as in 2022 (11 classes, 264 + 66 + 44 JPEG), and return the folders.

    Training and validation are named <class>_<number>.jpg, the test images 0001.jpg and so on, as are 88 more in
    unlabeled/, for semi-supervised training as in 2021.
    """
    rng = np.random.default_rng(seed)
    there = [path for path in sorted(folder.iterdir()) if path.name.lower() in PART_OF] if folder.is_dir() else []
    if there or has_images(folder):
        raise DataError(f"{there[0] if there else folder}: images are here already; they are left as they are")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for part, count in FOOD_IMAGES.items():
            (Path(scratch) / part).mkdir()
            names = [(food, f"{food}_{number}.jpg") for food in range(FOODS) for number in range(count)]
            if part in ("test", "unlabeled"):
                foods = rng.permutation([food for food, _ in names]).tolist()
                names = [(food, f"{number:04d}.jpg") for number, food in enumerate(foods, start=1)]
            for food, name in names:
                _dish(rng, food).save(Path(scratch) / part / name, quality=88)
        folder.mkdir(exist_ok=True)
        return [Path(shutil.move(Path(scratch) / part, folder / part)) for part in FOOD_IMAGES]


def _spoken(rng: np.random.Generator, targets: np.ndarray, follows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (T, 39) and classes (T,) of an utterance: 13 values that glide from phone to phone, and their slopes."""
    labels = [np.zeros(rng.integers(10, 30), int)]
    phone = 0
    while sum(map(len, labels)) < rng.integers(130, 350):
        phone = rng.choice(PHONES, p=follows[phone])
        labels.append(np.full(rng.integers(4, 16), phone))
    y = np.concatenate([*labels, np.zeros(rng.integers(10, 30), int)])
    path = targets[y] + rng.normal(0, 0.3, 13)  # a voice of its own
    gliding = np.stack([np.convolve(np.pad(c, 3, "edge"), np.full(7, 1 / 7), "valid") for c in path.T], axis=1)
    static = gliding + rng.normal(0, 0.55, gliding.shape)
    slope = np.gradient(static, axis=0)
    return normalise(np.concatenate([static, slope, np.gradient(slope, axis=0)], axis=1)), y


def write_phonemes(folder: Path, seed: int = 0) -> list[Path]:
    """Write the layout of LibriPhone, 60 + 15 utterances of 41 classes; those of the test part have no labels."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(0, 1, (PHONES, 13))
    follows = rng.dirichlet(np.full(PHONES, 0.3), PHONES)
    follows[np.diag_indices(PHONES)] = 0
    follows /= follows.sum(1, keepdims=True)
    names = [name for part in SPOKEN for name in (f"feat/{part}", f"{part}_split.txt", f"{part}_labels.txt")]
    if there := [folder / name for name in names if (folder / name).exists()]:
        raise DataError(f"{there[0]}: phoneme files are here already; they are left as they are")
    written: list[Path] = []
    for part, count in SPOKEN.items():
        spoken = [_spoken(rng, targets, follows) for _ in range(count)]
        utterances = [
            Utterance(f"{100 + n}-{seed}-{part}-{n:04d}", x, y if part == "train" else None)
            for n, (x, y) in enumerate(spoken)
        ]
        written += write_layout(folder, cast(Part, part), utterances, [str(number) for number in range(PHONES)])
    return written


def _heard(rng: np.random.Generator, voice: np.ndarray, sounds: np.ndarray) -> np.ndarray:
    """Log-mel frames (T, 40) of an utterance: sounds that all voices share, seen through one of them, on a channel."""
    said = sounds[rng.integers(len(sounds), size=20)][np.repeat(np.arange(20), rng.integers(5, 15, size=20))]
    loud = _smooth(rng.normal(0, 2, len(said) + 8), 9)
    x = said + voice + loud[:, None] + rng.normal(0, 0.5, 40) + rng.normal(0, 1.2, said.shape)
    return (x - 6).clip(np.log(1e-9)).astype(np.float32)


def write_speakers(folder: Path, seed: int = 0) -> list[Path]:
    """Write the course's Dataset folder: 16 speakers with 12 utterances each, and 48 test utterances without labels."""
    if there := [folder / name for name in (*LISTS.values(), "mapping.json") if (folder / name).exists()]:
        raise DataError(f"{there[0]}: there already; move it away, or name another folder")
    rng = np.random.default_rng(seed)
    sounds = np.stack([_smooth(rng.normal(0, 3, 46), 7) for _ in range(30)])
    voices = np.stack([_smooth(rng.normal(0, 1.2, 44), 5) for _ in range(SPEAKERS)])
    written: list[Path] = []
    for part, count in HEARD.items():
        order = [(v, n) for n in range(count) for v in range(SPEAKERS)]
        if part == "test":
            rng.shuffle(order)
        utterances = [
            SpokenBy(
                f"{seed}/{part}/{v}/{n}", _heard(rng, voices[v], sounds), f"id{10001 + v}" if part == "train" else None
            )
            for v, n in order
        ]
        written += write_dataset(folder, cast(Part, part), utterances)
    return written


def _dictionary(rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """Words of each kind in made-up English and Chinese, no two alike in either language."""
    count = sum(WORDS.values())
    syllables = [
        c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "sh", "th") for v in "aeiou"
    ]
    english = [f"{a}{b}{end}" for a in syllables for b in syllables for end in ("", "n", "r")]
    chinese = [a + b for a in HAN for b in HAN if a != b]
    pairs = zip(rng.choice(english, count, False).tolist(), rng.choice(chinese, count, False).tolist(), strict=True)
    return {kind: [next(pairs) for _ in range(number)] for kind, number in WORDS.items()}


def _said(rng: np.random.Generator, words: dict[str, list[tuple[str, str]]]) -> tuple[str, str]:
    """A sentence and its translation: time and place stand last in English, and before the verb in Chinese."""

    def pick(kind: str) -> tuple[str, str]:
        return words[kind][rng.integers(len(words[kind]))]

    def thing() -> tuple[str, str]:
        (noun, han), number = pick("noun"), int(rng.integers(3))
        adjective, colour = pick("adjective") if rng.random() < 0.5 else ("", "")
        said = f"{('the', 'a', 'two')[number]} {adjective} {noun}{'s' * (number == 2)}"
        return " ".join(said.split()), ("這", "一", "兩")[number] + "個" + (colour and f"{colour}的") + han

    subject, verb, target = thing(), pick("verb"), thing()
    place = pick("place") if rng.random() < 0.5 else ("", "")
    time = pick("time") if rng.random() < 0.5 else ("", "")
    asked, denied, over = rng.random() < 0.2, rng.random() < 0.2, rng.random() < 0.5
    english = [
        subject[0],
        "not" if denied else "",
        verb[0] + "ed" * over,
        target[0],
        place[0] and f"in {place[0]}",
        time[0],
    ]
    first = " ".join(filter(None, (["does"] if asked else []) + english))
    chinese = (
        (time[1] and f"{time[1]}，")
        + subject[1]
        + (place[1] and f"在{place[1]}")
        + "不" * denied
        + verb[1]
        + "了" * over
    )
    return first.capitalize() + ".?"[asked], chinese + target[1] + ("嗎？" if asked else "。")


def write_translation(folder: Path, seed: int = 0) -> list[Path]:
    """Write raw.en and raw.zh, 3,000 pairs of two made-up languages, and test.en and test.zh, 200 others."""
    names = [f"{part}.{language}" for part in PAIRS for language in ("en", "zh")]
    if there := [folder / name for name in names if (folder / name).exists()]:
        raise DataError(f"{there[0]}: there already; move it away, or name another folder")
    rng = np.random.default_rng(seed)
    words = _dictionary(rng)
    pairs: dict[str, str] = {}
    while len(pairs) < sum(PAIRS.values()):
        pairs.update([_said(rng, words)])
    lines = iter(pairs.items())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for part, count in PAIRS.items():
            sides = zip(*(next(lines) for _ in range(count)), strict=True)
            for language, side in zip(("en", "zh"), sides, strict=True):
                text = "".join(f"{line}\n" for line in side)
                (Path(scratch) / f"{part}.{language}").write_text(text, encoding="utf-8", newline="\n")
        folder.mkdir(exist_ok=True)
        return [Path(shutil.move(Path(scratch) / name, folder / name)) for name in names]
