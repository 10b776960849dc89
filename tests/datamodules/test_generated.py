"""datamodules/generated.py: generated files that look like the course's, can be learnt from, and replace nothing."""

import csv
import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules import generated as sample
from datamodules.errors import DataError
from datamodules.generated import write_covid, write_phonemes
from datamodules.hw1_covid import CovidData
from datamodules.hw2_phoneme import PhonemeData
from datamodules.speech.libriphone import check_lengths, read_features, read_layout, read_phones
from datamodules.speech.packed import windows

FILES = ["covid.test.csv", "covid.train.csv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "hw1_covid" / "sample"
    assert sorted(write_covid(folder)) == [folder / name for name in FILES]
    return folder


def read(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, dtype=float)


def test_files_have_the_layout_of_2022(folder: Path) -> None:
    """course-spec.md: 2699 x 118 (and 1078 x 117): id, 37 states, 5 days of 16 columns; LF line ends."""
    (header, train), (test_header, test) = read(folder / "covid.train.csv"), read(folder / "covid.test.csv")
    assert train.shape == (2699, 118)
    assert test.shape == (1075, 117)
    assert header[:-1] == test_header
    assert [i for i, name in enumerate(header) if name == "tested_positive"] == [53, 69, 85, 101, 117]
    assert header[38:54] == header[54:70] == header[102:118]
    for rows in (train, test):
        assert rows[:, 0].tolist() == list(range(len(rows)))
        assert (rows[:, 1:38].sum(1) == 1).all()
        assert ((rows[:, 38:] > 0) & (rows[:, 38:] < 1000)).all()
    assert b"\r" not in (folder / "covid.train.csv").read_bytes()
    assert 2 < train[:, -1].min() < 8 < train[:, -1].mean() < 20 < train[:, -1].max() < 100


def test_real_header_of_2022_is_the_same(folder: Path, real_data) -> None:
    for name in FILES:
        with (real_data("hw1_covid/2022") / name).open() as real, (folder / name).open() as ours:
            assert real.readline() == ours.readline()


def test_rows_are_overlapping_windows_and_test_rows_are_others(folder: Path) -> None:
    train, test = read(folder / "covid.train.csv")[1], read(folder / "covid.test.csv")[1]
    first, second = train[:, 1:38], train[:, 38:].reshape(-1, 5, 16)
    follows = [
        np.array_equal(second[i, 1:], second[i + 1, :-1])
        for i in range(len(train) - 1)
        if np.array_equal(first[i], first[i + 1])
    ]
    assert 0.5 < np.mean(follows) < 0.9  # the next day's window is there, unless it is a test row
    assert not {row[38:-1].tobytes() for row in train} & {row[38:].tobytes() for row in test}


def test_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    write_covid(tmp_path / "same", seed=0)
    write_covid(tmp_path / "other", seed=1)
    for name in FILES:
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


@pytest.mark.parametrize("seed", [0, 1])
def test_there_is_something_to_learn(seed: int, tmp_path: Path) -> None:
    """By whole states, which leaks nothing: ridge is far better than the mean, and clearly better than yesterday."""
    write_covid(tmp_path, seed)
    data = CovidData(dir=str(tmp_path), split="state")
    data.setup("fit")
    assert data.train is not None
    x, y = data.train.values[:, 37:], data.train.target
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 3, 5)))
    predicted = cross_val_predict(ridge, x, y, cv=[(f.train, f.val) for f in data.split()])
    mse, yesterday = np.mean((predicted - y) ** 2), np.mean((data.train.day(3)[:, -1] - y) ** 2)
    assert mse < 0.05 * np.var(y)
    assert mse < 0.8 * yesterday
    assert mse > 0.1 * yesterday  # but not a riddle that is solved exactly
    answers = np.hstack([data.train.day(k)[:, :-1] for k in range(5)])
    alone = cross_val_predict(ridge, answers, y, cv=[(f.train, f.val) for f in data.split()])
    assert np.mean((alone - y) ** 2) < 0.6 * np.var(y)  # the answers tell something without any earlier target


