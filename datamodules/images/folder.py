"""Finds the images of HW3 in any edition's layout: what is on disk decides, not the year."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files.walk import Account, by_ending, files_below, is_hidden, walk
from datamodules.images.decoded import ENDINGS

# images that are not read, and what to do about them
FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "which need pillow-heif: pip install pillow-heif"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".raw"), "raw photos; save as JPEG"
    ),
    **dict.fromkeys((".svg", ".psd", ".xcf", ".eps", ".pdf", ".ai", ".jxl", ".exr", ".hdr"), "not read; save as PNG"),
}
EDITION = re.compile(r"(19|20)\d\d|sample", re.IGNORECASE)  # folders of whole data sets
PARTS = {
    "train": ("training", "train"),
    "val": ("validation", "valid", "val"),
    "test": ("testing", "test", "evaluation"),
    "unlabelled": ("unlabeled", "unlabelled"),
}
LABELLED = ("labeled", "labelled")
PART_OF = {name: part for part, names in PARTS.items() for name in names}
ID_WIDTH = 4  # of the submission in 2022


class Images(NamedTuple):
    """Image files in natural order (2.jpg before 10.jpg); labels (N,) int64, None where the names carry none."""

    paths: list[Path]
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A data set on disk. `keys` is what file names or folders call the classes, `classes` what people call them."""

    path: Path
    classes: list[str]
    keys: list[str]
    train: Images | None
    val: Images | None
    test: Images | None
    unlabelled: Images | None
    id_width: int  # digits of the submission file's ids, 0 where they are not padded (2021)
    account: Account


def has_images(folder: Path) -> bool:
    """Whether this very folder, or its only sub-folder, is laid out as `read_folder` expects; stops at first images."""
    return folder.is_dir() and images_home(folder) is not None


def read_folder(folder: Path, expect: list[str] | None = None) -> ImageFolder:
    """Find the images below `folder`: training, validation and test folders, a folder a class, or a test folder alone.

    Args:
        folder: Holds the parts, or one sub-folder with them.
        expect: Keys of the classes where there is no training part to tell, as a checkpoint knows them.

    Raises:
        DataError: says which folder or file is not as expected, and how to fix it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected one with training/, validation/ and test/ inside")
    home = images_home(folder)
    if home is None:
        there = ", ".join([*(f"{p.name}/" for p in _folders(folder)), *_other_files(folder)][:5]) or "nothing"
        raise DataError(
            f"{folder}: no images in a layout that is known (here: {there}); expected training/, validation/ and test/ "
            f"with images <class>_<number>.jpg or a folder a class, or two or more class folders with images"
        )
    parts = {part: _only(part, folders) for part, folders in _parts(home).items()}
    split = False  # into labelled and unlabelled folders
    if "train" in parts:
        train = _keyed(_labelled_part(parts["train"]), strict=True)
        split = any(p.name.lower() in LABELLED + PARTS["unlabelled"] for p in _folders(parts["train"]))
    elif expect is not None and _is_test(home):
        parts, train = {"test": home}, []
    elif len(_class_folders(home, 2)) >= 2:
        train = _keyed(home, strict=True, images=False)
    else:
        parts, train = parts or {"test": home}, []
    if not train and expect is None:
        raise DataError(
            f"{home}: no training images; expected training/ with images <class>_<number>.jpg or a folder a class "
            f"(here: {', '.join(f'{p.name}/' for p in parts.values() if p != home) or 'images without classes'})"
        )
    keys = _keys(train) if train else list(expect or [])
    classes = _class_names(home, keys) if train else keys
    index = {_canonical(key): number for number, key in enumerate(keys)}
    test, alone = _read_test(parts["test"], index, split or not train) if "test" in parts else (None, False)
    is_2021 = alone or (split and "test" in parts and parts["test"].name.lower() == "testing")
    labelled = _labelled(train, index) if train else None
    val = _labelled(_keyed(parts["val"]), index) if "val" in parts else None
    unlabelled = _unlabelled(home, parts)
    return ImageFolder(
        path=home,
        classes=classes,
        keys=keys,
        train=labelled,
        val=val,
        test=test,
        unlabelled=unlabelled,
        id_width=0 if is_2021 else _id_width(test),
        account=_account(home, [part for part in (labelled, val, test, unlabelled) if part is not None]),
    )


def _account(home: Path, parts: list[Images]) -> Account:
    """What lies below the folder, and what of it is in one of the parts."""
    read = {path for part in parts for path in part.paths}
    account = Account("images", len(read))
    below = files_below(home)
    others = [path for path in below.files if path not in read]
    for ending, paths in by_ending(others).items():
        names = [path.relative_to(home).as_posix() for path in paths if path != home / "classes.txt"]
        if ending in ENDINGS:
            account.leave("in no folder of a class or part; move them into one", names)
        elif ending in FOREIGN:
            account.leave(f"{ending}, {FOREIGN[ending]}", names)
        else:
            account.leave(f"no images ({ending or 'no ending'})", names)
    account.leave("no regular files; move them away", [path.relative_to(home).as_posix() for path in below.odd])
    return account


def _natural(text: str) -> tuple[list[str | int], str]:
    """Sort key by which 2 stands before 10."""
    pieces = re.split(r"([0-9]+)", text)  # texts at even places, numbers at odd ones: never compared with each other
    return [int(piece) if place % 2 else piece.casefold() for place, piece in enumerate(pieces)], text


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not is_hidden(entry.name))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in ENDINGS and entry.is_file()


def _folders(folder: Path) -> list[Path]:
    return sorted((folder / e.name for e in _entries(folder) if e.is_dir()), key=lambda p: _natural(p.name))


def _images(folder: Path) -> list[Path]:
    return [folder / name for name in sorted((e.name for e in _entries(folder) if _is_image(e)), key=_natural)]


def _images_below(folder: Path) -> list[Path]:
    """Images at any depth: those right in the folder first, each folder's in natural order."""
    found = [path for path in files_below(folder).files if path.suffix.lower() in ENDINGS]
    places = {path.parent: _natural(path.parent.relative_to(folder).as_posix()) for path in found}
    return sorted(found, key=lambda path: (path.parent != folder, places[path.parent], _natural(path.name)))


