"""Recordings of speakers turned into the course's files of HW4, from folders, lists and archives.

As speaker_folder, it imports neither torch nor Lightning at its head.
"""

import lzma
import math
import os
import shutil
import tarfile
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from datamodules.errors import DataError, and_more
from datamodules.files.download import unpack
from datamodules.speech import audio
from datamodules.speech.speaker_folder import (
    LISTS,
    Entry,
    Part,
    Utterance,
    read_json,
    read_list,
    read_mapping,
    refuse_existing,
    speakers_of,
    write_dataset,
)

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
BROKEN_TAR = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
SHARE = 1000  # recordings that must be there for each worker: it loads torch in the time that one makes as many
SILENCE = math.log(audio.FLOOR) + 1e-3  # no more in any band of any frame


class _Recording(NamedTuple):
    sound: Path
    name: str
    speaker: str | None


def prepare_recordings(source: Path, folder: Path, part: Part) -> list[Path]:
    """Turn recordings (wav or flac) into the layout, with the speakers also of a test part where they are known.

    A folder right above files is their speaker, at any depth; a test part may lie in one folder, and then has none.
    Where metadata.json or testdata.json lists the recordings, that list decides what is taken, and of whom; where
    mapping.json lies there, it decides the order of the speakers, else they are sorted, or as in metadata.json.

    Args:
        source: A folder, one with archives in it, an archive (tar or zip), or a testdata.json that lists recordings.
        folder: Where the layout is written, beside what is there of the other part.
        part: train or test.

    Returns:
        The lists, as `write_dataset`.

    Raises:
        DataError: names the file.
    """
    refuse_existing(folder, part)
    if not source.exists():
        raise DataError(f"{source}: no such folder, archive ({', '.join(ARCHIVES)}) or testdata.json")
    archives = _archives(source)
    lister = None if archives == [source] else _lister(source, part)
    if lister and all(lister.parent.joinpath(*entry.parts).is_file() for entry in _read_sounds(lister)):
        archives = []  # unpacked already
    unpacked = folder / f".{part}.source"
    origins = {unpacked / f"{number:06}": archive for number, archive in enumerate(archives)}
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        for place, archive in origins.items():
            _unpack(archive, place)
        homes = [*([] if archives == [source] else [source if source.is_dir() else source.parent]), *origins]
        if archives == [source]:
            homes = [_home(homes[0], part)]
            lister = _lister(homes[0], part)
        recordings = _listed(lister, homes) if lister else _walked(homes)
        return _prepare(recordings, homes[0], lister, folder, part, origins)
    except DataError as error:  # the files it names are gone when the user reads it
        raise DataError(_as_packed(str(error), origins)) from None
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _prepare(
    recordings: list[_Recording],
    home: Path,
    lister: Path | None,
    folder: Path,
    part: Part,
    origins: Mapping[Path, Path],
) -> list[Path]:
    for sound, name, speaker in recordings:
        try:
            f"{name}{speaker}".encode()
        except UnicodeEncodeError:
            raise DataError(f"{str(sound)!a}: its name is no UTF-8; rename it") from None
    order = None
    if part == "train":
        order = _order(recordings, home, lister)
    elif not lister and len({recording.sound.parent for recording in recordings}) == 1:
        recordings = [recording._replace(speaker=None) for recording in recordings]
    elif not lister and (lone := _lone(recordings)):
        raise DataError(
            f"{lone[0].sound}: no speaker's folder above it{and_more(lone)}, as others have; move it into one"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audio.warn_of_rates(recording.sound for recording in recordings)
    for warning in caught:
        warnings.warn(_as_packed(str(warning.message), origins), warning.category, stacklevel=3)
    # joblib's processes do not run the user's own script again
    workers = Parallel(n_jobs=max(1, min(cpu_count(), len(recordings) // SHARE)), return_as="generator")
    made = workers(delayed(_features)(recording.sound) for recording in recordings)
    with tqdm(made, total=len(recordings), desc="making features", leave=False) as bar:
        utterances = (Utterance(r.name, x, r.speaker) for r, x in zip(recordings, bar, strict=True))
        return write_dataset(folder, part, utterances, order)


def _features(sound: Path) -> np.ndarray:
    """Log-mel (T, 40) of one recording."""
    features = audio.log_mel(audio.read_audio(sound, warn=False))
    if features.max() < SILENCE:
        raise DataError(f"{sound}: silent, all {len(features)} frames lie at the floor; record it again or take it out")
    return features


def _order(recordings: list[_Recording], home: Path, lister: Path | None) -> list[str]:
    """Speakers of a training part in the order of their numbers."""
    if lone := _lone(recordings):
        if lister:
            raise DataError(f'{lister}: {lone[0].name}{and_more(lone)} has no "speaker"; name those of all utterances')
        raise DataError(f"{lone[0].sound}: no speaker's folder above it{and_more(lone)}; move it into one")
    speakers = list(dict.fromkeys(recording.speaker for recording in recordings if recording.speaker is not None))
    if len(speakers) == 1:
        raise DataError(
            f"{recordings[0].sound.parent}: all {len(recordings)} recordings are of one speaker, {speakers[0]}; "
            "expected two or more, each in a folder of its own"
        )
    if (mapping := home / "mapping.json").is_file():
        return read_mapping(mapping, speakers, lister.name if lister else "the folders beside it")
    return speakers if lister else sorted(speakers)


def _lone(recordings: list[_Recording]) -> list[_Recording]:
    return [recording for recording in recordings if recording.speaker is None]


def _lister(source: Path, part: Part) -> Path | None:
    """The file that lists the recordings: the source itself, or one that lies in it."""
    if source.is_file():
        return source
    names = [LISTS[part], "metadata.json"]  # a test part may be taken from labelled recordings too
    return next((path for name in names if (path := source / name).is_file()), None)


def _home(unpacked: Path, part: Part) -> Path:
    """The folder of an unpacked archive, or the one it is wrapped in where a list lies there."""
    inside = [path for path in unpacked.iterdir() if not _hidden(path.relative_to(unpacked))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and _lister(inside[0], part) else unpacked


def _read_sounds(lister: Path) -> list[Entry]:
    """Entries of a list of recordings.

    Raises:
        DataError: it lists features, or something else.
    """
    keys = [key for key in ("speakers", "utterances") if key in read_json(lister)]
    if not keys:
        raise DataError(
            f'{lister}: neither "speakers" nor "utterances"; expected a list of recordings, or move it away'
        )
    found, listed = read_list(lister, keys[0])
    if other := [entry for entry in listed if not entry.name.lower().endswith(tuple(audio.ENDINGS))]:
        hint = "its features are made already: use its folder as it is" if "n_mels" in found else "list recordings"
        raise DataError(f"{lister}: {other[0].name} ({other[0].place}){and_more(other)} is no wav or flac; {hint}")
    return listed


def _listed(lister: Path, homes: Sequence[Path]) -> list[_Recording]:
    """Recordings of a list, beside it or in one of the unpacked archives."""
    listed = _read_sounds(lister)
    if isinstance(groups := read_json(lister).get("speakers"), dict):
        speakers: Sequence[str | None] = [speaker for speaker, entries in groups.items() for _ in entries]
    else:
        speakers = speakers_of(lister, listed) or [None] * len(listed)
    found, missing = [], []
    for entry, speaker in zip(listed, speakers, strict=True):
        there = [path for home in homes if (path := home.joinpath(*entry.parts)).is_file()]
        if not there:
            missing.append(entry)
        elif len(there) > 1 and there[0] != homes[0].joinpath(*entry.parts):
            raise DataError(f"{there[1]}: {there[0]} is there too; move one of the two archives away")
        else:
            found.append(_Recording(there[0], "/".join(entry.parts), speaker))
    if missing:
        raise DataError(
            f"{lister.parent.joinpath(*missing[0].parts)}: missing{and_more(missing)}, but {lister.name} names it "
            f"({missing[0].place}); put it or the archive with it there, or take the utterance out of the list"
        )
    return found


def _walked(homes: Sequence[Path]) -> list[_Recording]:
    """All recordings below the folders by path, their speakers by the folder above; one path lies in one archive."""
    found: dict[str, _Recording] = {}
    for home in homes:
        files = {path for path in home.rglob("*") if not _hidden(path.relative_to(home)) and path.is_file()}
        stems: dict[Path, Path] = {}
        for path in sorted(files):
            # one copy of TIMIT has SA1.WAV.wav beside SA1.WAV
            if path.suffix.lower() not in audio.ENDINGS or path.with_suffix("") in files:
                continue
            if other := stems.get(path.with_suffix("")):
                raise DataError(f"{path}: {other.name} lies beside it; move one of the two away")
            stems[path.with_suffix("")] = path
            name = path.relative_to(home).as_posix()
            if name not in found:
                found[name] = _Recording(path, name, path.parent.name if path.parent != home else None)
            elif found[name].sound != homes[0] / name:
                raise DataError(f"{path}: {found[name].sound} is there too; move one of the two archives away")
    if not found:
        raise DataError(f"{homes[0]}: no sound file (wav or flac) in it; expected recordings, a folder a speaker")
    return [found[name] for name in sorted(found)]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


# archives


def _archives(source: Path) -> list[Path]:
    """Archives to open: the source itself, or those that lie in it."""
    if source.is_file():
        if source.name.lower().endswith(ARCHIVES):
            return [source]
        if source.suffix.lower() == ".json":
            return []
        raise DataError(f"{source}: expected a folder, an archive ({', '.join(ARCHIVES)}) or a testdata.json")
    inside = (path for path in sorted(source.iterdir()) if not path.name.startswith("."))
    return [path for path in inside if path.name.lower().endswith(ARCHIVES) and path.is_file()]


def _unpack(archive: Path, folder: Path) -> None:
    """Recordings and lists of an archive into `folder`.

    Raises:
        DataError: it is broken or cut, or a member is a link or would land outside the folder.
    """
    folder.mkdir(parents=True)
    if archive.suffix.lower() == ".zip":
        unpack(archive, folder)
        return
    wanted = (*audio.ENDINGS, ".json")
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PureWindowsPath(member.name)
                if name.anchor or ".." in name.parts or not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{archive}: its member {member.name!r} is a link or leads outside the folder; nothing was "
                        "unpacked"
                    )
                if member.isfile() and member.name.lower().endswith(wanted):
                    tar.extract(member, folder, filter="data")
            if tar.fileobj:  # tarfile takes the end of the file for that of the archive, which is a block of zeros
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise EOFError("it ends too early")
    except BROKEN_TAR as error:
        if isinstance(error, OSError) and error.errno is not None:  # such as a full disk; bz2 and gzip have no number
            where = folder.parent.parent
            raise DataError(f"{archive}: cannot be unpacked into {where}: {error.strerror or error}") from error
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DataError(f"{archive}: cannot be unpacked ({reason}); delete it and fetch it again") from error


def _as_packed(text: str, origins: Mapping[Path, Path]) -> str:
    """A message with the archives in the place of the folders they were unpacked to."""
    for place, archive in origins.items():
        text = text.replace(f"{place}{os.sep}", f"{archive}: ").replace(str(place), str(archive))
    return text
