"""The course's files of HW2, read and written: LibriPhone's layout of 2022/23, TIMIT-11 of 2021, raw recordings.

    feat/<split>/<utterance>.pt   (T, 39) float32, torch.save
    <split>_split.txt             one utterance a line; the order of the submission
    <split>_labels.txt            utterance, then the class of each frame
    phones.txt, speakers.txt      only where we wrote the layout: class names in order; utterance and speaker
    <split>_notes.txt             likewise: what was taken of the recordings, and what left out

Imports neither torch nor Lightning at its head: workers that make features import this file.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed

from datamodules.errors import DataError, and_more
from datamodules.files.archives import opened
from datamodules.files.progress import progress
from datamodules.files.reading import GB, in_words, read_text, require_regular
from datamodules.files.staging import move_all, staging
from datamodules.files.walk import Account, by_ending, files_below
from datamodules.speech import Part, audio, phones
from datamodules.speech.speakers import describe, parts_joined, parts_mixed, speakers_of
from datamodules.speech.tensor_file import read_tensor

WIDTH = 39  # features a frame
TIMIT_FRAMES, TIMIT_CLASSES = 11, 39
BLOCK = 1 << 14  # rows of TIMIT-11 checked at once: 28 MB
LARGEST = 32 * GB  # bytes of TIMIT-11's arrays, of which the course's have 2
SHARE = 250  # recordings that must be there for each worker: with fewer, its start takes longer than its work


class UtteranceList(NamedTuple):
    """Utterances of one part in the order of its split file; labels: class of each frame, (T,) int64 by utterance.

    unnamed: feature files that the split file does not name.
    """

    names: list[str]
    files: list[Path]
    labels: list[np.ndarray] | None
    speakers: list[str] | None
    unnamed: Sequence[str] = ()


class Utterance(NamedTuple):
    """features (T, 39) float32, labels (T,) int; speaker where it is known."""

    name: str
    features: np.ndarray
    labels: np.ndarray | None = None
    speaker: str | None = None


# reading


def read_split(folder: Path, part: Part) -> list[str]:
    """Utterance names of <part>_split.txt.

    Raises:
        DataError: none there, a name twice, or more than a name on a line.
    """
    path = folder / f"{part}_split.txt"
    lines = _lines(path)
    for number, line in lines:
        if len(line.split()) != 1 or Path(line).name != line:
            raise DataError(f"{path}, line {number}: {_cut(line)!r}; expected the name of an utterance alone")
    names = [line for _, line in lines]
    if not names:
        raise DataError(f"{path}: empty; expected the name of an utterance a line")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {name} stands there {count} times; take {count - 1} out")
    return names


def read_labels(path: Path, classes: int | None = None) -> dict[str, np.ndarray]:
    """Class of each frame, (T,) int64, by utterance, from lines `utterance class class ...`.

    Args:
        path: The file.
        classes: Number of classes; ids lie below it.

    Raises:
        DataError: a line without labels, an id that is none, or an utterance twice; says where.
    """
    found: dict[str, np.ndarray] = {}
    for line, text in _lines(path):
        name, *fields = text.split()
        place = f"{path}, line {line}: utterance {name}"
        if name in found:
            raise DataError(f"{place} stands there a second time; take one out")
        if not fields:
            raise DataError(f"{place} has no labels; expected the class of each frame, or take the utterance out")
        try:
            ids = np.array([int(field) for field in fields])
        except (ValueError, OverflowError):
            raise DataError(f"{place} has a label that is no whole number; expected class ids") from None
        bad = (ids < 0) | (ids >= (classes or np.inf))
        if bad.any():
            span = f"0 to {classes - 1}" if classes else "0 or more"
            raise DataError(f"{place} has class {ids[bad][0]} at frame {bad.argmax()}; expected {span}")
        found[name] = ids
    return found


def read_features(path: Path) -> np.ndarray:
    """(T, 39) float32 of one .pt file; a file with anything but a tensor in it is never run.

    Raises:
        DataError: code or other objects, not such a tensor, no frame, or a value that is no finite number.
        OSError: the file cannot be read.
    """
    return read_tensor(path, WIDTH)


def read_layout(folder: Path, part: Part, classes: int | None = None) -> UtteranceList:
    """Names, files, labels and speakers of one part; the features themselves are not opened (see `check_lengths`).

    Args:
        folder: Holds feat/ and the text files.
        part: train or test.
        classes: Number of classes; default: lines of phones.txt, else whatever the labels say.

    Raises:
        DataError: an utterance is missing on one side, or a file is not as expected.
    """
    names = read_split(folder, part)
    files = [folder / "feat" / part / f"{name}.pt" for name in names]
    there = {entry.name for entry in os.scandir(folder / "feat" / part)} if (folder / "feat" / part).is_dir() else set()
    if missing := [file for file in files if file.name not in there]:
        raise DataError(
            f"{missing[0]}: missing{and_more(missing)}, but {part}_split.txt names it; unpack the features again, or "
            "take the utterance out there"
        )
    labels = None
    if (path := folder / f"{part}_labels.txt").is_file():
        by_name = read_labels(path, classes or len(read_phones(folder) or []) or None)
        if unlabelled := [name for name in names if name not in by_name]:
            raise DataError(f"{path}: no labels of {unlabelled[0]}{and_more(unlabelled)}, which {part}_split.txt names")
        if extra := list(by_name.keys() - set(names)):
            raise DataError(f"{path}: labels of {min(extra)}{and_more(extra)}, which {part}_split.txt does not name")
        labels = [by_name[name] for name in names]
    elif part == "train":
        raise DataError(f"{path}: missing; the class of each training frame is expected there")
    known = _read_speakers(folder)
    unnamed = sorted(name for name in there - {file.name for file in files} if name.endswith(".pt"))
    speakers = [known[name] for name in names] if all(name in known for name in names) else None
    return UtteranceList(names, files, labels, speakers, unnamed)


def check_lengths(split: UtteranceList, lengths: Sequence[int]) -> None:
    """Hold the number of labels of every utterance against that of its frames.

    Raises:
        DataError: names the first utterance where they differ.
    """
    for name, file, labels, length in zip(split.names, split.files, split.labels or [], lengths, strict=True):
        if len(labels) != length:
            raise DataError(
                f"{file}: {length} frames, but {len(labels)} labels of utterance {name}; expected one a frame, make or "
                "copy both again"
            )


def read_phones(folder: Path) -> list[str] | None:
    """Class names of phones.txt; None where the file is not there, as in the course's own data."""
    path = folder / "phones.txt"
    return [line for _, line in _lines(path)] if path.is_file() else None


