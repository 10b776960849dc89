"""The course's files of HW4, read and written.

    metadata.json        {"n_mels": 40, "speakers": {id: [{"feature_path", "mel_len"}, ...]}}
    mapping.json         {"speaker2id": {id: 0 ...}, "id2speaker": {"0": id ...}}
    testdata.json        {"n_mels": 40, "utterances": [{"feature_path", "mel_len"}, ...]}
    uttr-<32 hex>.pt     (T, 40) float32, torch.save; natural log of mel power

What we wrote also has "source", the recording's path, in each entry, and in testdata.json "speaker" where it is known.

Imports neither torch nor Lightning at its head, as reading the lists needs neither.
"""

import filecmp
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import DataError, and_more
from datamodules.files.reading import read_text
from datamodules.files.staging import move_all, staging
from datamodules.speech import Part, audio
from datamodules.speech.tensor_file import read_tensor

LISTS: dict[Part, str] = {"train": "metadata.json", "test": "testdata.json"}
HEAD = 4096  # bytes of a list that hold its first entry


class Speakers(NamedTuple):
    """Labelled utterances in the order of metadata.json.

    speakers: ids in the order of mapping.json's numbers. labels: (N,) int64, each utterance's place in `speakers`.
    lengths: (N,) int64, frames as metadata.json says.
    """

    speakers: list[str]
    files: list[Path]
    labels: np.ndarray
    lengths: np.ndarray


class Unseen(NamedTuple):
    """Utterances of testdata.json in its order; names: the submission's Id, their feature_path or the
    recording they were made of; lengths: (N,) int64.

    speakers: ids, where we wrote them.
    """

    names: list[str]
    files: list[Path]
    lengths: np.ndarray
    speakers: list[str] | None


class Utterance(NamedTuple):
    """name: of its own among those of the part, the path of the recording; features: (T, 40) float32."""

    name: str
    features: np.ndarray
    speaker: str | None = None


class Entry(NamedTuple):
    """One utterance of a list: where it stands there, the feature_path and its parts, and all that is said of it."""

    place: str
    name: str
    parts: tuple[str, ...]
    fields: dict[str, Any]


# reading


def has_speakers(folder: Path) -> bool:
    """Whether a metadata.json or testdata.json of features lies in this very folder; looks at their beginning only."""
    for name in LISTS.values():
        try:
            with (folder / name).open("rb") as file:
                head = file.read(HEAD)
        except OSError:
            continue
        if b'"n_mels"' in head or b'"mel_len"' in head:
            return True
    return False


def read_speakers(folder: Path) -> Speakers:
    """Labelled utterances; the features themselves are not opened (see `check_lengths`).

    Raises:
        DataError: metadata.json or mapping.json is not as expected, lists sounds, they disagree, or a file is missing.
    """
    path = folder / "metadata.json"
    found, listed = read_list(path, "speakers")
    names = list(found["speakers"])
    order = read_mapping(folder / "mapping.json", names, "metadata.json")
    files, lengths = _features_there(folder, path, found, listed)
    ids = {speaker: number for number, speaker in enumerate(order)}
    labels = np.repeat([ids[name] for name in names], [len(found["speakers"][name]) for name in names])
    return Speakers(order, files, labels.astype(np.int64), lengths)


def read_test(folder: Path) -> Unseen:
    """Utterances of the test set; the features themselves are not opened (see `check_lengths`).

    Raises:
        DataError: testdata.json is not as expected, lists sounds, or a file is missing.
    """
    path = folder / "testdata.json"
    found, listed = read_list(path, "utterances")
    files, lengths = _features_there(folder, path, found, listed)
    return Unseen([_own_name(entry) for entry in listed], files, lengths, speakers_of(path, listed))


def _own_name(entry: Entry) -> str:
    """The recording that the features were made of, by which its owner knows it; else the features' file."""
    source = entry.fields.get("source")
    return source if isinstance(source, str) and source.lower().endswith(tuple(audio.ENDINGS)) else entry.name


def unlisted(folder: Path) -> list[str]:
    """Feature files right in the folder that neither metadata.json nor testdata.json names."""
    listed: set[str] = set()
    for part, key in (("train", "speakers"), ("test", "utterances")):
        path = folder / LISTS["train" if part == "train" else "test"]
        if path.is_file():
            listed |= {"/".join(entry.parts) for entry in read_list(path, key)[1]}
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".pt") and entry.name not in listed)


