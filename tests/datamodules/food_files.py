"""Small food sets for the tests: every image of a class has its own grey, every file its own pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16


def write_image(path: Path, shade: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 21, (SIZE, SIZE, 3))
    Image.fromarray((shade + noise).clip(0, 255).astype(np.uint8)).save(path, quality=95)


def write_set(folder: Path, classes: int = 3, train: int = 10, val: int = 4, test: int = 6, first: int = 1) -> Path:
    """The layout of 2022: training and validation named <class>_<n>.jpg, test 0001.jpg and on."""
    number = 0
    for part, count in (("training", train), ("validation", val)):
        for label in range(classes):
            for n in range(count):
                number += 1
                write_image(folder / part / f"{label}_{n}.jpg", 40 + 60 * label, number)
    for n in range(test):
        write_image(folder / "test" / f"{n + first:04d}.jpg", 40 + 60 * (n % classes), 1000 + n)
    return folder