def read_notes(folder: Path, part: Part) -> list[str]:
    """What `write_layout` was told of how the part was made; empty for the course's own files."""
    path = folder / f"{part}_notes.txt"
    return read_text(path).splitlines() if path.is_file() else []


def _read_speakers(folder: Path) -> dict[str, str]:
    path = folder / "speakers.txt"
    if not path.is_file():
        return {}
    rows = [(number, line.split()) for number, line in _lines(path)]
    if bad := [number for number, fields in rows if len(fields) != 2]:
        raise DataError(f"{path}, line {bad[0]}: expected an utterance and its speaker")
    return {name: speaker for _, (name, speaker) in rows}


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; copy or unpack the data again") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


class Timit11(NamedTuple):
    """train (N, 429) memory map, labels (N,) int64, test (M, 429) memory map: 11 frames of 39 in a row."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray


def read_timit11(folder: Path) -> Timit11:
    """train_11.npy, train_label_11.npy and test_11.npy of 2021; every value is looked at, little stays in memory.

    Raises:
        DataError: a file is missing, holds objects, or has not the expected shape, ids 0 to 38 or finite numbers.
    """
    train, test = (read_windows(folder / f"{part}_11.npy") for part in ("train", "test"))
    path = folder / "train_label_11.npy"
    raw = _npy(path)
    try:
        labels = np.asarray(raw).astype(np.int64, casting="unsafe" if raw.dtype.kind in "US" else "safe")
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{path}: not all labels are whole numbers (type {raw.dtype}); get the file again") from None
    if labels.shape != (len(train),):
        raise DataError(f"{path}: shape {labels.shape}, but train_11.npy has {len(train)} rows; expected a label a row")
    bad = (labels < 0) | (labels >= TIMIT_CLASSES)
    if bad.any():
        raise DataError(f"{path}: class {labels[bad][0]} in row {bad.argmax()}; expected 0 to {TIMIT_CLASSES - 1}")
    return Timit11(train, labels, test)


def _npy(path: Path) -> np.ndarray:
    try:
        if (size := require_regular(path).st_size) > LARGEST:
            raise DataError(f"{path}: {in_words(size)}, at most {in_words(LARGEST)} are read; take a part of its rows")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; unpack timit_11 again") from None
    except (ValueError, EOFError):
        raise DataError(f"{path}: cannot be read as a .npy file of plain numbers; unpack timit_11 again") from None


def read_windows(path: Path) -> np.ndarray:
    """Rows (N, 429) of TIMIT-11 as a memory map; every value is looked at, little stays in memory.

    Raises:
        DataError: the file is missing, holds objects, or has not the expected shape or finite numbers.
    """
    rows = _npy(path)
    width = TIMIT_FRAMES * WIDTH
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows) or rows.dtype.kind != "f":
        raise DataError(f"{path}: {rows.dtype} of shape {rows.shape}; expected floats, rows x {width}")
    for start in range(0, len(rows), BLOCK):
        # a map opened for each block: pages seen through one map would stay in memory
        with np.errstate(over="ignore"):  # finite in the type that is trained in
            block = np.load(path, mmap_mode="r")[start : start + BLOCK].astype(np.float32)
        finite = np.isfinite(block).all(1)
        if not finite.all():
            raise DataError(f"{path}: row {start + finite.argmin()} has a value that is no finite number; get it again")
    return rows


# writing


def write_layout(
    folder: Path, part: Part, utterances: Iterable[Utterance], names: Sequence[str], notes: Sequence[str] = ()
) -> list[Path]:
    """Write one part of the layout, beside the other one if that is there; it appears when it is whole.

    Args:
        folder: Of the layout.
        part: train or test.
        utterances: All with labels, or none.
        names: Of the classes, for phones.txt.
        notes: Lines for <part>_notes.txt, what was taken and what left out, read when all utterances have been.

    Returns:
        The text files and the folder of the features.

    Raises:
        DataError: the part is there already, or the folder has other classes.
    """
    features = folder / "feat" / part
    texts = {name: folder / name for name in (f"{part}_labels.txt", f"{part}_split.txt")}
    for path in (features, *texts.values()):
        if path.exists():
            raise DataError(f"{path}: there already; move it away, or name another folder")
    if (there := read_phones(folder)) not in (None, list(names)):
        raise DataError(
            f"{folder / 'phones.txt'}: {len(there or [])} classes, not the {len(names)} asked for; use the same "
            "classes for train and test, or another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder / f".{part}.part") as made:
        (made / "feat").mkdir()
        rows = list(_write_each(made / "feat", utterances))
        lines = {f"{part}_split.txt": [name for name, _, _ in rows], "phones.txt": list(names)}
        if all(labels is not None for _, labels, _ in rows):
            lines[f"{part}_labels.txt"] = [f"{name} {labels}" for name, labels, _ in rows]
        speakers = _read_speakers(folder) | {name: speaker for name, _, speaker in rows if speaker is not None}
        if speakers:
            lines["speakers.txt"] = [f"{name} {speaker}" for name, speaker in speakers.items()]
        if notes:
            lines[f"{part}_notes.txt"] = list(notes)
        for name, content in lines.items():
            (made / name).write_text("".join(f"{line}\n" for line in content), "utf-8", newline="\n")
        features.parent.mkdir(exist_ok=True)
        order = sorted(lines, key=lambda name: name == f"{part}_split.txt")  # last the one that says the part is there
        move_all([(made / "feat", features), *((made / name, folder / name) for name in order)])
    return [features, *(folder / name for name in order)]


def _write_each(made: Path, utterances: Iterable[Utterance]) -> Iterator[tuple[str, str | None, str | None]]:
    """Write the features; yields name, labels as text, and speaker."""
    import torch

    for name, features, labels, speaker in utterances:
        torch.save(torch.from_numpy(np.ascontiguousarray(features, np.float32)), made / f"{name}.pt")
        yield name, None if labels is None else " ".join(map(str, labels.tolist())), speaker


class _Recording(NamedTuple):
    sound: Path
    alignment: Path
    name: str
    speaker: str | None


def prepare_recordings(
    source: Path,
    folder: Path,
    part: Part,
    size: phones.PhoneSet = 39,
    level: int | None = None,
    labels: phones.Labels = phones.NO_LABELS,
) -> list[Path]:
    """Turn recordings and their phone alignments into the layout, with the labels also of a test part.

    Each recording has a .phn or TextGrid of the same name beside it. Where they lie in several folders, one of these is
    the speaker (datamodules/speech/speakers.py) and, with what is below it, part of the utterance's name:
    dr1-mcpm0/sa1.wav is dr1-mcpm0_sa1. What was understood and what was left out is printed.

    Args:
        source: A folder, or an archive of one.
        folder: Where the layout is written.
        part: train or test.
        size: 39, 48 or 61 classes.
        level: Which folder names the speaker: 1 the first below the source, -1 the one right above a recording.
        labels: How the labels of the alignments are read.

    Returns:
        What was written.

    Raises:
        DataError: names the file, and the line of an alignment.
    """
    if not source.is_file():
        return _prepare(source, folder, part, size, level, labels)
    with opened([source], folder / f".{part}.source") as archive:
        return _prepare(archive.folders[0], folder, part, size, level, labels)


def _prepare(
    source: Path, folder: Path, part: Part, size: phones.PhoneSet, level: int | None, labels: phones.Labels
) -> list[Path]:
    recordings, notes = _find(source, level)
    print(*notes, sep="\n", file=sys.stderr)
    audio.warn_of_rates(recording.sound for recording in recordings)
    names = phones.classes(size)
    ids = {phone: names.index(folded) for phone, folded in phones.FOLDED[size].items()}
    # joblib's processes do not run the user's own script again
    workers = Parallel(n_jobs=max(1, min(cpu_count(), len(recordings) // SHARE)), return_as="generator")
    made = workers(delayed(_features)(recording.sound, recording.alignment, ids, labels) for recording in recordings)
    mapped: Counter[str] = Counter()

    def utterances() -> Iterator[Utterance]:
        with progress("making features", made, len(recordings)) as bar:
            for recording, (x, y, others) in zip(recordings, bar, strict=True):
                mapped.update(others)
                yield Utterance(recording.name, x, y, recording.speaker)
        if mapped:
            listed = ", ".join(f"{label} ({count:,})" for label, count in mapped.most_common())
            notes.append(f"labels taken for another phone: {listed}; --phone_table FILE for others")
            print(notes[-1], file=sys.stderr)

    return write_layout(folder, part, utterances(), names, notes)


def _features(
    sound: Path, alignment: Path, ids: dict[str, int], labels: phones.Labels
) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Normalised features (T, 39) and class ids (T,) of one recording; which labels stood for another phone."""
    samples = audio.read_audio(sound, warn=False)
    segments, mapped = phones.read_segments(alignment, audio.rate_of(sound), len(samples) / audio.RATE, labels)
    features = audio.normalise(audio.mfcc(samples))
    found = phones.frame_labels(segments, audio.frame_centres(len(features)) / audio.RATE)
    return features, np.array([ids[phone] for phone in found]), mapped