@pytest.mark.parametrize("name", [*FILES, "covid_train.csv"])
def test_files_that_are_there_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name}: covid files are here already; they are left as they are"):
        write_covid(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_covid(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [*FILES, "notes.txt"]


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of the second file."""

    real_writer, written = csv.writer, []

    class FullDisk:
        def __init__(self, *args, **options) -> None:
            self.writer = real_writer(*args, **options)

        def writerow(self, row: list[object]) -> None:
            written.append(row)
            if len(written) == 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.writer.writerow(row)

    monkeypatch.setattr(sample.csv, "writer", FullDisk)
    with pytest.raises(OSError, match="No space left"):
        write_covid(tmp_path / "hw1_covid" / "sample")
    assert [p for p in tmp_path.rglob("*") if p.is_file() or p.name not in ("hw1_covid", "sample")] == []


# HW2


SPEECH = ["feat/test", "feat/train", "phones.txt", "test_split.txt", "train_labels.txt", "train_split.txt"]


def found(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "hw2_phoneme" / "sample"
    written = write_phonemes(folder)
    assert {str(path.relative_to(folder)) for path in written} == set(SPEECH)
    return folder


def test_utterances_have_the_layout_of_2022(speech: Path) -> None:
    """course-spec.md: (T, 39) float32 by utterance, 41 classes, split files, labels of the training part alone."""
    train, test = read_layout(speech, "train", 41), read_layout(speech, "test")
    assert (len(train.names), len(test.names)) == (60, 15)
    assert test.labels is None
    assert read_phones(speech) == [str(number) for number in range(41)]
    frames = [read_features(path) for path in train.files]
    check_lengths(train, [len(x) for x in frames])
    assert {x.dtype for x in frames} == {np.dtype(np.float32)}
    for x in frames:  # as the course's are
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(0, ddof=1), 1, atol=1e-4)
    labels = np.concatenate(train.labels or [])
    assert np.bincount(labels, minlength=41).min() > 0, "a class that never occurs"
    assert all(y[0] == y[-1] == 0 for y in train.labels or []), "silence before and after"
    kept = [torch.load(path, weights_only=True) for path in (*train.files, *test.files)]
    assert len({x.numpy().tobytes() for x in kept}) == 75
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in kept)
    assert b"\r" not in (speech / "train_labels.txt").read_bytes()


def test_seed_decides_every_byte_of_the_utterances(speech: Path, tmp_path: Path) -> None:
    write_phonemes(tmp_path / "same", seed=0)
    write_phonemes(tmp_path / "other", seed=1)
    assert found(tmp_path / "same") == found(speech)
    other = found(tmp_path / "other")
    assert other[Path("train_labels.txt")] != found(speech)[Path("train_labels.txt")]


def test_phones_can_be_learnt_and_neighbours_help(speech: Path) -> None:
    """On utterances held out: one frame is far better than the commonest class, eleven clearly better than one."""
    data = PhonemeData(dir=str(speech), precision="float32")
    data.setup("fit")
    train, val = data.split()[0]
    y = data.targets.numpy()
    commonest = np.bincount(y[train]).argmax()
    right = {0: np.mean(y[val] == commonest)}
    for n in (1, 11):
        x = windows(data.frames.frames, data.frames.offsets, torch.arange(len(y)), n).flatten(1).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=60, tol=1e-2))
        right[n] = model.fit(x[train], y[train]).score(x[val], y[val])
    assert right[1] > right[0] + 0.2, right
    assert 1 - right[11] < 0.7 * (1 - right[1]), right
    assert right[11] < 0.98, "nothing left for better networks"


@pytest.mark.parametrize("name", ["train_labels.txt", "test_split.txt", "feat/train"])
def test_utterances_that_are_there_are_left_alone(name: str, speech: Path, tmp_path: Path) -> None:
    """Not even half of the set is written beside them."""
    (tmp_path / "feat").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name}: phoneme files are here already; they are left as they are"):
        write_phonemes(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"
