"""datamodules/sample.py: generated files that look like the course's, can be learnt from, and replace nothing."""

import csv
import errno
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules import sample
from datamodules.errors import DataError
from datamodules.hw1_covid import CovidData
from datamodules.sample import write_covid

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
