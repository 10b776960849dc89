"""scripts/kfold.py: what a fold that goes on is given, and folders that hold something else."""

import numpy as np
import pytest
import yaml
from conftest import assert_fails
from hypothesis import given
from hypothesis import strategies as st

from datamodules.errors import DataError
from scripts import kfold
from scripts.run.folds import FoldPredictions
from scripts.train import plan


class ReachedError(Exception):
    """The fit of a fold would begin."""


@given(st.data())
def test_damaged_predictions_of_a_fold_are_one_line(tmp_path_factory, choose):
    path = tmp_path_factory.mktemp("kept") / "fold_predictions.npz"
    rows = np.arange(20)
    FoldPredictions(rows, np.sin(rows), np.cos(rows)).save(path)
    content = bytearray(path.read_bytes())
    content[choose.draw(st.integers(0, len(content) - 1))] ^= choose.draw(st.integers(1, 255))
    path.write_bytes(content[: choose.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match=r"fold_predictions.npz: damaged"):
        FoldPredictions.load(path)


@pytest.fixture
def folds(run, tmp_path, monkeypatch):
    """A k-fold run whose fold 0 was interrupted, and a function that says what its fit is given."""
    path = tmp_path / "folds"
    path.mkdir()
    run.rename(path / "fold_0")
    config = path / "fold_0" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["data"]["init_args"] |= {"folds": 3, "fold": 0}
    content["model"]["init_args"]["optimizer"] = {"class_path": "mine.Optimizer", "init_args": {"lr": 0.1}}
    config.write_text(yaml.safe_dump(content))
    given = []

    def stop(words, **kwargs):
        given.append(words)
        raise ReachedError

    monkeypatch.setattr(kfold, "run_cli", stop)

    def words(*more):
        with pytest.raises(ReachedError):
            kfold.main(["kfold", "--run_dir", str(path), "--resume", *map(str, more)])
        return given[-1]

    return path, words


@pytest.mark.parametrize("only", [[], ["--only", "1"]], ids=["goes on", "begins like another"])
def test_a_fold_keeps_trust_and_the_users_config(folds, tmp_path, only):
    path, words = folds
    assert_fails(tmp_path, "kfold", "--run_dir", path, "--resume", *only, says=["mine.Optimizer", "--trust"])
    assert "--trust" in words("--trust", *only)
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {class_path: CovidRegressor, init_args: {dropout: 0.7, optimizer: mine.Optimizer}}\n")
    planned = plan(words("--config", mine, *only))
    assert str(mine) in planned.configs
    last = yaml.safe_load(planned.configs[-1])
    assert last["model"]["init_args"]["dropout"] == 0.1, "the run's own configuration wins"


@pytest.mark.parametrize(
    "data", [{"class_path": "CovidData"}, {"class_path": "CovidData", "init_args": {}}, None, "Data"]
)
def test_a_run_whose_data_have_no_folds_is_left_alone(run, tmp_path, experiment, sample, data):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": data}))
    line = ("kfold", "--config", experiment, "--data.root", sample)
    assert_fails(tmp_path, *line, "--run_dir", run, says=[str(run), "holds a run already"])
    (tmp_path / "folds").mkdir()
    run.rename(tmp_path / "folds" / "fold_0")
    assert_fails(tmp_path, *line, "--run_dir", tmp_path / "folds", says=["config.yaml", "no number of folds"])
