"""leeml bench scale: noise of the course's full sizes is written, read, cached and batched; time, disk and memory.

HW1 has 3,009 rows and needs no such look. Each homework is opened in a process of its own, twice: first when nothing is
cached, then as every later run opens it.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.base import HomeworkData
from datamodules.files.places import PROJECT
from datamodules.hw2_phoneme import PhonemeData
from datamodules.hw3_food import FoodData
from datamodules.hw4_speaker import SpeakerData
from datamodules.hw5_translation import TranslationData
from datamodules.speech.audio import MELS
from datamodules.speech.speaker_folder import Utterance, write_dataset
from scripts.benches.hw2_phoneme import write_large
from scripts.benches.tools import empty_cache, peak_memory, quiet_lightning, resident
from scripts.cli.mistakes import Parser, UsageError

BATCHES = 200  # that are made of an epoch
SPEAKERS, MEL_FILES, WHOLE = 600, 64_000, 658  # of HW4; frames of an utterance, the mean
IMAGES, SIDE, KINDS = 17_000, 512, 64  # of HW3; different pictures, each written many times
PAIRS, WORDS, SPOKEN = 400_000, 60_000, 18  # of HW5; distinct words, and words of a sentence, the mean


def write_images(folder: Path, share: float) -> None:
    """17,000 JPEG of 512 x 512 pixels, about 70 kB each; bytes after the end of the picture make each file its own."""
    noise, pictures = np.random.default_rng(0), []
    for _ in range(KINDS):
        coarse = Image.fromarray(noise.integers(256, size=(64, 64, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    for part, parts in {"training": 0.75, "validation": 0.25}.items():
        (folder / part).mkdir(parents=True)
        for number in range(round(IMAGES * share * parts)):
            (folder / part / f"{number % 11}_{number}.jpg").write_bytes(pictures[number % KINDS] + f"{number}".encode())


def write_mels(folder: Path, share: float) -> None:
    """64,000 utterances of 600 speakers, 658 frames each on average."""
    noise = np.random.default_rng(0)
    frames = noise.standard_normal((4 * WHOLE, MELS), np.float32)
    lengths = noise.integers(WHOLE // 2, WHOLE + WHOLE // 2, round(MEL_FILES * share))

    def utterances() -> Iterator[Utterance]:
        for number, length in enumerate(lengths.tolist()):
            first = int(noise.integers(len(frames) - length))
            yield Utterance(f"{number:05d}", frames[first : first + length], f"id{number % SPEAKERS:05d}")

    write_dataset(folder, "train", utterances())


def write_pairs(folder: Path, share: float) -> None:
    """400,000 pairs of sentences; words as frequent as Zipf's law says, their translations fixed."""
    noise, count = np.random.default_rng(0), round(PAIRS * share)
    letters, signs = np.array(list("abcdefghijklmnopqrstuvwxyz")), np.array([chr(0x4E00 + n) for n in range(3000)])
    english = ["".join(noise.choice(letters, size)) for size in noise.integers(2, 9, WORDS).tolist()]
    chinese = ["".join(noise.choice(signs, size)) for size in noise.integers(1, 4, WORDS).tolist()]
    chances = 1 / np.arange(1, WORDS + 1)
    lengths = np.clip(noise.lognormal(np.log(SPOKEN), 0.5, count), 2, 150).astype(int)
    drawn, sides = noise.choice(WORDS, lengths.sum(), p=chances / chances.sum()), []
    for words in np.split(drawn, lengths.cumsum()[:-1]):
        sides.append((" ".join(english[word] for word in words), "".join(chinese[word] for word in words)))
    folder.mkdir(parents=True)
    (folder / "raw.en").write_text("".join(f"{side}.\n" for side, _ in sides), encoding="utf-8")
    (folder / "raw.zh").write_text("".join(f"{side}。\n" for _, side in sides), encoding="utf-8")


