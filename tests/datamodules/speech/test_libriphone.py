"""datamodules/speech/libriphone.py: the course's files read and checked, and recordings turned into them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
import torch

from datamodules.errors import DataError
from datamodules.speech import libriphone
from datamodules.speech.audio import mfcc, normalise, read_audio
from datamodules.speech.libriphone import (
    Utterance,
    check_lengths,
    prepare_recordings,
    read_features,
    read_labels,
    read_layout,
    read_phones,
    read_split,
    read_timit11,
    write_layout,
)
from datamodules.speech.phones import classes

NAMES = ["b", "a", "c"]
LENGTHS = [4, 6, 5]


def features(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, 39)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The course's layout, written here line by line."""
    folder = tmp_path / "libriphone"
    (folder / "feat" / "train").mkdir(parents=True)
    for n, (name, length) in enumerate(zip(NAMES, LENGTHS, strict=True)):
        torch.save(torch.from_numpy(features(n, length)), folder / "feat" / "train" / f"{name}.pt")
    (folder / "train_split.txt").write_text("b\na\nc\n")
    (folder / "train_labels.txt").write_text("a 0 0 1 2 2 40\nb 3 3 3 3\nc 1 1 1 1 1\n")
    return folder


class TestRead:
    def test_layout(self, folder: Path) -> None:
        found = read_layout(folder, "train")
        assert found.names == NAMES
        assert [read_features(path).tolist() for path in found.files] == [
            features(n, k).tolist() for n, k in enumerate(LENGTHS)
        ]
        assert found.labels is not None
        assert [labels.tolist() for labels in found.labels] == [[3] * 4, [0, 0, 1, 2, 2, 40], [1] * 5]
        assert found.speakers is None
        assert read_phones(folder) is None
        check_lengths(found, LENGTHS)

    def test_the_course_files(self, tmp_path: Path, real_data: Callable[[str], Path]) -> None:
        with ZipFile(real_data("hw2_phoneme") / "libriphone_feature_sample_unlabelled.zip") as zipped:
            zipped.extractall(tmp_path)
        folder = tmp_path / "libriphone"
        names = read_split(folder, "train")
        assert len(names) == 24
        frames = [read_features(folder / "feat" / "train" / f"{name}.pt") for name in names]
        assert frames[0].dtype == np.float32
        assert len(frames[names.index("1088-134315-0039")]) == 907
        with pytest.raises(DataError, match=r"train_labels\.txt: missing"):
            read_layout(folder, "train")
        (folder / "train_labels.txt").write_text(
            "".join(f"{n}{' 0' * len(x)}\n" for n, x in zip(names, frames, strict=True))
        )
        check_lengths(read_layout(folder, "train", 41), [len(x) for x in frames])

    def test_test_part_needs_no_labels(self, folder: Path) -> None:
        (folder / "feat" / "train").rename(folder / "feat" / "test")
        (folder / "train_split.txt").rename(folder / "test_split.txt")
        assert read_layout(folder, "test").labels is None

    def test_missing_on_one_side(self, folder: Path) -> None:
        labels, split, feature = (folder / n for n in ("train_labels.txt", "train_split.txt", "feat/train/c.pt"))
        text = labels.read_text()
        labels.write_text(text.replace("c 1", "d 1"))
        with pytest.raises(DataError, match=r"no labels of c, which train_split\.txt names"):
            read_layout(folder, "train")
        labels.write_text(text + "d 1\ne 1\n")
        with pytest.raises(DataError, match=r"labels of d \(and 1 more\), which train_split\.txt does not name"):
            read_layout(folder, "train")
        labels.write_text(text)
        feature.unlink()
        with pytest.raises(DataError, match=r"feat/train/c\.pt: missing, but train_split\.txt names it"):
            read_layout(folder, "train")
        split.unlink()
        with pytest.raises(DataError, match=r"train_split\.txt: missing"):
            read_layout(folder, "train")

    def test_label_count(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"a\.pt: 7 frames, but 6 labels of utterance a"):
            check_lengths(read_layout(folder, "train"), [4, 7, 5])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty"),
            ("b\na\nb\n", "b stands there 2 times; take 1 out"),
            ("b\na c\n", "line 2: 'a c'; expected the name of an utterance alone"),
            ("b\n../a\n", r"line 2: '\.\./a'; expected"),
        ],
    )
    def test_split_file(self, folder: Path, text: str, message: str) -> None:
        (folder / "train_split.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_split(folder, "train")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a 0 1\nb\n", "line 2: utterance b has no labels"),
            ("a 0 1\na 0\n", "line 2: utterance a stands there a second time"),
            ("a 0 1 x\n", "line 1: utterance a has a label that is no whole number"),
            ("a 0 99999999999999999999\n", "a label that is no whole number|class 9+ at frame 1"),
            ("a 0 -1 2\n", "utterance a has class -1 at frame 1; expected 0 to 40"),
            ("a 0 1\n\nb 5 6 7 41\n", "line 3: utterance b has class 41 at frame 3; expected 0 to 40"),
        ],
    )
    def test_labels_file(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "labels.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_labels(tmp_path / "labels.txt", 41)

    def test_classes_are_those_of_phones_txt(self, folder: Path) -> None:
        (folder / "phones.txt").write_text("".join(f"p{n}\n" for n in range(40)))
        with pytest.raises(DataError, match="utterance a has class 40 at frame 5; expected 0 to 39"):
            read_layout(folder, "train")
        assert read_layout(folder, "train", 41).labels
        (folder / "phones.txt").unlink()
        (folder / "train_labels.txt").write_text("a -1\n")
        with pytest.raises(DataError, match="class -1 at frame 0; expected 0 or more"):
            read_layout(folder, "train")


class Shell:
    """What a hostile file holds: unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


class TestFeatures:
    def test_code_is_refused_and_not_run(self, tmp_path: Path) -> None:
        for path in (tmp_path / "zip.pt", tmp_path / "plain.pt"):
            if path.stem == "zip":
                torch.save({"x": Shell(tmp_path / "ran")}, path)
            else:
                path.write_bytes(pickle.dumps(Shell(tmp_path / "ran"), 2))
            with pytest.raises(DataError, match=rf"{path.name}: holds Python objects, which may run code, and was not"):
                read_features(path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("precision", [torch.float16, torch.float64])
    def test_other_precisions(self, tmp_path: Path, precision: torch.dtype) -> None:
        x = torch.from_numpy(features(0, 5))
        torch.save(x.to(precision).requires_grad_(), tmp_path / "a.pt")
        assert np.array_equal(read_features(tmp_path / "a.pt"), x.to(precision).float().numpy())

    @pytest.mark.filterwarnings("ignore:Validating sparse")
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"x": torch.zeros(3, 39)}, "holds a dict; expected a float tensor of frames x 39"),
            ([1, 2], "holds a list"),
            (torch.zeros(3, 39).int(), "holds a int32 tensor"),
            (torch.zeros(3, 39).to_sparse(), "holds a float32 tensor"),
            (torch.zeros(3, 40), r"shape \(3, 40\); expected frames x 39"),
            (torch.zeros(39), r"shape \(39,\)"),
            (torch.zeros(0, 39), "no frames; take the utterance out"),
            (
                torch.full((3, 39), 1.0).index_fill_(0, torch.tensor(2), torch.nan),
                "frame 2 has a value that is no finite",
            ),
            (
                torch.full((3, 39), 1.0).index_fill_(0, torch.tensor(1), torch.inf),
                "frame 1 has a value that is no finite",
            ),
        ],
    )
    def test_bad_content(self, tmp_path: Path, content: object, message: str) -> None:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(DataError, match=rf"a\.pt: {message}"):
            read_features(tmp_path / "a.pt")

    def test_damage(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(30, 39), tmp_path / "a.pt")
        whole = (tmp_path / "a.pt").read_bytes()
        for data in (b"", b"<html>", whole[:100], whole[:-100], b"\0" * 50):
            (tmp_path / "a.pt").write_bytes(data)
            with pytest.raises(DataError, match=r"a\.pt: cannot be read as a tensor file; copy or unzip it again"):
                read_features(tmp_path / "a.pt")
        with pytest.raises(FileNotFoundError):
            read_features(tmp_path / "none.pt")


class TestWrite:
    def some(self, prefix: str = "") -> list[Utterance]:
        return [
            Utterance(f"{prefix}{name}", features(n, length), np.full(length, n), f"{prefix}s{n % 2}")
            for n, (name, length) in enumerate(zip(NAMES, LENGTHS, strict=True))
        ]

    def test_read_back(self, tmp_path: Path) -> None:
        write_layout(tmp_path / "d", "train", self.some(), ["x", "y", "z"])
        write_layout(tmp_path / "d", "test", [u._replace(labels=None) for u in self.some("t")], ["x", "y", "z"])
        train, test = read_layout(tmp_path / "d", "train"), read_layout(tmp_path / "d", "test")
        assert (train.names, test.names) == (NAMES, ["tb", "ta", "tc"])
        assert (train.speakers, test.speakers) == (["s0", "s1", "s0"], ["ts0", "ts1", "ts0"])
        assert [labels.tolist() for labels in train.labels or []] == [[0] * 4, [1] * 6, [2] * 5]
        assert test.labels is None
        assert np.array_equal(read_features(test.files[2]), features(2, 5))
        assert read_phones(tmp_path / "d") == ["x", "y", "z"]
        assert not [path for path in (tmp_path / "d").iterdir() if path.name.startswith(".")]

    def test_what_is_there_is_kept(self, tmp_path: Path) -> None:
        write_layout(tmp_path, "train", self.some(), ["x", "y", "z"])
        with pytest.raises(DataError, match="feat/train: there already; move it away, or name another folder"):
            write_layout(tmp_path, "train", self.some(), ["x", "y", "z"])
        with pytest.raises(DataError, match=r"phones\.txt: 3 classes, not the 2 asked for"):
            write_layout(tmp_path, "test", self.some(), ["x", "y"])
        assert read_layout(tmp_path, "train").names == NAMES

    def test_it_appears_whole(self, tmp_path: Path) -> None:
        def breaks():
            yield self.some()[0]
            raise DataError("broken")

        with pytest.raises(DataError, match="broken"):
            write_layout(tmp_path / "d", "train", breaks(), ["x"])
        assert list((tmp_path / "d").iterdir()) == []


PHN = "0 2000 h#\n2000 4000 sh\n4000 6000 iy\n6000 8000 tcl\n"
TEXTGRID = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n0.5\n<exists>\n1\n"IntervalTier"\n"phones"\n0\n0.5\n3\n'
    '0\n0.125\n""\n0.125\n0.25\n"SH"\n0.25\n0.5\n"IY1"\n'
)


def noise(path: Path, rate: int = 16000, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(len(path.stem)).standard_normal(int(rate * seconds)), rate)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two speakers; TIMIT's own spelling, a copy of a file, another format and rate."""
    source = tmp_path / "source"
    noise(source / "s1" / "x.wav")
    (source / "s1" / "x.phn").write_text(PHN)
    noise(source / "s2" / "SA1.WAV")
    noise(source / "s2" / "SA1.WAV.wav")
    (source / "s2" / "SA1.PHN").write_text(PHN)
    noise(source / "s2" / "y.flac", 8000)
    (source / "s2" / "y.TextGrid").write_text(TEXTGRID)
    (source / "s2" / "y.txt").write_text("words")
    noise(source / "__MACOSX" / "s1" / "x.wav")
    return source


class TestPrepare:
    @pytest.mark.filterwarnings("ignore:.*resampled")
    def test_recordings(self, recordings: Path, tmp_path: Path) -> None:
        prepare_recordings(recordings, tmp_path / "out", "test")
        found = read_layout(tmp_path / "out", "test")
        assert found.names == ["s1_x", "s2_SA1", "s2_y"]
        assert found.speakers == ["s1", "s2", "s2"]
        names = classes(39)
        assert read_phones(tmp_path / "out") == names
        # centres of the frames at 5, 15, ... ms; boundaries at 125, 250 and 375 ms, a centre on one is the next phone
        spelled = [[names[k] for k in labels] for labels in found.labels or []]
        assert spelled[0] == ["sil"] * 12 + ["sh"] * 13 + ["iy"] * 12 + ["sil"] * 13
        assert spelled[2] == ["sil"] * 12 + ["sh"] * 13 + ["iy"] * 25
        x = read_features(found.files[0])
        assert np.array_equal(x, normalise(mfcc(read_audio(recordings / "s1" / "x.wav"))))
        check_lengths(found, [50] * 3)

    @pytest.mark.filterwarnings("ignore:.*resampled")
    def test_workers_do_the_same(self, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare_recordings(recordings, tmp_path / "one", "train", 61)
        monkeypatch.setattr(libriphone, "SHARE", 1)
        monkeypatch.setattr(libriphone, "cpu_count", lambda: 2)
        prepare_recordings(recordings, tmp_path / "two", "train", 61)
        one, two = (read_layout(tmp_path / name, "train") for name in ("one", "two"))
        assert [a.read_bytes() for a in one.files] == [b.read_bytes() for b in two.files]
        assert (tmp_path / "one" / "train_labels.txt").read_text() == (
            tmp_path / "two" / "train_labels.txt"
        ).read_text()
        assert len(read_phones(tmp_path / "two") or []) == 61

    def test_another_rate_is_said_once(self, recordings: Path, tmp_path: Path) -> None:
        noise(recordings / "s1" / "z.wav", 8000)
        (recordings / "s1" / "z.phn").write_text("0 2000 h#\n2000 4000 sh\n")
        with pytest.warns(UserWarning, match=r"z\.wav and 1 more: 8000 Hz, resampled") as caught:
            prepare_recordings(recordings, tmp_path / "out", "train")
        assert len(caught) == 1
        assert (read_layout(tmp_path / "out", "train").labels or [])[1].tolist() == [38] * 25 + [36] * 25

    def test_one_folder_has_no_speakers(self, recordings: Path, tmp_path: Path) -> None:
        prepare_recordings(recordings / "s1", tmp_path / "out", "train")
        found = read_layout(tmp_path / "out", "train")
        assert (found.names, found.speakers) == (["x"], None)

    def test_errors(self, recordings: Path, tmp_path: Path) -> None:
        def refused(message: str, source: Path = recordings) -> None:
            with pytest.raises(DataError, match=message):
                prepare_recordings(source, tmp_path / "out", "train")
            assert not (tmp_path / "out" / "train_split.txt").exists()

        (recordings / "s2" / "y.flac").unlink()
        (recordings / "s2" / "y.TextGrid").unlink()
        phn = recordings / "s1" / "x.phn"
        phn.rename(phn.with_suffix(".bak"))
        refused(r"x\.wav: no alignment beside it; expected x\.phn or \.TextGrid")
        phn.with_suffix(".bak").rename(phn)
        (recordings / "s1" / "w.phn").write_text(PHN)
        refused(r"w\.phn: no recording beside it; expected w\.wav or \.flac")
        (recordings / "s1" / "w.phn").rename(recordings / "s1" / "x.TextGrid")
        refused("lies beside it; move one of the two alignments away")
        (recordings / "s1" / "x.TextGrid").unlink()
        noise(recordings / "s1" / "x.flac")
        refused(r"x\.wav: x\.flac lies beside it")
        (recordings / "s1" / "x.flac").unlink()
        phn.write_text(PHN.replace("8000", "8200"))
        refused(r"x\.phn, line 4: 'tcl' ends at 0\.5125 s, but the recording is 0\.5 s long")
        refused("no such folder, zip or tar", tmp_path / "none")
        (tmp_path / "empty").mkdir()
        refused("no sound file", tmp_path / "empty")

    def test_zip_errors_name_the_member(self, recordings: Path, tmp_path: Path) -> None:
        (recordings / "s1" / "x.phn").write_text(PHN.replace("sh", "sx"))
        with ZipFile(tmp_path / "my.zip", "w") as zipped:
            for path in recordings.rglob("*.*"):
                zipped.write(path, path.relative_to(recordings))
        with (
            pytest.raises(DataError, match=rf"^{tmp_path}/my\.zip: s1/x\.phn, line 2: unknown phone 'sx'"),
            pytest.warns(UserWarning, match="resampled"),
        ):
            prepare_recordings(tmp_path / "my.zip", tmp_path / "out", "train")
        assert list((tmp_path / "out").iterdir()) == []

    def test_the_timit_sample(self, tmp_path: Path, real_data: Callable[[str], Path]) -> None:
        prepare_recordings(real_data("hw2_phoneme") / "timit_sample_13spk.zip", tmp_path / "out", "train")
        found = read_layout(tmp_path / "out", "train")
        assert len(found.names) == 130
        assert "dr1-mcpm0_sa1" in found.names
        assert len(set(found.speakers or [])) == 13
        lengths = [len(read_features(path)) for path in found.files]
        check_lengths(found, lengths)
        assert sum(lengths) == 39866
        counts = np.bincount(np.concatenate(found.labels or []), minlength=39)
        assert counts.argmax() == 38
        assert counts.min() > 50  # every class is there


class TestTimit11:
    @pytest.fixture
    def timit(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        np.save(tmp_path / "train_11.npy", rng.standard_normal((50, 429)).astype(np.float32))
        np.save(tmp_path / "train_label_11.npy", np.array([str(n % 39) for n in range(50)]))
        np.save(tmp_path / "test_11.npy", rng.standard_normal((7, 429)).astype(np.float32))
        return tmp_path

    def test_read(self, timit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(libriphone, "BLOCK", 16)
        found = read_timit11(timit)
        assert isinstance(found.train, np.memmap)
        assert (found.train.shape, found.test.shape) == ((50, 429), (7, 429))
        assert found.labels.tolist() == [n % 39 for n in range(50)]
        np.save(timit / "train_label_11.npy", found.labels)
        assert read_timit11(timit).labels.tolist() == found.labels.tolist()

    def change(self, path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
        np.save(path, edit(np.load(path)), allow_pickle=True)

    @pytest.mark.parametrize(
        ("name", "edit", "message"),
        [
            ("train_11", lambda x: x[:, :-1], r"float32 of shape \(50, 428\); expected floats, rows x 429"),
            ("test_11", lambda x: x.astype(int), "int64 of shape"),
            ("test_11", lambda x: x[:0], r"shape \(0, 429\)"),
            (
                "test_11",
                lambda x: np.where(np.arange(7)[:, None] == 5, np.nan, x),
                "row 5 has a value that is no finite",
            ),
            ("train_11", lambda x: np.where(np.arange(50)[:, None] == 33, np.inf, x), "row 33 has a value that is no"),
            (
                "train_11",
                lambda x: np.where(np.arange(50)[:, None] == 33, 1e39, x.astype(np.float64)),
                "row 33 has a value that is no",
            ),
            ("train_11", lambda x: x.astype(object), "cannot be read as a .npy file of plain numbers"),
            ("train_label_11", lambda x: x[:-1], r"shape \(49,\), but train_11.npy has 50 rows"),
            ("train_label_11", lambda x: np.where(x == "7", "39", x), "class 39 in row 7; expected 0 to 38"),
            ("train_label_11", lambda x: np.where(x == "7", "-1", x), "class -1 in row 7"),
            ("train_label_11", lambda x: np.where(x == "7", "sh", x), "not all labels are whole numbers"),
            ("train_label_11", lambda x: x.astype(float), "not all labels are whole numbers"),
        ],
    )
    def test_errors(
        self, timit: Path, name: str, edit: Callable, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(libriphone, "BLOCK", 16)
        self.change(timit / f"{name}.npy", edit)
        with pytest.raises(DataError, match=rf"{name}\.npy: .*{message}"):
            read_timit11(timit)

    def test_missing_or_cut(self, timit: Path) -> None:
        path = timit / "train_11.npy"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"train_11\.npy: cannot be read"):
            read_timit11(timit)
        path.unlink()
        with pytest.raises(DataError, match=r"train_11\.npy: missing"):
            read_timit11(timit)