def _other_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if not entry.is_dir())


def _holds_image(folder: Path, below: bool = False) -> bool:
    """Whether an image lies in the folder, or anywhere below it; stops at the first."""
    if any(map(_is_image, _entries(folder))):
        return True
    return below and any(is_regular and path.suffix.lower() in ENDINGS for path, is_regular in walk(folder))


def _parts(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in _folders(folder):
        if part := PART_OF.get(path.name.lower()):
            found.setdefault(part, []).append(path)
    return found


def _class_folders(folder: Path, enough: int | None = None) -> list[Path]:
    """Sub-folders that are no part and hold images; stops when there are `enough`."""
    found: list[Path] = []
    for path in _folders(folder):
        if path.name.lower() not in PART_OF and (_holds_image(path) or _is_deep_class(path)):
            found.append(path)
            if len(found) == enough:
                break
    return found


def _is_deep_class(folder: Path) -> bool:
    """Whether it is a class whose images lie deeper, and not a data set of its own."""
    return not EDITION.fullmatch(folder.name) and _holds_image(folder, below=True) and not _is_home(folder)


def _is_home(path: Path) -> bool:
    """Whether it holds parts with images, or two class folders."""
    parts = [p for name, ps in _parts(path).items() if name != "unlabelled" for p in ps]
    return any(_holds_image(p, below=True) for p in parts) or len(_class_folders(path, 2)) >= 2


def images_home(folder: Path) -> Path | None:
    """The folder that holds the parts, the classes or the images: this one, its only sub-folder, or neither."""
    if _is_home(folder):
        return folder
    inside = _folders(folder)
    if len(inside) == 1 and _is_home(inside[0]):
        return inside[0]
    return folder if _holds_image(folder) or _is_test(folder) else None


def _is_test(folder: Path) -> bool:
    """Whether the folder itself is a test part: called so, and with images below."""
    return PART_OF.get(folder.resolve().name.lower()) == "test" and not _parts(folder) and _holds_image(folder, True)


def _only(part: str, folders: list[Path]) -> Path:
    if len(folders) > 1:
        names = " and ".join(path.name for path in folders)
        raise DataError(f"{folders[0].parent}: both {names} are here, expected one {part} folder; move the other away")
    return folders[0]


def _labelled_part(train: Path) -> Path:
    """The folder of the labelled images: training/labeled in 2021."""
    return next((path for path in _folders(train) if path.name.lower() in LABELLED), train)


def _unlabelled(home: Path, parts: dict[str, Path]) -> Images | None:
    folders = [parts["unlabelled"]] if "unlabelled" in parts else []
    if "train" in parts:
        folders += [path for path in _folders(parts["train"]) if path.name.lower() in PARTS["unlabelled"]]
    paths = [path for folder in folders for path in _images_below(folder)]
    return Images(paths, None) if paths else None


def _class_in(path: Path) -> str | None:
    """The class in a file name <class>_<number>.jpg."""
    match = re.fullmatch(r"(?:.*\\)?(.+)_[0-9]+", path.stem)  # some unzippers put folder\name into the name
    return match[1] if match else None


def _canonical(key: str) -> str:
    """00 and 0 are one class."""
    return str(int(key)) if re.fullmatch(r"[0-9]+", key) else key


def _keyed(part: Path, strict: bool = False, images: bool = True) -> list[tuple[Path, str]]:
    """(file, class key) of a labelled part: by file name, or by class folder.

    strict: a class folder must not be empty. images: whether files lying directly in `part` count.
    """
    direct = _images(part) if images else []
    folders = [path for path in _folders(part) if path.name.lower() not in PART_OF]
    if direct:
        if beside := next((path for path in folders if _holds_image(path, below=True)), None):
            raise DataError(
                f"{part}: holds images ({direct[0].name}) beside a folder with images ({beside.name}/); expected "
                f"either images <class>_<number>.jpg or a folder a class, move the others away"
            )
        keys = {path: _class_in(path) for path in direct}
        for path, key in keys.items():
            if key is None:
                raise DataError(
                    f"{path}: the name carries no class, expected <class>_<number>{path.suffix} such as "
                    f"3_12{path.suffix}; rename it or move it away"
                )
        return [(path, key) for path, key in keys.items() if key is not None]
    found = []
    for folder in folders:
        paths = _images_below(folder)
        if not paths and strict:
            raise DataError(f"{folder}: no image of this class; put some in, or remove the folder")
        found += [(path, folder.name) for path in paths]
    if not found:
        raise DataError(
            f"{part}: no image here; expected <class>_<number>.jpg or a folder a class; put some in or remove it"
        )
    return found


def _keys(train: list[tuple[Path, str]]) -> list[str]:
    """Class keys of the training files, in order.

    Raises:
        DataError: a single class, or a number without images between others.
    """
    found = list({_canonical(key): key for _, key in reversed(train)}.values())
    keys = sorted(found, key=_natural)
    where = train[0][0].parent
    if len(keys) < 2:
        raise DataError(f"{where}: all {len(train)} images are of class {keys[0]}, expected two or more classes")
    if all(re.fullmatch(r"[0-9]+", key) for key in keys):
        by_name = train[0][0].parent == train[-1][0].parent  # all in one folder: the course counts from 0
        numbers = [int(key) for key in keys]
        start = 0 if by_name else numbers[0]
        missing = sorted(set(range(start, numbers[-1] + 1)) - set(numbers)) if start < 2 else []
        if missing:
            where = where if by_name else where.parent
            raise DataError(
                f"{where}: no image of class {missing[0]}, but of {len(keys)} classes from {keys[0]} to {keys[-1]}; "
                f"expected images of every class, put the missing ones in or number the classes again"
            )
    return keys


def _class_names(home: Path, keys: list[str]) -> list[str]:
    """Names from classes.txt, lines `3 beef_carpaccio` or one name a class, where it fits the keys; else the keys.

    Raises:
        DataError: classes.txt names a class without images.
    """
    path = home / "classes.txt"
    if not path.is_file():
        return keys
    lines = [line.strip() for line in path.read_text("utf-8-sig", errors="replace").splitlines() if line.strip()]
    numbered = [re.fullmatch(r"([0-9]+)[\s,:.]+(.+)", line) for line in lines]
    if all(numbered):
        names = {_canonical(match[1]): match[2] for match in numbered if match}
    elif all(re.fullmatch(r"[0-9]+", key) for key in keys):
        names = {str(number): line for number, line in enumerate(lines)}
    else:
        names = {line: line for line in lines}
    wanted = [_canonical(key) for key in keys]
    if not set(wanted) <= names.keys():
        return keys
    if extra := [key for key in names if key not in wanted]:
        text = extra[0] if names[extra[0]] == extra[0] else f"{extra[0]} ({names[extra[0]]})"
        raise DataError(f"{path}: class {text} has no training image; put some in, or take its line away")
    return [names[key] for key in wanted]


def _labelled(files: Iterable[tuple[Path, str]], index: dict[str, int]) -> Images:
    paths, labels = [], []
    for path, key in files:
        label = index.get(_canonical(key))
        if label is None:
            known = list(index)
            span = ", ".join(known) if len(known) < 6 else f"{known[0]}, {known[1]} … {known[-1]}"
            raise DataError(
                f"{path}: its class {key!r} is not one of the {len(known)} classes of the training images ({span}); "
                f"rename it, move it away, or train with images of this class"
            )
        paths.append(path)
        labels.append(label)
    return Images(paths, np.array(labels, np.int64))


def _read_test(part: Path, index: dict[str, int], maybe_2021: bool) -> tuple[Images, bool]:
    """Test images, and whether they lie as in 2021: testing/00 says nothing about their class."""
    direct = _images(part)
    if direct:
        keys = [_class_in(path) for path in direct]
        known = {key for key in keys if key is not None and _canonical(key) in index}
        if None not in keys and known:
            return _labelled([(p, k) for p, k in zip(direct, keys, strict=True) if k], index), False
        return Images(direct, None), False  # names such as 0001.jpg, or what a camera calls its pictures
    folders = [path for path in _folders(part) if _holds_image(path, below=True)]
    if len(folders) == 1 and (maybe_2021 or _canonical(folders[0].name) not in index):
        return Images(_images_below(folders[0]), None), maybe_2021
    return _labelled(_keyed(part), index), False


def _id_width(test: Images | None) -> int:
    """Width of the test files' names where all are numbers of one width, else the course's."""
    stems = [path.stem for path in test.paths] if test else []
    widths = {len(stem) for stem in stems if re.fullmatch(r"[0-9]+", stem)}
    return widths.pop() if len(widths) == 1 else ID_WIDTH
