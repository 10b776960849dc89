"""datamodules/speech/speaker_folder.py: the course's files read, checked and written."""

import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speaker_files import contents, edit, entries, mels, write_folder

from datamodules.errors import DataError
from datamodules.speech import Part
from datamodules.speech.speaker_folder import (
    Utterance,
    check_lengths,
    check_speakers,
    has_speakers,
    read_mel,
    read_speakers,
    read_test,
    write_dataset,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "Dataset")


class TestRead:
    def test_labelled(self, folder: Path) -> None:
        found = read_speakers(folder)
        assert found.speakers == ["cy", "ann", "bob"]
        assert found.files == [folder / name for name in ("uttr-a0.pt", "uttr-a1.pt", "uttr-b0.pt", "uttr-c0.pt")]
        assert (found.labels.tolist(), found.labels.dtype) == ([1, 1, 2, 0], np.int64)
        assert (found.lengths.tolist(), found.lengths.dtype) == ([4, 6, 5, 3], np.int64)
        frames = [read_mel(path) for path in found.files]
        assert frames[1].dtype == np.float32
        assert np.array_equal(frames[1], mels(6, 6))
        check_lengths(found, [len(x) for x in frames])

    def test_test_part(self, folder: Path) -> None:
        for name in ("metadata.json", "mapping.json"):
            (folder / name).unlink()
        found = read_test(folder)
        assert found.names == ["uttr-t1.pt", "uttr-t0.pt"]
        assert found.files == [folder / name for name in found.names]
        assert found.lengths.tolist() == [7, 2]
        assert found.speakers is None
        check_lengths(found, [7, 2])

    def test_speakers_of_a_test_part(self, folder: Path) -> None:
        path = folder / "testdata.json"
        edit(path, lambda c: c["utterances"][0].update(speaker="bob"))
        with pytest.raises(DataError, match=r'testdata\.json: uttr-t0\.pt \(utterance 1\) has no "speaker"; name all'):
            read_test(folder)
        edit(path, lambda c: c["utterances"][1].update(speaker="eve"))
        assert read_test(folder).speakers == ["bob", "eve"]

    def test_features_below(self, folder: Path) -> None:
        """In folders of their own, and spelled as on Windows."""
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "uttr-t1.pt").rename(folder / "a" / "b" / "uttr-t1.pt")
        for spelled in ("a/b/uttr-t1.pt", "a\\b\\uttr-t1.pt", "./a/b/uttr-t1.pt"):
            edit(folder / "testdata.json", lambda c, s=spelled: c["utterances"][0].update(feature_path=s))
            found = read_test(folder)
            assert found.names[0] == spelled
            assert len(read_mel(found.files[0])) == 7

    def test_id2speaker_may_lack(self, folder: Path) -> None:
        edit(folder / "mapping.json", lambda c: {"speaker2id": c["speaker2id"]})
        assert read_speakers(folder).speakers == ["cy", "ann", "bob"]

    def test_few_looks_at_the_disk(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for n in range(200):
            (folder / f"uttr-n{n}.pt").touch()
        many = entries([(f"uttr-n{n}.pt", 1) for n in range(200)])
        edit(folder / "metadata.json", lambda c: c["speakers"]["bob"].extend(many))
        looks: list[Any] = []

        def seen(call: Callable) -> Callable:
            def look(*args: Any, **kwargs: Any) -> Any:
                looks.append(args)
                return call(*args, **kwargs)

            return look

        monkeypatch.setattr(os, "stat", seen(os.stat))
        monkeypatch.setattr(os, "scandir", seen(os.scandir))
        assert len(read_speakers(folder).files) == 204
        assert 0 < len(looks) < 5

    def test_has_speakers(self, folder: Path, tmp_path: Path) -> None:
        assert has_speakers(folder)
        (folder / "metadata.json").unlink()
        assert has_speakers(folder)  # a test set alone
        (folder / "testdata.json").unlink()
        assert not has_speakers(folder)
        assert not has_speakers(tmp_path / "none")
        assert not has_speakers(folder / "mapping.json")
        (folder / "metadata.json").write_text('{"speakers": {"a": [{"feature_path": "a.flac", "num_samples": 9}]}}')
        assert not has_speakers(folder)
        (folder / "metadata.json").write_text('{"citation": "of another project"}')
        assert not has_speakers(folder)

    def test_recordings_are_to_be_prepared(self, folder: Path, real_data: Callable[[str], Path]) -> None:
        raw = real_data("hw4_speaker")
        assert not has_speakers(raw)
        with pytest.raises(DataError, match=rf"lists sounds.* `leeml data prepare hw4_speaker --source {raw}`$"):
            read_speakers(raw)
        edit(folder / "testdata.json", lambda c: {"utterances": [{"feature_path": "my/A.WAV"}]})
        with pytest.raises(DataError, match=rf"lists sounds.* --source {folder / 'testdata.json'}`$"):
            read_test(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: [c], "holds a list; expected an object such as the course's metadata"),
            (lambda c: c.pop("speakers") and None, 'no "speakers"; expected each id with its utterances'),
            (lambda c: c.update(speakers={}), 'no "speakers"'),
            (lambda c: c.update(speakers=[1]), 'no "speakers"'),
            (lambda c: c["speakers"].update(bob=[]), "no utterances of bob"),
            (lambda c: c["speakers"].update(bob=[3]), 'utterance 0 of bob has no "feature_path"'),
            (lambda c: c["speakers"]["ann"][1].update(feature_path=7), 'utterance 1 of ann has no "feature_path"'),
            (lambda c: c.update(n_mels=80), "n_mels is 80; expected 40, make the features again"),
            (lambda c: c.pop("n_mels") and None, "n_mels is None; expected 40"),
            (
                lambda c: c["speakers"]["ann"][1].update(mel_len=0),
                r"uttr-a1\.pt \(utterance 1 of ann\) has mel_len 0; expected its frames, 1 or more, or take it out",
            ),
            (lambda c: c["speakers"]["ann"][1].update(mel_len=-4), ".*has mel_len -4; expected"),
            (lambda c: c["speakers"]["ann"][1].update(mel_len=6.0), r".*has mel_len 6\.0; expected"),
            (lambda c: c["speakers"]["ann"][1].update(mel_len=True), ".*has mel_len True; expected"),
            (lambda c: c["speakers"]["ann"][1].update(mel_len=10**30), ".*has mel_len 10+; expected"),
            (lambda c: c["speakers"]["ann"][1].pop("mel_len") and None, '.*has no "mel_len"; expected'),
            (
                lambda c: c["speakers"]["ann"][1].update(feature_path="uttr-b0.pt"),
                r"uttr-b0\.pt stands there 2 times \(utterance 1 of ann and utterance 0 of bob\); take 1 out",
            ),
            (
                lambda c: c["speakers"]["ann"][0].update(feature_path="./uttr-b0.pt"),
                r"uttr-b0\.pt stands there 2 times",
            ),
        ],
    )
    def test_bad_metadata(self, folder: Path, change: Callable[[Any], Any], message: str) -> None:
        edit(folder / "metadata.json", change)
        with pytest.raises(DataError, match=rf"metadata\.json: ({message})") as caught:
            read_speakers(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "name",
        ["../uttr-x.pt", "/etc/passwd", "C:\\x.pt", "a/../../x.pt", "\\\\host\\share\\x.pt", "", ".", "..", "\0"],
    )
    def test_no_path_leaves_the_folder(self, folder: Path, name: str) -> None:
        (folder.parent / "uttr-x.pt").touch()
        for read, file, entry in (
            (read_speakers, "metadata.json", lambda c: c["speakers"]["bob"][0]),
            (read_test, "testdata.json", lambda c: c["utterances"][0]),
        ):
            edit(folder / file, lambda c, entry=entry: entry(c).update(feature_path=name))
            with pytest.raises(DataError, match=rf"{file}: feature_path .* of utterance 0.* leads outside the folder"):
                read(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: {"x": 1}, 'no "speaker2id"'),
            (lambda c: c["speaker2id"].pop("ann") and None, "no number of speaker ann, who has utterances in metadata"),
            (lambda c: c["speaker2id"].update(eve=3), r"speaker eve has no utterances in metadata\.json; take the"),
            (lambda c: c["speaker2id"].update(eve=3, dan=4), r"speaker dan \(and 1 more\) has no utterances"),
            (lambda c: c["speaker2id"].update(ann=3), "no speaker has number 1 in speaker2id; expected 0 to 2"),
            (lambda c: c["speaker2id"].update(ann=2), "no speaker has number 1 in speaker2id; expected 0 to 2"),
            (lambda c: c["speaker2id"].update(ann="1"), r'speaker2id has "1" for speaker ann; expected a whole number'),
            (lambda c: c["speaker2id"].update(ann=True), "speaker2id has true for speaker ann"),
            (lambda c: c["id2speaker"].update({"0": "bob"}), "speaker2id has cy as 0, id2speaker has not"),
            (lambda c: c["id2speaker"].pop("2") and None, "speaker2id has .* id2speaker has not"),
            (lambda c: c["id2speaker"].update({"3": "eve"}), "speaker2id has .* id2speaker has not"),
            (lambda c: c.update(id2speaker=["cy", "ann", "bob"]), "speaker2id has cy as 0, id2speaker has not"),
        ],
    )
    def test_bad_mapping(self, folder: Path, change: Callable[[Any], Any], message: str) -> None:
        edit(folder / "mapping.json", change)
        with pytest.raises(DataError, match=rf"mapping\.json: {message}") as caught:
            read_speakers(folder)
        assert "\n" not in str(caught.value)

    def test_missing_and_damaged(self, folder: Path) -> None:
        def assert_refused(message: str, read: Callable[[Path], Any] = read_speakers) -> None:
            with pytest.raises(DataError, match=message):
                read(folder)

        (folder / "uttr-b0.pt").unlink()
        assert_refused(r"uttr-b0\.pt: missing, but metadata\.json names it \(utterance 0 of bob\); copy or unpack")
        (folder / "uttr-c0.pt").unlink()
        assert_refused(r"uttr-b0\.pt: missing \(and 1 more\)")
        (folder / "uttr-t0.pt").unlink()
        assert_refused(r"uttr-t0\.pt: missing, but testdata\.json names it \(utterance 1\)", read_test)
        edit(folder / "testdata.json", lambda c: c["utterances"][1].update(feature_path="no/folder.pt"))
        assert_refused(r"no/folder\.pt: missing, but testdata\.json", read_test)
        whole = (folder / "metadata.json").read_bytes()
        for data in (b"", b"<html>", whole[:-9], b"\xff\xfe", b"[" * 100_000, b'{"n_mels": ' + b"1" * 5000 + b"}"):
            (folder / "metadata.json").write_bytes(data)
            assert_refused(r"metadata\.json(, line \d+)?: no JSON.*; copy or unpack it again")
        (folder / "metadata.json").write_bytes(b"\xef\xbb\xbf" + whole)  # as an editor on Windows saves it
        assert_refused(r"uttr-b0\.pt: missing")
        (folder / "mapping.json").unlink()
        assert_refused(r"mapping\.json: missing")
        (folder / "metadata.json").unlink()
        assert_refused(r"metadata\.json: missing; copy or unpack the data again")
        (folder / "testdata.json").unlink()
        assert_refused(r"testdata\.json: missing", read_test)

    def test_lengths(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"uttr-b0\.pt: 9 frames, but mel_len 5 in metadata\.json; copy or make"):
            check_lengths(read_speakers(folder), [4, 6, 9, 3])
        with pytest.raises(DataError, match=r"uttr-t0\.pt: 3 frames, but mel_len 2 in testdata\.json"):
            check_lengths(read_test(folder), np.array([7, 3]))

    def test_speakers_with_few_utterances(self, folder: Path) -> None:
        found = read_speakers(folder)
        check_speakers(found, 1)
        with pytest.raises(
            DataError, match=rf"^{folder}: too few utterances of cy \(1\), bob \(1\); expected 2 or more"
        ):
            check_speakers(found)
        with pytest.raises(DataError, match=r"cy \(1\), ann \(2\), bob \(1\); expected 3 or more"):
            check_speakers(found, 3)
        with pytest.raises(DataError, match=r"s0 \(1\), .* s4 \(1\) and 2 more; expected"):
            check_speakers(found._replace(speakers=[f"s{n}" for n in range(7)], labels=np.arange(7)))
        check_speakers(found._replace(labels=np.array([0, 0, 1, 1]), speakers=["a", "b"]))


