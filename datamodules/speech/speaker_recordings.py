"""Recordings of speakers turned into the course's files of HW4, from folders, lists and archives.

As speaker_folder, it imports neither torch nor Lightning at its head.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed

from datamodules.errors import DataError, and_more
from datamodules.files import archives as packed
from datamodules.files.progress import progress
from datamodules.files.walk import Account, by_ending, files_below, is_hidden
from datamodules.speech import Part, audio, speakers
from datamodules.speech.speaker_folder import (
    LISTS,
    Entry,
    Utterance,
    read_json,
    read_list,
    read_mapping,
    refuse_existing,
    speakers_of,
    write_dataset,
)

SHARE = 1000  # recordings that must be there for each worker: it loads torch in the time that one makes as many
SILENCE = math.log(audio.FLOOR) + 1e-3  # no more in any band of any frame


class _Recording(NamedTuple):
    sound: Path
    name: str
    speaker: str | None


def prepare_recordings(source: Path, folder: Path, part: Part, level: int | None = None) -> list[Path]:
    """Turn recordings into the layout, with the speakers also of a test part where they are known.

    Who speaks is found in the folders (datamodules/speech/speakers.py) and printed, as is what was left out; a test
    part may lie in one folder, and then has no speakers. Where metadata.json or testdata.json lists the recordings,
    that list decides what is taken, and of whom; where mapping.json lies there, it decides the order of the speakers,
    else they are sorted, or as in metadata.json.

    Args:
        source: A folder, one with archives in it, an archive (tar or zip), or a testdata.json that lists recordings.
        folder: Where the layout is written, beside what is there of the other part.
        part: train or test.
        level: Which folder names the speaker: 1 the first below the source, -1 the one right above a recording.

    Returns:
        The lists, as `write_dataset`.

    Raises:
        DataError: names the file.
    """
    refuse_existing(folder, part)
    if not source.exists():
        raise DataError(f"{source}: no such folder, archive ({', '.join(packed.ENDINGS)}) or testdata.json")
    archives = _archives(source)
    lister = None if archives == [source] else _lister(source, part)
    if lister and all(lister.parent.joinpath(*entry.parts).is_file() for entry in _read_sounds(lister)):
        archives = []  # unpacked already
    with packed.opened(archives, folder / f".{part}.source") as inside:
        homes = [*([] if archives == [source] else [source if source.is_dir() else source.parent]), *inside.folders]
        if archives == [source]:
            homes = [_home(homes[0], part)]
            lister = _lister(homes[0], part)
        recordings, notes = _listed(lister, homes) if lister else _walked(homes, part, level)
        return _prepare(recordings, homes[0], lister, folder, part, inside, notes)


def _prepare(
    recordings: list[_Recording],
    home: Path,
    lister: Path | None,
    folder: Path,
    part: Part,
    inside: packed.Opened,
    notes: Sequence[str],
) -> list[Path]:
    notes = [inside.as_packed(note) for note in notes]
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
    print(*notes, sep="\n", file=sys.stderr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audio.warn_of_rates(recording.sound for recording in recordings)
    for warning in caught:
        warnings.warn(inside.as_packed(str(warning.message)), warning.category, stacklevel=3)
    # joblib's processes do not run the user's own script again
    workers = Parallel(n_jobs=max(1, min(cpu_count(), len(recordings) // SHARE)), return_as="generator")
    made = workers(delayed(_features)(recording.sound) for recording in recordings)
    with progress("making features", made, len(recordings)) as bar:
        utterances = (Utterance(r.name, x, r.speaker) for r, x in zip(recordings, bar, strict=True))
        return write_dataset(folder, part, utterances, order, notes)


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
            raise DataError(
                f'{lister}: {lone[0].name}{and_more(lone)} has no "speaker"; name those of all utterances, or make a '
                "test part of them, which needs no speakers (--split test)"
            )
        says = f", for which {LISTS['test']} is there" if (home / LISTS["test"]).is_file() else ""
        raise DataError(
            f"{lone[0].sound}: no speaker's folder above it{and_more(lone)}; move it into one, or make a test part, "
            f"which needs no speakers: --split test{says}"
        )
    order = list(dict.fromkeys(recording.speaker for recording in recordings if recording.speaker is not None))
    if len(order) == 1:
        raise DataError(
            f"{recordings[0].sound.parent}: all {len(recordings)} recordings are of one speaker, {order[0]}; "
            "expected two or more, each in a folder of its own (--speaker_level N says which folders)"
        )
    if (mapping := home / "mapping.json").is_file():
        return read_mapping(mapping, order, lister.name if lister else "the folders beside it")
    return order if lister else sorted(order)


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
    inside = [path for path in unpacked.iterdir() if not is_hidden(path.name)]
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
        raise DataError(
            f"{lister}: {other[0].name} ({other[0].place}){and_more(other)} is no wav, flac or other sound that is "
            f"read; {hint}"
        )
    return listed


def _listed(lister: Path, homes: Sequence[Path]) -> tuple[list[_Recording], list[str]]:
    """Recordings of a list, beside it or in one of the unpacked archives, and what to say of them."""
    listed = _read_sounds(lister)
    if isinstance(groups := read_json(lister).get("speakers"), dict):
        said: Sequence[str | None] = [speaker for speaker, entries in groups.items() for _ in entries]
    else:
        said = speakers_of(lister, listed) or [None] * len(listed)
    found, missing = [], []
    for entry, speaker in zip(listed, said, strict=True):
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
    account = Account("recordings", len(found))
    taken = {recording.sound for recording in found}
    sounds = [path for home in homes for path in files_below(home).files if path.suffix.lower() in audio.ENDINGS]
    others = _within([path for path in sounds if path not in taken], homes)
    account.leave(f"not in {lister.name}; add them there", others)
    return found, _notes(account, found, lister.name)


def _walked(homes: Sequence[Path], part: Part, level: int | None) -> tuple[list[_Recording], list[str]]:
    """All recordings below the folders by path with their speakers, and what to say; one path lies in one archive."""
    account = Account("recordings")
    found: dict[str, Path] = {}
    others: list[Path] = []
    twins: list[Path] = []
    every: list[Path] = []
    for home in homes:
        # archives that lie in the source were unpacked, lists were looked at
        below = files_below(home)
        files = [path for path in below.files if path.parent != home or not _is_known(path)]
        account.leave("no regular files; move them away", _within(below.odd, homes))
        audio.refuse_foreign(files)
        every += files
        stems: dict[Path, Path] = {}
        there = set(files)
        for path in files:
            if path.suffix.lower() not in audio.ENDINGS:
                others.append(path)
                continue
            if path.with_suffix("") in there:  # one copy of TIMIT has SA1.WAV.wav beside SA1.WAV
                twins.append(path)
                continue
            if other := stems.get(path.with_suffix("")):
                raise DataError(f"{path}: {other.name} lies beside it; move one of the two away")
            stems[path.with_suffix("")] = path
            name = path.relative_to(home).as_posix()
            if name not in found:
                found[name] = path
            elif found[name] != homes[0] / name:
                raise DataError(f"{path}: {found[name]} is there too; move one of the two archives away")
    if not found:
        there_is = f" (here: {', '.join(e or 'no ending' for e in by_ending(others))})" if others else ""
        raise DataError(
            f"{homes[0]}: no sound file (wav, flac, mp3, ogg, ...) in it{there_is}; expected recordings, a folder a "
            "speaker"
        )
    names = sorted(found)
    if table := speakers.read_tables(every):
        others = [path for path in others if path.suffix.lower() != ".tsv"]
        unknown = [name for name in names if Path(name).name not in table.speaker]
        account.leave(f"not in {', '.join(table.tables)}; add them there", unknown)
        names = [name for name in names if Path(name).name in table.speaker]
        of: list[str | None] = [table.speaker[Path(name).name] for name in names]
        how = f"client_id of {', '.join(table.tables)}"
        if not names:
            raise DataError(f"{table.folder}: {', '.join(table.tables)} name none of the {len(unknown)} recordings")
    else:
        of, how = speakers.speakers_of(names, level, str(homes[0]))
    account.read = len(names)
    account.leave("copies of a recording beside them", _within(twins, homes))
    for ending, paths in by_ending(others).items():
        account.leave(f"no sounds ({ending or 'no ending'})", _within(paths, homes))
    recordings = [_Recording(found[name], name, speaker) for name, speaker in zip(names, of, strict=True)]
    more = () if table else (speakers.parts_joined(names, of), speakers.parts_mixed(names))
    return recordings, [*_notes(account, recordings, how), *filter(None, more)]


def _notes(account: Account, recordings: Sequence[_Recording], how: str) -> list[str]:
    """What was understood, line by line."""
    of = [recording.speaker for recording in recordings]
    return [*([speakers.describe(of, how)] if any(of) else []), str(account)]


def _within(paths: Sequence[Path], homes: Sequence[Path]) -> list[str]:
    """Paths below one of the folders, from there on; what lies in several archives counts once."""
    inside = (next(path.relative_to(home) for home in homes if path.is_relative_to(home)) for path in paths)
    return list(dict.fromkeys(path.as_posix() for path in inside))


def _is_known(path: Path) -> bool:
    """Whether a file beside the recordings is an archive or a list, which were looked at before."""
    lists = {*LISTS.values(), "mapping.json"}
    return path.name in lists or path.name.lower().endswith(packed.ENDINGS)


# archives


def _archives(source: Path) -> list[Path]:
    """Archives to open: the source itself, or those that lie in it."""
    if source.is_file():
        if source.name.lower().endswith(packed.ENDINGS):
            return [source]
        if source.suffix.lower() == ".json":
            return []
        raise DataError(f"{source}: expected a folder, an archive ({', '.join(packed.ENDINGS)}) or a testdata.json")
    return packed.archives_in(source)