def read_mel(path: Path) -> np.ndarray:
    """(T, 40) float32 of one .pt file; a file with anything but a tensor in it is never run.

    Raises:
        DataError: code or other objects, not such a tensor, no frame, or a value that is no finite number.
        OSError: the file cannot be read.
    """
    return read_tensor(path, audio.MELS)


def check_lengths(utterances: Speakers | Unseen, lengths: Sequence[int] | np.ndarray) -> None:
    """Hold the frames of every file against what the list says.

    Raises:
        DataError: names the first file where they differ.
    """
    for file, said, length in zip(utterances.files, utterances.lengths, lengths, strict=True):
        if said != length:
            name = LISTS["train" if isinstance(utterances, Speakers) else "test"]
            raise DataError(f"{file}: {length} frames, but mel_len {said} in {name}; copy or make both again")


def check_speakers(utterances: Speakers, least: int = 2) -> None:
    """Hold the number of utterances of every speaker against `least`: with one, none can be held out.

    Raises:
        DataError: names the speakers with fewer.
    """
    counts = np.bincount(utterances.labels, minlength=len(utterances.speakers))
    if not (few := np.flatnonzero(counts < least).tolist()):
        return
    named = ", ".join(f"{utterances.speakers[k]} ({counts[k]})" for k in few[:5])
    more = f" and {len(few) - 5} more" if len(few) > 5 else ""
    raise DataError(
        f"{utterances.files[0].parent}: too few utterances of {named}{more}; expected {least} or more of each speaker, "
        "add some or take the speaker out of metadata.json and mapping.json"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: it is missing, or holds something else.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; copy or unpack the data again") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON ({error.msg}); copy or unpack it again") from None
    except (ValueError, RecursionError):  # such as a number of 5,000 digits
        raise DataError(f"{path}: no JSON; copy or unpack it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}; expected an object such as the course's {path.name}")
    return found


def read_list(path: Path, key: str) -> tuple[dict[str, Any], list[Entry]]:
    """All of the file, and its utterances: each with a feature_path inside the folder, none twice.

    Args:
        path: metadata.json or testdata.json, or one like it.
        key: speakers or utterances, whichever the file is to have.
    """
    found = read_json(path)
    content = found.get(key)
    if not isinstance(content, dict if key == "speakers" else list) or not content:
        shape = "each id with its utterances" if key == "speakers" else "a list of utterances"
        raise DataError(f'{path}: no "{key}"; expected {shape} there, copy or unpack it again')
    groups = content if isinstance(content, dict) else {"": content}
    listed = []
    for speaker, entries in groups.items():
        of = f" of {speaker}" if speaker else ""
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}: no utterances{of}; add some, or take the speaker out there and in mapping.json")
        for number, fields in enumerate(entries):
            place = f"utterance {number}{of}"  # counted as in the file, from 0
            name = fields.get("feature_path") if isinstance(fields, dict) else None
            if not isinstance(name, str):
                raise DataError(f'{path}: {place} has no "feature_path"; copy or unpack it again')
            listed.append(Entry(place, name, _inside(path, place, name), fields))
    if len({entry.parts for entry in listed}) < len(listed):
        parts, count = Counter(entry.parts for entry in listed).most_common(1)[0]
        places = " and ".join([entry.place for entry in listed if entry.parts == parts][:2])
        raise DataError(f"{path}: {'/'.join(parts)} stands there {count} times ({places}); take {count - 1} out")
    return found, listed


def _inside(path: Path, place: str, name: str) -> tuple[str, ...]:
    """Parts of a path that stays in the folder."""
    if re.fullmatch(r"[\w-]+\.pt", name):  # the course's, in a tenth of the time
        return (name,)
    # Windows' rules on every system: they know both slashes, drives and shares
    windows = PureWindowsPath(name)
    if windows.anchor or not windows.parts or ".." in windows.parts or "\0" in name:
        raise DataError(
            f"{path}: feature_path {name!r} of {place} leads outside the folder; expected a file in it, move the file "
            "there and name it so"
        )
    return windows.parts


