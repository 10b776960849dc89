"""scripts/ensemble.py: the mean of several runs, against means computed here, and what cannot be averaged."""

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import answer, assert_fails, works
from hypothesis import given
from hypothesis import strategies as st

from callbacks.predictions import Predictions, read_predictions, write_predictions
from scripts import ensemble
from scripts.ensemble import mean, open_cli, parse_weights, select


@pytest.fixture(scope="module")
def pair(trained, sample, experiment, tmp_path_factory):
    """Two runs of HW1 with other networks, and what each wrote as its submission."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(trained, folder / "a")
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", folder / "b", "--model.hidden", "[8, 8]")
    for name in "ab":
        works("predict", "--run_dir", folder / name)
    return folder / "a", folder / "b"


def column(path):
    return np.array([float(row["tested_positive"]) for row in csv.DictReader(path.open())])


def test_it_writes_the_weighted_mean(pair, tmp_path):
    a, b = (column(run / "submission.csv") for run in pair)
    assert np.abs(a - b).max() > 0.01, "two different networks"
    works("ensemble", *pair, "--weights", "3,1", "--output", tmp_path / "both.csv")
    np.testing.assert_allclose(column(tmp_path / "both.csv"), (3 * a + b) / 4, rtol=1e-5)


def test_predict_with_two_runs_is_the_same(pair, tmp_path):
    works("ensemble", *pair, "--output", tmp_path / "one.csv")
    works("predict", "--run_dir", pair[0], "--run_dir", pair[1], "--output", tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_weights_are_searched_on_rows_that_no_run_trained_on(pair, tmp_path):
    said = works("ensemble", *pair, "--weights", "search", "--output", tmp_path / "both.csv").out
    assert "rows that no run trained on" in said
    weights = [float(line.split()[1]) for line in said.splitlines() if line.startswith("  weight")]
    a, b = (column(run / "submission.csv") for run in pair)
    np.testing.assert_allclose(column(tmp_path / "both.csv"), weights[0] * a + weights[1] * b, rtol=1e-4)


def test_runs_that_hold_out_nothing_in_common_are_refused(pair, sample, experiment, tmp_path):
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", tmp_path / "c", "--data.fold", 1)
    said = answer("ensemble", pair[0], tmp_path / "c", "--weights", "search", "--output", tmp_path / "both.csv")
    assert (said.code, (tmp_path / "both.csv").exists()) == (1, False)
    assert "no row is held out by all" in said.err


@pytest.fixture(scope="module")
def folds(sample, experiment, tmp_path_factory):
    """Two k-fold runs of HW1 with other networks, one fold by fold and one in one pass."""
    folder = tmp_path_factory.mktemp("folds")
    for name, how in {"a": ["--model.hidden", "[16]", "--one_by_one"], "b": ["--model.hidden", "[8, 8]"]}.items():
        words = ("--data.root", sample, "--folds", 3, *how)
        works("kfold", "--config", experiment, *words, "--run_dir", folder / name)
    return folder / "a", folder / "b"


def test_k_fold_runs_are_joined_as_runs_and_judged_on_every_row(folds, pair, tmp_path):
    said = works("ensemble", *folds, "--weights", "search", "--output", tmp_path / "both.csv").out
    lines = [line.split() for line in said.splitlines() if line.startswith("  weight")]
    weights = [float(line[1]) for line in lines]
    a, b = (column(run / "submission.csv") for run in folds)
    off = np.abs(column(tmp_path / "both.csv") - (weights[0] * a + weights[1] * b))
    assert (off <= 0.01 * np.abs(a - b) + 1e-4).all(), "weights are printed with two decimals"
    assert np.abs(a - b).max() > 0.05
    for run, line in zip(folds, lines, strict=True):
        rows = list(csv.DictReader((run / "out_of_fold.csv").open()))
        errors = [(float(row["true"]) - float(row["predicted"])) ** 2 for row in rows]
        assert f"  {len(rows)} rows that no run trained on" in said
        assert float(line[2]) == pytest.approx(np.mean(errors), abs=2e-4)
    works("ensemble", folds[0], pair[0], "--output", tmp_path / "mixed.csv")
    other = column(pair[0] / "submission.csv")
    np.testing.assert_allclose(column(tmp_path / "mixed.csv"), (a + other) / 2, rtol=1e-4)


def test_k_fold_runs_that_cannot_be_joined(folds, tmp_path):
    part = shutil.copytree(folds[0], tmp_path / "part")
    (part / "fold_1" / "fold_predictions.npz").unlink()
    assert_fails(
        tmp_path, "ensemble", part, folds[1], says=["folds 1 are missing", f"leeml kfold --run_dir {part} --resume"]
    )
    said = answer("ensemble", *folds, "--model.dropout=0.1")
    assert (said.code, "have predicted already" in said.err) == (2, True)


@pytest.fixture
def copied(pair, tmp_path):
    """A copy of the two runs, whose files a test may change."""
    return [shutil.copytree(run, tmp_path / run.name) for run in pair]


@pytest.fixture
def opened(monkeypatch):
    """Names of the runs that are asked to predict."""
    names = []

    def counted(run, subcommand, rest):
        names.append(run.name)
        return open_cli(run, subcommand, rest)

    monkeypatch.setattr(ensemble, "open_cli", counted)
    return names


def test_what_was_kept_counts_for_its_checkpoint_alone(copied, opened, tmp_path):
    works("ensemble", *copied, "--output", tmp_path / "one.csv")
    assert opened == ["a"], "what b predicted was kept"
    checkpoints = [run / "checkpoints" / "best.ckpt" for run in copied]
    stored = torch.load(checkpoints[1], weights_only=True)
    last = list(stored["state_dict"])[-1]
    stored["state_dict"][last] = stored["state_dict"][last] + 1  # a later best epoch
    torch.save(stored, checkpoints[1])
    works("ensemble", *copied, "--output", tmp_path / "two.csv")
    assert opened == ["a", "a", "b"]
    assert np.abs(column(tmp_path / "one.csv") - column(tmp_path / "two.csv")).max() > 1e-3


def test_what_was_kept_counts_for_its_data_alone(copied, data, opened, tmp_path):
    path = data / "hw1_covid" / "sample" / "covid.test.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *reversed(lines[1:])]))
    works("predict", "--run_dir", copied[1], "--data.root", data)
    works("ensemble", *copied, "--output", tmp_path / "both.csv")
    assert opened == ["a", "b"]


def test_submissions_of_the_runs_stay_as_they_are(copied, data, tmp_path):
    for run in copied:
        (run / "submission.csv").write_text("mine")
    works("ensemble", *copied, "--data.root", data, "--output", tmp_path / "both.csv")
    assert [(run / "submission.csv").read_text() for run in copied] == ["mine", "mine"]


def test_a_cut_file_of_predictions_is_made_anew(copied, opened, tmp_path):
    path = copied[1] / "predictions.npz"
    whole = path.read_bytes()
    for text in (whole[: len(whole) // 2], whole[:30], b"PK\x03\x04", b""):
        path.write_bytes(text)
        assert read_predictions(path) is None
    works("ensemble", *copied, "--output", tmp_path / "both.csv")
    assert opened == ["a", "b"]


@given(st.data())
def test_damaged_predictions_raise_nothing(tmp_path_factory, choose):
    path = tmp_path_factory.mktemp("kept") / "kept.npz"
    write_predictions(path, Predictions(np.arange(50), np.random.default_rng(0).random((50, 3)), "names"))
    content = bytearray(path.read_bytes())
    place = choose.draw(st.integers(0, len(content) - 1))
    content[place] ^= choose.draw(st.integers(1, 255))
    path.write_bytes(content[: choose.draw(st.integers(0, len(content)))])
    kept = read_predictions(path)
    assert kept is None or kept._fields == Predictions._fields


def test_what_cannot_be_averaged_is_refused(pair, tmp_path):
    other = shutil.copytree(pair[1], tmp_path / "other")
    kept = read_predictions(other / "predictions.npz")
    write_predictions(other / "predictions.npz", kept._replace(names="others"))
    for args, code, says in (
        (("ensemble", pair[0]), 2, "two or more"),
        (("ensemble", pair[0], other), 1, "other rows"),
        (("ensemble", *pair, "--weights", "1,x"), 2, "expected 2 numbers"),
        (("test", "--run_dir", pair[0], "--run_dir", pair[1]), 2, "takes one --run_dir"),
    ):
        said = answer(*args)
        assert says in said.err
        assert said.code == code


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_search_is_never_worse_than_the_best_run(rows, runs, seed):
    rng = np.random.default_rng(seed)
    true, values = rng.normal(size=rows), list(rng.normal(size=(runs, rows)))

    def score(predicted):
        return -float(np.mean((predicted - true) ** 2))

    weights = select(values, score)
    assert abs(sum(weights) - 1) < 1e-9
    assert score(mean(values, weights)) >= max(score(value) for value in values) - 1e-12


@given(st.integers(0, 30), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_probabilities_come_back(tmp_path_factory, rows, classes, seed):
    values = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)).softmax(-1).numpy()
    path = tmp_path_factory.mktemp("kept") / "kept.npz"
    write_predictions(path, Predictions(np.arange(rows), values, "names"))
    kept = read_predictions(path)
    assert kept.names == "names"
    np.testing.assert_allclose(kept.values, values, atol=5e-4)


@pytest.mark.parametrize("text", ["1", "1,-1", "0,0", "nan,1", "1,inf", "", "a,b"])
def test_weights_that_are_none(text):
    with pytest.raises(Exception, match="expected 2 numbers"):
        parse_weights(text, 2)