SETS: dict[str, tuple[type[HomeworkData], Callable[[Path, float], None], dict[str, Any]]] = {
    "hw2_phoneme": (PhonemeData, write_large, {"window": None, "batch_size": None}),
    "hw3_food": (FoodData, write_images, {}),
    "hw4_speaker": (SpeakerData, write_mels, {}),
    "hw5_translation": (TranslationData, write_pairs, {}),
}


def rows_of(batch: dict[str, Any]) -> int:
    """Frames, images, stretches or pairs of a batch, with padding."""
    x = batch["x"] if "x" in batch else batch["source"]
    return x.shape[0] * x.shape[1] if "lengths" in batch else len(x)


def use(homework: str, folder: str) -> None:
    """Run in a process of its own: open, make batches of training and validation, and print what it took, as JSON."""
    quiet_lightning()
    torch.set_num_threads(1)
    kind, _, options = SETS[homework]
    before = sum(resident().values())
    begun = time.perf_counter()
    data = kind(dir=folder, **options)
    data.setup("fit")
    opened = time.perf_counter()
    rows = sum(rows_of(batch) for batch in islice(data.train_dataloader(), BATCHES))
    ended = time.perf_counter()
    for _ in islice(data.val_dataloader(), BATCHES // 10):
        pass
    print(
        json.dumps(
            {
                "open": opened - begun, "rows": rows / (ended - opened), "own": resident()["anonymous"],
                "peak": peak_memory() - before,
            }
        )
    )  # fmt: skip


def size(folder: Path) -> float:
    """MB of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(homework: str, place: Path, share: float) -> list[dict[str, float]]:
    """Write a set, use it twice and delete it.

    Returns:
        Of both uses: seconds to open, rows a second, MB of the process's own at its end, most MB beyond the imports,
        MB of the set and of the cache.
    """
    folder, found = place / homework, []
    SETS[homework][1](folder, share)
    code = f"from scripts.benches.scale import use; use({homework!r}, {str(folder)!r})"
    with empty_cache(place) as cache:
        for _ in range(2):
            done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
            if done.returncode:
                raise UsageError(f"{homework}: {(done.stderr.splitlines() or ['no message'])[-1]}")
            found.append(json.loads(done.stdout.splitlines()[-1]) | {"set": size(folder), "cache": size(cache)})
    shutil.rmtree(folder)
    return found


def main(args: list[str]) -> int:
    """Measure the homeworks named, else all that are large."""
    parser = Parser(prog="leeml bench scale", description=__doc__.splitlines()[0])
    parser.add_argument("homework", nargs="*", help=f"of {', '.join(SETS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the course's sizes; 1 needs up to 12 GB of disk")
    parser.add_argument("--place", type=Path, help="where the sets are written and deleted (default: the system's)")
    own = parser.parse_args(args)
    if unknown := sorted(set(own.homework) - set(SETS)):
        raise UsageError(f"no set of {unknown[0]!r} at full scale; there are {', '.join(SETS)}")
    if not 0 < own.share <= 1:
        raise UsageError(f"--share {own.share}: expected more than 0, at most 1")
    if not Path("/proc/self/smaps").is_file():
        raise UsageError("leeml bench scale measures memory by Linux's /proc/self/smaps")
    print(
        f"{own.share:g} of the course's sizes; the first {BATCHES} batches of an epoch; memory in MB beyond the imports"
    )
    print(f"  {'':<18} {'use':<6} {'open, s':>8} {'rows/s':>10} {'own':>8} {'most':>8} {'set, MB':>9} {'cache, MB':>9}")
    for homework in own.homework or SETS:
        with tempfile.TemporaryDirectory(dir=own.place) as place:
            for use_of, row in zip(("first", "later"), measure(homework, Path(place), own.share), strict=True):
                print(
                    f"  {homework:<18} {use_of:<6} {row['open']:8.1f} {row['rows']:10,.0f} {row['own']:8,.0f} "
                    f"{row['peak']:8,.0f} {row['set']:9,.0f} {row['cache']:9,.0f}",
                    flush=True,
                )
    print("  most counts pages of the cache too, which the system takes back at need")
    return 0