def _features_there(
    folder: Path, path: Path, found: dict[str, Any], listed: list[Entry]
) -> tuple[list[Path], np.ndarray]:
    """Feature files, all of them there, and their lengths as the list says."""
    if any(_is_sound(entry) for entry in listed):
        source = path if path.name == LISTS["test"] else folder
        raise DataError(f"{path}: lists sounds, no features; run `leeml data prepare hw4_speaker --source {source}`")
    if (bands := found.get("n_mels")) != audio.MELS:
        raise DataError(f"{path}: n_mels is {bands}; expected {audio.MELS}, make the features again")
    for entry in listed:
        length = entry.fields.get("mel_len")
        if type(length) is not int or not 0 < length < 1 << 31:
            said = f"has mel_len {length}" if "mel_len" in entry.fields else 'has no "mel_len"'
            raise DataError(
                f"{path}: {entry.name} ({entry.place}) {said}; expected its frames, 1 or more, or take it out there"
            )
    there: dict[tuple[str, ...], set[str]] = {}
    missing = []
    for entry in listed:
        *above, name = entry.parts
        if tuple(above) not in there:  # one look at each folder, not one at each of 64,000 files
            place = folder.joinpath(*above)
            there[tuple(above)] = {file.name for file in os.scandir(place)} if place.is_dir() else set()
        if name not in there[tuple(above)]:
            missing.append(entry)
    if missing:
        raise DataError(
            f"{folder.joinpath(*missing[0].parts)}: missing{and_more(missing)}, but {path.name} names it "
            f"({missing[0].place}); copy or unpack the features again, or take the utterance out there"
        )
    lengths = np.array([entry.fields["mel_len"] for entry in listed], np.int64)
    return [folder.joinpath(*entry.parts) for entry in listed], lengths


def _is_sound(entry: Entry) -> bool:
    return "num_samples" in entry.fields or entry.name.lower().endswith(tuple(audio.ENDINGS))


def speakers_of(path: Path, listed: list[Entry]) -> list[str] | None:
    """Speakers of a test set, None where none is named."""
    speakers = [entry.fields.get("speaker") for entry in listed]
    if all(speaker is None for speaker in speakers):
        return None
    if bad := [entry for entry in listed if not isinstance(entry.fields.get("speaker"), str)]:
        raise DataError(
            f'{path}: {bad[0].name} ({bad[0].place}){and_more(bad)} has no "speaker"; name all of them or none'
        )
    return [str(speaker) for speaker in speakers]


def read_mapping(path: Path, speakers: Sequence[str], lister: str) -> list[str]:
    """Ids of the speakers in the order of their numbers; they are those that `lister` has utterances of."""
    found = read_json(path)
    ids = found.get("speaker2id")
    if not isinstance(ids, dict):
        raise DataError(f'{path}: no "speaker2id"; expected the number of each speaker there, copy or unpack it again')
    if lacking := [speaker for speaker in speakers if speaker not in ids]:
        raise DataError(
            f"{path}: no number of speaker {lacking[0]}{and_more(lacking)}, who has utterances in {lister}; take the "
            "mapping that belongs to it"
        )
    if extra := sorted(ids.keys() - set(speakers)):
        raise DataError(
            f"{path}: speaker {extra[0]}{and_more(extra)} has no utterances in {lister}; take the mapping that belongs "
            "to it"
        )
    if odd := [speaker for speaker, number in ids.items() if type(number) is not int]:
        raise DataError(
            f"{path}: speaker2id has {json.dumps(ids[odd[0]])[:40]} for speaker {odd[0]}{and_more(odd)}; expected a "
            f"whole number without quotes, 0 to {len(ids) - 1}"
        )
    by_number = {number: speaker for speaker, number in ids.items() if type(number) is int}
    if by_number.keys() != set(range(len(ids))):
        number = min(set(range(len(ids))) - by_number.keys())
        raise DataError(
            f"{path}: no speaker has number {number} in speaker2id; expected 0 to {len(ids) - 1}, each once, for "
            f"{len(ids)} speakers"
        )
    order = [by_number[number] for number in range(len(ids))]
    back = found.get("id2speaker", {str(number): speaker for number, speaker in by_number.items()})
    for number, speaker in enumerate(order):
        if not isinstance(back, dict) or len(back) != len(ids) or back.get(str(number)) != speaker:
            raise DataError(
                f"{path}: speaker2id has {speaker} as {number}, id2speaker has not; expected the one to be the other "
                "turned round"
            )
    return order


# writing