def _find(source: Path, level: int | None) -> tuple[list[_Recording], list[str]]:
    """Sound files below `source` with their alignments, by name, and what to say of them.

    Raises:
        DataError: none there, one without the other, or two that would have one name.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder, zip or tar")
    below = files_below(source)
    audio.refuse_foreign(below.files)
    there = set(below.files)  # one copy of TIMIT has SA1.WAV.wav beside SA1.WAV
    sounds = [
        path for path in below.files if path.suffix.lower() in audio.ENDINGS and path.with_suffix("") not in there
    ]
    stems: dict[Path, Path] = {}
    for path in sounds:
        if other := stems.get(path.with_suffix("")):
            raise DataError(f"{path}: {other.name} lies beside it; move one of the two away")
        stems[path.with_suffix("")] = path
    alignments: dict[Path, Path] = {}
    for path in below.files:
        if path.suffix.lower() in phones.ENDINGS:
            if other := alignments.get(path.with_suffix("")):
                raise DataError(f"{path}: {other.name} lies beside it; move one of the two alignments away")
            alignments[path.with_suffix("")] = path
    if not sounds:
        raise DataError(
            f"{source}: no sound file (wav, flac, mp3, ogg, ...) in it; expected recordings with .phn or TextGrid "
            "beside"
        )
    if lone := [path for path in sounds if path.with_suffix("") not in alignments]:
        raise DataError(
            f"{lone[0]}: no alignment beside it{and_more(lone)}; expected {lone[0].stem}.phn or .TextGrid, or move the "
            "recording away"
        )
    if lone := sorted(alignments[stem] for stem in alignments.keys() - stems.keys()):
        raise DataError(f"{lone[0]}: no recording beside it{and_more(lone)}; expected {lone[0].stem}.wav or .flac")
    paths = [path.relative_to(source).as_posix() for path in sounds]
    of, how = speakers_of(paths, level, str(source))
    if len({path.parent for path in sounds}) == 1 and level is None:  # they lie in one folder, which says nothing
        of = [None] * len(sounds)
    found: dict[str, _Recording] = {}
    for path, folders, who in zip(sounds, (Path(path).parent.parts for path in paths), of, strict=True):
        speaker = None if who is None else "_".join(who.split())
        # what lies between the speaker and the recording tells two of one name apart
        inner = folders[folders.index(who) + 1 :] if who in folders else ()
        name = "_".join(word for text in (speaker or "", *inner, path.stem) for word in text.split())
        if name in found:
            raise DataError(f"{path}: would be called {name} as {found[name].sound} is; rename one, or move it away")
        found[name] = _Recording(path, alignments[path.with_suffix("")], name, speaker)
    account = Account("recordings", len(found))
    account.leave("no regular files; move them away", [path.relative_to(source) for path in below.odd])
    taken = {*sounds, *alignments.values()}
    for ending, left in by_ending([path for path in below.files if path not in taken]).items():
        account.leave(f"no sounds or alignments ({ending or 'no ending'})", [path.relative_to(source) for path in left])
    notes = [describe(of, how)] if any(of) else []
    notes += [str(account), *filter(None, (parts_joined(paths, of), parts_mixed(paths)))]
    return list(found.values()), notes