class Shell:
    """What a hostile file holds: unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


class TestMel:
    def test_code_is_refused_and_not_run(self, tmp_path: Path) -> None:
        torch.save({"x": Shell(tmp_path / "ran")}, tmp_path / "zip.pt")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(Shell(tmp_path / "ran"), 2))
        for name in ("zip.pt", "plain.pt"):
            with pytest.raises(DataError, match=rf"{name}: holds Python objects, which may run code, and was not"):
                read_mel(tmp_path / name)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("precision", [torch.float16, torch.float64])
    def test_other_precisions(self, tmp_path: Path, precision: torch.dtype) -> None:
        x = torch.from_numpy(mels(0, 5)).to(precision)
        torch.save(x.clone().requires_grad_(), tmp_path / "a.pt")
        assert np.array_equal(read_mel(tmp_path / "a.pt"), x.float().numpy())

    @pytest.mark.filterwarnings("ignore:Validating sparse")
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"x": torch.zeros(3, 40)}, "holds a dict; expected a float tensor of frames x 40"),
            (torch.zeros(3, 40).int(), "holds a int32 tensor"),
            (torch.zeros(3, 40).to_sparse(), "holds a float32 tensor"),
            (torch.zeros(3, 80), r"shape \(3, 80\); expected frames x 40"),
            (torch.zeros(40, 3), r"shape \(40, 3\)"),
            (torch.zeros(40), r"shape \(40,\)"),
            (torch.zeros(0, 40), "no frames; take the utterance out"),
            (torch.ones(3, 40).index_fill_(0, torch.tensor(2), torch.nan), "frame 2 has a value that is no finite"),
            (torch.ones(3, 40).index_fill_(0, torch.tensor(1), -torch.inf), "frame 1 has a value that is no finite"),
        ],
    )
    def test_bad_content(self, tmp_path: Path, content: object, message: str) -> None:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(DataError, match=rf"a\.pt: {message}"):
            read_mel(tmp_path / "a.pt")

    def test_damage(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(30, 40), tmp_path / "a.pt")
        whole = (tmp_path / "a.pt").read_bytes()
        for data in (b"", b"<html>", whole[:100], whole[:-100]):
            (tmp_path / "a.pt").write_bytes(data)
            with pytest.raises(DataError, match=r"a\.pt: cannot be read as a tensor file; copy or unzip it again"):
                read_mel(tmp_path / "a.pt")
        with pytest.raises(FileNotFoundError):
            read_mel(tmp_path / "none.pt")


SOME = [Utterance(f"{speaker}/{n}.wav", mels(n, 3 + n), speaker) for n, speaker in enumerate(("b", "a", "b", "c"))]

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)  # as files have them
parts = st.lists(st.tuples(words, words, st.integers(1, 5)), min_size=1, max_size=6, unique_by=lambda row: row[:2])


class TestWrite:
    @settings(max_examples=25)
    @given(rows=parts, tests=parts, seed=st.integers(0, 99), named=st.booleans())
    def test_read_back(self, rows: list, tests: list, seed: int, named: bool) -> None:
        """What is written is read, in the order of the speakers asked for and of their utterances."""
        train = [Utterance(name, mels(n, length), speaker) for n, (speaker, name, length) in enumerate(rows)]
        test = [
            Utterance(name, mels(9 + n, length), speaker if named else None)
            for n, (speaker, name, length) in enumerate(tests)
        ]
        if not named:
            test = list({utterance.name: utterance for utterance in test}.values())
        order = sorted({speaker for speaker, _, _ in rows})
        random.Random(seed).shuffle(order)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "d"
            write_dataset(folder, "train", train, order)
            write_dataset(folder, "test", test)
            found = read_speakers(folder)
            assert found.speakers == order
            wanted = [utterance for speaker in order for utterance in train if utterance.speaker == speaker]
            assert [found.speakers[k] for k in found.labels] == [utterance.speaker for utterance in wanted]
            for path, length, utterance in zip(found.files, found.lengths, wanted, strict=True):
                assert np.array_equal(read_mel(path), utterance.features)
                assert length == len(utterance.features)
            unseen = read_test(folder)
            assert unseen.speakers == ([utterance.speaker for utterance in test] if named else None)
            for path, utterance in zip(unseen.files, test, strict=True):
                assert np.array_equal(read_mel(path), utterance.features)
            check_lengths(unseen, [len(utterance.features) for utterance in test])
            assert len(list(folder.iterdir())) == 3 + len(train) + len(test)

    def test_as_the_course_names_them(self, tmp_path: Path) -> None:
        written = write_dataset(tmp_path / "d", "train", SOME)
        assert written == [tmp_path / "d" / "metadata.json", tmp_path / "d" / "mapping.json"]
        assert has_speakers(tmp_path / "d")
        content = json.loads(written[0].read_text())
        assert content["n_mels"] == 40
        assert list(content["speakers"]) == ["a", "b", "c"]
        mapping = {"speaker2id": {"a": 0, "b": 1, "c": 2}, "id2speaker": {"0": "a", "1": "b", "2": "c"}}
        assert json.loads(written[1].read_text()) == mapping
        first = content["speakers"]["b"][0]
        assert (first["mel_len"], first["source"]) == (3, "b/0.wav")
        # literal: names may not change from release to release, as submissions carry them
        assert first["feature_path"] == "uttr-1726c66af88e17bf370d5fe81aafab31.pt"

    def test_names_do_not_depend_on_the_company(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "all", "train", SOME)
        write_dataset(tmp_path / "some", "train", reversed(SOME[:2]))
        everything = contents(tmp_path / "all")
        for path in (tmp_path / "some").glob("uttr-*"):
            assert path.read_bytes() == everything[path.name]
        assert len(list((tmp_path / "some").glob("uttr-*"))) == 2

    def test_a_test_set_is_added(self, folder: Path) -> None:
        (folder / "testdata.json").unlink()
        before = contents(folder)
        assert write_dataset(folder, "test", SOME) == [folder / "testdata.json"]
        after = contents(folder)
        assert {name: after[name] for name in before} == before
        assert len(after) == len(before) + 1 + len(SOME)
        assert read_test(folder).speakers == ["b", "a", "b", "c"]
        assert read_speakers(folder).speakers == ["cy", "ann", "bob"]

    def test_one_recording_in_both_parts(self, tmp_path: Path) -> None:
        """b/0.wav of the training folder and of the test folder are two recordings."""
        write_dataset(tmp_path, "train", SOME)
        others = [utterance._replace(features=utterance.features + 1) for utterance in SOME]
        write_dataset(tmp_path, "test", others)
        assert np.array_equal(read_mel(read_test(tmp_path).files[0]), SOME[0].features + 1)
        assert np.array_equal(read_mel(read_speakers(tmp_path).files[0]), SOME[1].features)

    def test_what_is_there_is_kept(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "d", "train", SOME)
        before = contents(tmp_path / "d")
        for name in ("metadata.json", "mapping.json"):
            with pytest.raises(DataError, match=rf"{name}: there already; move it away, or name another folder"):
                write_dataset(tmp_path / "d", "train", SOME)
            (tmp_path / "d" / name).unlink()
        # features without a list are what a killed run leaves: it is gone on with, unless one of them is another
        write_dataset(tmp_path / "d", "train", SOME)
        assert contents(tmp_path / "d") == before
        feature = next((tmp_path / "d").glob("uttr-*"))
        for name in ("metadata.json", "mapping.json"):
            (tmp_path / "d" / name).unlink()
        feature.write_bytes(b"mine")
        before = contents(tmp_path / "d")
        with pytest.raises(DataError, match=rf"{feature.name}: there already; move it away"):
            write_dataset(tmp_path / "d", "train", SOME)
        assert contents(tmp_path / "d") == before

    def test_it_appears_whole(self, tmp_path: Path) -> None:
        def breaks() -> Iterator[Utterance]:
            yield SOME[0]
            raise DataError("broken")

        with pytest.raises(DataError, match="broken"):
            write_dataset(tmp_path / "d", "train", breaks())
        assert list((tmp_path / "d").iterdir()) == []

    @pytest.mark.parametrize("moves", range(6))  # four features and two lists
    def test_a_full_disk(self, folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
        """All is as before, also what a killed run had left."""
        for name in ("metadata.json", "mapping.json"):
            (folder / name).unlink()
        write_dataset(folder.parent / "other", "train", SOME)
        left = next((folder.parent / "other").glob("uttr-*"))
        shutil.copy(left, folder)
        before = contents(folder)
        replace = os.replace
        done: list[Any] = []

        def fails(*paths: Any) -> None:
            if len(done) == moves:
                raise OSError(28, "No space left on device")
            done.append(paths)
            replace(*paths)

        monkeypatch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            write_dataset(folder, "train", SOME)
        assert contents(folder) == before

    def test_refused(self, tmp_path: Path) -> None:
        def assert_refused(message: str, utterances: list[Utterance], part: Part = "train", *order: Any) -> None:
            with pytest.raises(DataError, match=message):
                write_dataset(tmp_path / "d", part, utterances, *order)
            assert list((tmp_path / "d").iterdir()) == []

        assert_refused(r"no utterance for metadata\.json", [])
        assert_refused(r"b/0\.wav: stands there twice for speaker b", [SOME[0], SOME[0]])
        assert_refused(r"x: stands there twice; rename", [Utterance("x", mels(0, 2))] * 2, "test")
        assert_refused(r"a/1\.wav: no speaker; expected", [SOME[0], SOME[1]._replace(speaker=None)])
        assert_refused("speaker c is not on both sides", SOME, "train", ["a", "b"])
        assert_refused("speaker z is not on both sides", SOME, "train", ["a", "b", "c", "z"])
        assert_refused("speaker a is not on both sides", SOME, "train", ["a", "b", "c", "a"])