def write_dataset(
    folder: Path,
    part: Part,
    utterances: Iterable[Utterance],
    speakers: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write one part, beside the other one if that is there; its list appears when all its features have.

    Args:
        folder: Where the files are written.
        part: train (metadata.json and mapping.json) or test (testdata.json).
        utterances: At least one; those of train with their speakers.
        speakers: Those of train in the order of their numbers; default: sorted.
        notes: Lines for <part>_notes.txt, what was taken and what left out; see `read_notes`.

    Returns:
        The lists; the features lie beside them, named by part, speaker and name of the utterance.

    Raises:
        DataError: the part is there already, no utterance, one twice, or `speakers` are not those of the utterances.
    """
    refuse_existing(folder, part)
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder / f".{part}.part") as made:
        (made / "features").mkdir()
        lists = _lists(part, _write_each(made / "features", part, utterances), speakers)
        for name, content in lists.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (made / name).write_text(f"{text}\n", "utf-8", newline="\n")
        said = [f"{part}_notes.txt"] if notes else []
        for name in said:
            (made / name).write_text("".join(f"{line}\n" for line in notes), "utf-8", newline="\n")
        staged = sorted((made / "features").iterdir())
        there = {entry.name for entry in os.scandir(folder)}
        for path in staged:  # the same bytes are what a killed run had moved: they are replaced by themselves
            if path.name in there and not filecmp.cmp(path, folder / path.name, shallow=False):
                raise DataError(f"{folder / path.name}: there already; move it away, or name another folder")
        # last the list that says the part is there
        move_all((path, folder / path.name) for path in [*staged, *(made / name for name in (*said, *lists))])
    return [folder / name for name in reversed(lists)]


def read_notes(folder: Path, part: Part) -> list[str]:
    """What `write_dataset` was told of how the part was made; empty for the course's own files."""
    path = folder / f"{part}_notes.txt"
    return read_text(path).splitlines() if path.is_file() else []


def refuse_existing(folder: Path, part: Part) -> None:
    """Raise a DataError where a part is there already."""
    for name in [LISTS[part], *(["mapping.json"] if part == "train" else [])]:
        if (folder / name).exists():
            raise DataError(f"{folder / name}: there already; move it away, or name another folder")


def _write_each(made: Path, part: Part, utterances: Iterable[Utterance]) -> list[tuple[str | None, dict[str, Any]]]:
    """Write the features; speaker and entry of each."""
    import torch

    rows, digests = [], set()
    for name, features, speaker in utterances:
        digest = hashlib.blake2b("\0".join((part, speaker or "", name)).encode(), digest_size=16).hexdigest()
        if digest in digests:
            raise DataError(f"{name}: stands there twice{f' for speaker {speaker}' if speaker else ''}; rename one")
        digests.add(digest)
        file = made / f"uttr-{digest}.pt"
        torch.save(torch.from_numpy(np.ascontiguousarray(features, np.float32)), file)
        rows.append((speaker, {"feature_path": file.name, "mel_len": len(features), "source": name}))
    return rows


def _lists(
    part: Part, rows: list[tuple[str | None, dict[str, Any]]], speakers: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Contents of the part's lists by file name, last the one that makes the part be there."""
    if not rows:
        raise DataError(f"no utterance for {LISTS[part]}; expected one or more")
    if part == "test":
        utterances = [entry | ({} if speaker is None else {"speaker": speaker}) for speaker, entry in rows]
        return {LISTS[part]: {"n_mels": audio.MELS, "utterances": utterances}}
    if lone := [entry["source"] for speaker, entry in rows if speaker is None]:
        raise DataError(f"{lone[0]}: no speaker{and_more(lone)}; expected that of every training utterance")
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for speaker, entry in rows:
        by_speaker.setdefault(speaker or "", []).append(entry)
    order = sorted(by_speaker) if speakers is None else list(speakers)
    if sorted(order) != sorted(by_speaker):
        odd = sorted(set(order) ^ by_speaker.keys()) or [name for name, count in Counter(order).items() if count > 1]
        raise DataError(f"speaker {odd[0]}{and_more(odd)} is not on both sides; expected utterances of each one named")
    numbers = {speaker: number for number, speaker in enumerate(order)}
    return {
        "mapping.json": {"speaker2id": numbers, "id2speaker": {str(k): speaker for speaker, k in numbers.items()}},
        LISTS[part]: {"n_mels": audio.MELS, "speakers": {speaker: by_speaker[speaker] for speaker in order}},
    }
