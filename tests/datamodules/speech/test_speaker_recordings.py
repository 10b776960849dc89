"""datamodules/speech/speaker_recordings.py: recordings become course files, from folders, lists and archives."""

import contextlib
import io
import json
import math
import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import joblib
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import get_window
from speaker_files import contents, write_folder

from datamodules.errors import DataError
from datamodules.files.archives import unpack
from datamodules.speech import Part, speaker_recordings
from datamodules.speech.audio import log_mel, read_audio
from datamodules.speech.speaker_folder import (
    check_lengths,
    read_mel,
    read_speakers,
    read_test,
)
from datamodules.speech.speaker_recordings import prepare_recordings


def noise(path: Path, rate: int = 16000, seconds: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = 0.1 * np.random.default_rng(len(str(path.name))).standard_normal(int(rate * seconds))
    soundfile.write(path, sound, rate)
    return path


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two speakers at different depths, and what else lies in such folders."""
    source = tmp_path / "source"
    noise(source / "s2" / "x.wav")
    noise(source / "s2" / "yy.FLAC")
    noise(source / "dev" / "s1" / "x.wav")
    noise(source / "dev" / "s1" / "SA1.WAV")
    noise(source / "dev" / "s1" / "SA1.WAV.wav")
    noise(source / "__MACOSX" / "s1" / "x.wav")
    noise(source / ".trash" / "s3" / "x.wav")
    (source / "s2" / "._x.wav").write_bytes(b"of a Mac")
    (source / "s2" / "x.txt").write_text("words")
    return source


NAMES = ["dev/s1/SA1.WAV", "dev/s1/x.wav", "s2/x.wav", "s2/yy.FLAC"]


def sources(folder: Path, part: Part = "train") -> list[str]:
    name, key = ("metadata.json", "speakers") if part == "train" else ("testdata.json", "utterances")
    content = json.loads((folder / name).read_text())[key]
    rows = [entry for rows in content.values() for entry in rows] if part == "train" else content
    return [entry["source"] for entry in rows]


def pack(source: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with ZipFile(archive, "w") as zipped:
            for path in source.rglob("*.*"):
                zipped.write(path, path.relative_to(source))
    else:
        mode: Any = "w" if archive.suffix == ".tar" else "w:gz"
        with tarfile.open(archive, mode) as tar:
            tar.add(source, ".")
    return archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "Dataset")


class TestPrepare:
    def assert_refused(self, message: str, source: Path, part: Part = "train") -> None:
        out = source.parent / "refused"
        with pytest.raises(DataError, match=message) as caught:
            prepare_recordings(source, out, part)
        assert "\n" not in str(caught.value)
        assert ".source" not in str(caught.value)  # a folder that is gone
        assert not out.exists() or list(out.iterdir()) == []

    def test_a_folder_a_speaker(self, recordings: Path, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepare_recordings(recordings, tmp_path / "out", "train")
        found = read_speakers(tmp_path / "out")
        assert found.speakers == ["s1", "s2"]
        assert found.labels.tolist() == [0, 0, 1, 1]
        assert found.lengths.tolist() == [21] * 4  # 1 + 3200 // 160
        assert sources(tmp_path / "out") == NAMES
        expected = log_mel(read_audio(recordings / "s2" / "yy.FLAC"))
        assert np.array_equal(read_mel(found.files[3]), expected)

    @pytest.mark.parametrize("name", ["my.tar", "my.tar.gz", "MY.TGZ", "my.zip"])
    def test_archives_hold_the_same(self, recordings: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / "outer").mkdir()
        recordings.rename(tmp_path / "outer" / "inner")
        prepare_recordings(tmp_path / "outer", tmp_path / "one", "train")
        prepare_recordings(pack(tmp_path / "outer", tmp_path / name), tmp_path / "two", "train")
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_a_folder_of_archives(self, recordings: Path, tmp_path: Path) -> None:
        """Also where one of them is unpacked beside it."""
        prepare_recordings(recordings, tmp_path / "one", "train")
        packed = tmp_path / "packed"
        for name in ("s2", "dev"):
            (tmp_path / name).mkdir()
            shutil.copytree(recordings / name, tmp_path / name / name)
        packed.mkdir()
        pack(tmp_path / "s2", packed / "1.tar")
        pack(tmp_path / "dev", packed / "2.zip")
        prepare_recordings(packed, tmp_path / "two", "train")
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
        shutil.copytree(recordings / "s2", packed / "s2")
        prepare_recordings(packed, tmp_path / "three", "train")
        assert contents(tmp_path / "one") == contents(tmp_path / "three")
        shutil.copy(packed / "1.tar", packed / "1b.tar")
        prepare_recordings(packed, tmp_path / "four", "train")  # the unpacked ones stand for both
        shutil.rmtree(packed / "s2")
        self.assert_refused(r"packed/1b\.tar: s2/x\.wav: .*packed/1\.tar: s2/x\.wav is there too; move one", packed)

    def test_the_right_one_of_many_archives_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "packed").mkdir()
        for n in range(12):
            noise(tmp_path / f"s{n}" / "s" / "x.wav")
            if n == 10:
                (tmp_path / "s10" / "s" / "x.wav").write_bytes(b"broken")
            (tmp_path / f"s{n}" / "s").rename(tmp_path / f"s{n}" / f"speaker{n}")
            pack(tmp_path / f"s{n}", tmp_path / "packed" / f"{n:02}.tar")
        self.assert_refused(r"^/.*/packed/10\.tar: speaker10/x\.wav: cannot be read", tmp_path / "packed")

    def test_speakers_are_sorted(self, recordings: Path, tmp_path: Path) -> None:
        noise(recordings / "test" / "s9" / "x.wav")
        prepare_recordings(recordings, tmp_path / "out", "train")
        found = read_speakers(tmp_path / "out")
        assert (found.speakers, found.labels.tolist()) == (["s1", "s2", "s9"], [0, 0, 1, 1, 2])

    def test_workers_do_the_same(self, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Threads here: processes would load torch for ten seconds; test_libriphone.py has them."""
        prepare_recordings(recordings, tmp_path / "one", "train")
        jobs = []

        def parallel(n_jobs: int, **kwargs: Any) -> joblib.Parallel:
            jobs.append(n_jobs)
            return joblib.Parallel(n_jobs, **kwargs)

        monkeypatch.setattr(speaker_recordings, "SHARE", 2)
        monkeypatch.setattr(speaker_recordings, "cpu_count", lambda: 8)
        monkeypatch.setattr(speaker_recordings, "Parallel", parallel)
        with joblib.parallel_config(backend="threading"):
            prepare_recordings(recordings, tmp_path / "two", "train")
            soundfile.write(recordings / "s2" / "yy.FLAC", np.zeros(3200), 16000)
            self.assert_refused(r"s2/yy\.FLAC: silent", recordings)
        assert jobs == [2, 2]  # four recordings
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_test_parts(self, recordings: Path, tmp_path: Path) -> None:
        prepare_recordings(recordings, tmp_path / "out", "train")
        assert prepare_recordings(recordings, tmp_path / "out", "test") == [tmp_path / "out" / "testdata.json"]
        found = read_test(tmp_path / "out")
        assert found.speakers == ["s1", "s1", "s2", "s2"]
        assert not set(found.files) & set(read_speakers(tmp_path / "out").files)
        prepare_recordings(recordings / "s2", tmp_path / "flat", "test")
        assert read_test(tmp_path / "flat").speakers is None
        assert sources(tmp_path / "flat", "test") == ["x.wav", "yy.FLAC"]
        prepare_recordings(pack(recordings / "s2", tmp_path / "s2.tar"), tmp_path / "packed", "test")
        assert contents(tmp_path / "packed") == contents(tmp_path / "flat")
        (tmp_path / "wrapped").mkdir()
        shutil.copytree(recordings / "s2", tmp_path / "wrapped" / "test")  # no speaker is called so
        prepare_recordings(tmp_path / "wrapped", tmp_path / "third", "test")
        assert read_test(tmp_path / "third").speakers is None
        noise(recordings / "alone.wav")
        self.assert_refused(r"source/alone\.wav: no speaker's folder above it, as others have", recordings, "test")

    def test_no_folder_a_speaker(self, recordings: Path) -> None:
        self.assert_refused("s1: all 2 recordings are of one speaker, s1; expected two or more", recordings / "dev")
        self.assert_refused(r"s2/x\.wav: no speaker's folder above it \(and 1 more\); move it", recordings / "s2")

    def test_mapping_decides_the_order(self, recordings: Path, tmp_path: Path) -> None:
        (recordings / "mapping.json").write_text(json.dumps({"speaker2id": {"s2": 0, "s1": 1}}))
        prepare_recordings(recordings, tmp_path / "out", "train")
        assert read_speakers(tmp_path / "out").speakers == ["s2", "s1"]
        noise(recordings / "s0" / "x.wav")
        self.assert_refused(
            r"mapping\.json: no number of speaker s0, who has utterances in the folders beside it", recordings
        )

    def test_metadata_decides(self, recordings: Path, tmp_path: Path) -> None:
        listed = {"s2": [{"feature_path": "s2/x.wav"}], "sister": [{"feature_path": "dev\\s1\\x.wav"}]}
        (recordings / "metadata.json").write_text(json.dumps({"speakers": listed}))
        prepare_recordings(recordings, tmp_path / "out", "train")
        assert read_speakers(tmp_path / "out").speakers == ["s2", "sister"]
        assert sources(tmp_path / "out") == ["s2/x.wav", "dev/s1/x.wav"]
        (tmp_path / "wrap").mkdir()
        shutil.copytree(recordings, tmp_path / "wrap" / "inside")
        for source, name in ((recordings, "plain"), (tmp_path / "wrap", "wrapped")):
            prepare_recordings(pack(source, tmp_path / f"{name}.tar"), tmp_path / name, "train")
            assert contents(tmp_path / name) == contents(tmp_path / "out")
        prepare_recordings(recordings, tmp_path / "out", "test")
        assert read_test(tmp_path / "out").speakers == ["s2", "sister"]
        listed["s2"].append({"feature_path": "s2/none.flac"})
        (recordings / "metadata.json").write_text(json.dumps({"speakers": listed}))
        self.assert_refused(
            r"s2/none\.flac: missing, but metadata\.json names it \(utterance 1 of s2\); put it", recordings
        )

    def test_a_list_of_recordings(self, recordings: Path, tmp_path: Path) -> None:
        path = recordings / "testdata.json"

        def write(*names: str, **more: str) -> None:
            path.write_text(json.dumps({"utterances": [{"feature_path": name, **more} for name in names]}))

        write("s2/yy.FLAC", "dev/s1/x.wav")
        for n, source in enumerate((path, recordings)):
            prepare_recordings(source, tmp_path / f"out{n}", "test")
            assert sources(tmp_path / f"out{n}", "test") == ["s2/yy.FLAC", "dev/s1/x.wav"]
            assert read_test(tmp_path / f"out{n}").speakers is None
        write("s2/yy.FLAC", "dev/s1/x.wav", speaker="me")
        prepare_recordings(path, tmp_path / "said", "test")
        assert read_test(tmp_path / "said").speakers == ["me", "me"]
        write("s2/yy.FLAC", "s2/none.wav")
        self.assert_refused(
            r"source/s2/none\.wav: missing, but testdata\.json names it \(utterance 1\)", path.parent, "test"
        )
        write("../s2/yy.FLAC")
        self.assert_refused(r"testdata\.json: feature_path '\.\./s2/yy\.FLAC' .* leads outside", path.parent, "test")
        write("s2/x.txt")
        self.assert_refused(
            r"testdata\.json: s2/x\.txt \(utterance 0\) is no wav, flac or other sound", path.parent, "test"
        )
        path.write_text('{"rows": []}')
        self.assert_refused(r'testdata\.json: neither "speakers" nor "utterances"', path.parent, "test")
        path.unlink()
        write("s2/yy.FLAC", "dev/s1/x.wav")
        path.rename(recordings / "metadata.json")
        self.assert_refused(r'metadata\.json: s2/yy\.FLAC \(and 1 more\) has no "speaker"', recordings)

    def test_features_need_no_preparation(self, folder: Path) -> None:
        parts: tuple[Part, Part] = ("train", "test")
        for part in parts:
            self.assert_refused(
                r"data\.json: uttr-..\.pt .* is no wav, flac or other sound that is read; its features are made",
                folder,
                part,
            )

    @pytest.mark.parametrize("packed", [False, True])
    def test_another_rate_is_said_once(self, recordings: Path, tmp_path: Path, packed: bool) -> None:
        noise(recordings / "s2" / "low.wav", 8000)
        noise(recordings / "s2" / "odd.wav", 11025)
        source = pack(recordings, tmp_path / "my.tar") if packed else recordings
        place = r"my\.tar: s2/" if packed else r"source/s2/"
        with pytest.warns(UserWarning, match=rf"{place}low\.wav and 1 more: 8000 Hz, resampled") as caught:
            prepare_recordings(source, tmp_path / "out", "train")
        assert len(caught) == 1
        assert caught[0].filename == __file__  # the caller's line
        assert read_speakers(tmp_path / "out").lengths.tolist() == [21] * 6  # 0.2 s each

    def test_bad_sounds(self, recordings: Path, tmp_path: Path) -> None:
        flac = recordings / "s2" / "yy.FLAC"
        whole = flac.read_bytes()
        for data in (b"<html>" * 100, whole[: len(whole) // 2], whole[:20]):
            flac.write_bytes(data)
            self.assert_refused(r"s2/yy\.FLAC: cannot be read as flac .*; copy or unzip it again", recordings)
        self.assert_refused(r"my\.tar: s2/yy\.FLAC: cannot be read", pack(recordings, tmp_path / "my.tar"))
        flac.write_bytes(b"")
        self.assert_refused(r"s2/yy\.FLAC: empty; copy", recordings)
        soundfile.write(flac, np.zeros(3200), 16000)
        self.assert_refused(
            r"s2/yy\.FLAC: silent, all 21 frames lie at the floor; record it again or take it out", recordings
        )
        soundfile.write(flac, np.zeros(399), 16000)
        self.assert_refused(r"s2/yy\.FLAC: 399 samples \(25 ms\), expected 25 ms or more", recordings)
        flac.unlink()
        soundfile.write(recordings / "s2" / "z.wav", np.full(3200, np.nan), 16000, "FLOAT")
        self.assert_refused(r"s2/z\.wav: sample 0 is no finite number", recordings)

    def test_quiet_is_not_silent(self, recordings: Path, tmp_path: Path) -> None:
        """The last bit now and then, or one word in a long silence."""
        steps = np.random.default_rng(0).integers(0, 2, 3200) / 32768
        soundfile.write(recordings / "s2" / "a.wav", steps, 16000)
        steps[:3000] = 0
        soundfile.write(recordings / "s2" / "b.wav", steps, 16000)
        prepare_recordings(recordings, tmp_path / "out", "train")
        assert len(read_speakers(tmp_path / "out").files) == 6

    def test_two_of_one_name(self, recordings: Path) -> None:
        noise(recordings / "s2" / "x.flac")
        self.assert_refused(r"s2/x\.wav: x\.flac lies beside it; move one of the two away", recordings)

    def test_names_that_are_no_text(self, recordings: Path) -> None:
        os.rename(recordings / "s2" / "x.wav", os.fsencode(recordings / "s2") + b"/\xa7.wav")
        self.assert_refused(r"\\udca7\.wav': its name is no UTF-8; rename it", recordings)

    def test_nothing_to_do(self, tmp_path: Path, folder: Path) -> None:
        self.assert_refused(r"none: no such folder, archive \(\.tar, .*\) or testdata\.json", tmp_path / "none")
        (tmp_path / "empty").mkdir()
        self.assert_refused("empty: no sound file", tmp_path / "empty")
        self.assert_refused(r"empty\.tar: no sound file", pack(tmp_path / "empty", tmp_path / "empty.tar"))
        self.assert_refused(r"empty\.zip: no sound file", pack(tmp_path / "empty", tmp_path / "empty.zip"))
        (tmp_path / "a.rar").touch()
        self.assert_refused(r"a\.rar: expected a folder, an archive", tmp_path / "a.rar")

    def test_what_is_there_is_said_first(self, folder: Path, tmp_path: Path) -> None:
        """Before an hour of work, and before the recordings are looked at."""
        with pytest.raises(DataError, match=r"metadata\.json: there already"):
            prepare_recordings(tmp_path / "none", folder, "train")
        with pytest.raises(DataError, match=r"testdata\.json: there already"):
            prepare_recordings(tmp_path / "none", folder, "test")


def tar_with(path: Path, **fields: Any) -> Path:
    """A tar of two good recordings and a member as the fields say."""
    with tarfile.open(path, "w") as tar:
        for name in ("a/x.wav", "b/x.wav"):
            tar.add(noise(path.parent / "made" / name), name)
        member = tarfile.TarInfo("c/x.wav")
        for key, value in fields.items():
            setattr(member, key, value)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    return path


class TestTar:
    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "../x.wav"},
            {"name": "c/../../x.wav"},
            {"name": "/tmp/x.wav"},
            {"name": "C:\\x.wav"},
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
            {"type": tarfile.SYMTYPE, "linkname": "a"},
            {"type": tarfile.LNKTYPE, "linkname": "a/x.wav"},
            {"type": tarfile.FIFOTYPE},
            {"type": tarfile.CHRTYPE},
        ],
    )
    def test_no_member_leads_outside(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        inside = tmp_path / "inside" / "deep"
        inside.mkdir(parents=True)
        archive = tar_with(tmp_path / "my.tar", **fields)
        with pytest.raises(DataError, match=r"my\.tar: its member '.*' is a link or leads outside the folder; nothing"):
            prepare_recordings(archive, inside / "out", "train")
        assert [path for path in (tmp_path / "inside").rglob("*") if path.is_file()] == []
        assert not Path("/tmp/x.wav").exists()

    @pytest.mark.parametrize("data", [b"", b"<html>" * 300, b"\x1f\x8b\x08\x00broken", b"BZh91AY&SYbroken"])
    def test_no_tar(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "my.tar.gz").write_bytes(data)
        with pytest.raises(DataError, match=r"my\.tar\.gz: cannot be unpacked \(.+\); delete it and fetch it again$"):
            prepare_recordings(tmp_path / "my.tar.gz", tmp_path / "out", "train")

    @settings(max_examples=40)
    @given(share=st.floats(0, 1, exclude_max=True), block=st.booleans(), mode=st.sampled_from(["w", "w:gz", "w:bz2"]))
    def test_a_cut_one_is_never_taken_for_whole(self, share: float, block: bool, mode: Any) -> None:
        """Also where it is cut between two members, which tarfile itself does not see."""
        with tempfile.TemporaryDirectory() as scratch:
            path, names = Path(scratch) / "my.tar", [f"{n}/x.wav" for n in range(5)]
            with tarfile.open(path, mode) as tar:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = 700
                    tar.addfile(member, io.BytesIO(bytes(700)))
            keep = int(share * path.stat().st_size)
            os.truncate(path, keep // 512 * 512 if block else keep)
            with contextlib.suppress(DataError):
                unpack(path, Path(scratch) / "to")
                assert sorted(p.parent.name for p in (Path(scratch) / "to").rglob("*.wav")) == list("01234")

    def test_a_disk_that_fails_is_no_broken_tar(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tarfile.TarFile, "extractfile", full)
        with pytest.raises(DataError, match=rf"my\.tar: cannot be unpacked into {tmp_path}/out: No space left"):
            prepare_recordings(tar_with(tmp_path / "my.tar"), tmp_path / "out", "train")
        assert list((tmp_path / "out").iterdir()) == []


def by_definition(samples: np.ndarray) -> np.ndarray:
    """Log-mel (T, 40) in float64: Hann windows of 25 ms each 10 ms, power, HTK mels from 50 Hz, 1e-9, natural log."""
    mirrored = np.pad(samples.astype(np.float64), 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, 400)[::160]
    power = np.abs(np.fft.rfft(frames * get_window("hann", 400))) ** 2
    lowest, highest = (2595 * math.log10(1 + f / 700) for f in (50, 8000))
    corners = 700 * (10 ** (np.linspace(lowest, highest, 42) / 2595) - 1)
    bands = [np.interp(np.arange(201) * 40, corners[k : k + 3], [0, 1, 0]) for k in range(40)]
    return np.log(np.maximum(power @ np.array(bands).T, 1e-9))


class TestRealRecordings:
    @pytest.fixture
    def source(self, tmp_path: Path, real_data: Callable[[str], Path]) -> Path:
        """Two speakers of each of two tars, three utterances each, in tars of their own; lists as in the whole set."""
        real, source = real_data("hw4_speaker"), tmp_path / "source"
        source.mkdir()
        kept: list[str] = []
        for part in (1, 3):
            with (
                tarfile.open(real / f"speechocean762_adults_part{part}.tar") as tar,
                tarfile.open(source / f"part{part}.tar", "w") as small,
            ):
                members = [member for member in tar if member.isfile()]
                for member in [*members[:3], *members[12:15]]:
                    small.addfile(member, tar.extractfile(member))
                    kept.append(member.name)
        speakers = {
            speaker: [entry for entry in rows if entry["feature_path"] in kept]
            for speaker, rows in json.loads((real / "metadata.json").read_text())["speakers"].items()
        }
        speakers = {speaker: rows for speaker, rows in speakers.items() if rows}
        (source / "metadata.json").write_text(json.dumps({"sample_rate": 16000, "speakers": speakers}))
        order = sorted(speakers, reverse=True)
        mapping = {
            "speaker2id": {speaker: n for n, speaker in enumerate(order)},
            "id2speaker": {str(n): speaker for n, speaker in enumerate(order)},
        }
        (source / "mapping.json").write_text(json.dumps(mapping))
        return source

    def test_prepared(self, source: Path, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepare_recordings(source, tmp_path / "out", "train")
        found = read_speakers(tmp_path / "out")
        raw = json.loads((source / "metadata.json").read_text())["speakers"]
        assert len(found.speakers) == 4
        assert found.speakers == sorted(raw, reverse=True)
        assert found.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        rows = [entry for speaker in found.speakers for entry in raw[speaker]]
        assert found.lengths.tolist() == [1 + entry["num_samples"] // 160 for entry in rows]
        frames = [read_mel(path) for path in found.files]
        check_lengths(found, [len(x) for x in frames])
        for part in (1, 3):
            with tarfile.open(source / f"part{part}.tar") as tar:
                tar.extractall(tmp_path / "flacs", filter="data")
        for x, entry in zip(frames, rows, strict=True):
            samples, rate = soundfile.read(tmp_path / "flacs" / entry["feature_path"])
            assert rate == 16000
            assert np.abs(x - by_definition(samples)).max() < 1e-3

    def test_unpacked_or_without_lists_it_is_the_same(self, source: Path, tmp_path: Path) -> None:
        prepare_recordings(source, tmp_path / "one", "train")
        for part in (1, 3):
            with tarfile.open(source / f"part{part}.tar") as tar:
                tar.extractall(source, filter="data")
            (source / f"part{part}.tar").write_bytes(b"not looked at any more")
        prepare_recordings(source, tmp_path / "two", "train")
        assert contents(tmp_path / "two") == contents(tmp_path / "one")
        for name in ("metadata.json", "mapping.json", "part1.tar", "part3.tar"):
            (source / name).unlink()
        prepare_recordings(source, tmp_path / "three", "train")
        one, three = read_speakers(tmp_path / "one"), read_speakers(tmp_path / "three")
        assert three.speakers == sorted(one.speakers)
        assert {path.name: one.speakers[k] for path, k in zip(one.files, one.labels, strict=True)} == {
            path.name: three.speakers[k] for path, k in zip(three.files, three.labels, strict=True)
        }

    def test_an_archive_twice(self, source: Path, tmp_path: Path) -> None:
        shutil.copy(source / "part1.tar", source / "part1 (1).tar")
        with pytest.raises(DataError, match=r"part1\.tar: flac/.*part1 \(1\)\.tar: flac/.* is there too; move one"):
            prepare_recordings(source, tmp_path / "out", "train")

    def test_an_archive_lacks(self, source: Path, tmp_path: Path) -> None:
        (source / "part3.tar").unlink()
        with pytest.raises(DataError, match=r"\.flac: missing \(and 5 more\), but metadata\.json names it .*; put it"):
            prepare_recordings(source, tmp_path / "out", "train")
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
