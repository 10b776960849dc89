"""A run whose numbers leave the finite ones: one line, exit code 1, and nothing kept of it."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import yaml
from conftest import answer, assert_fails, tree, works
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.submission import write_csv


@pytest.fixture
def diverging(experiment, sample):
    """Arguments of a run whose second step has an infinite loss."""
    args = ["fit", "--config", experiment, "--data.root", sample, "--model.optimizer", "SGD"]
    return [*args, "--model.optimizer.lr", 1e30, "--trainer.callbacks", "[]", "--trainer.max_epochs", 3]


def test_a_diverging_run(diverging, tmp_path):
    path = tmp_path / "run"
    said = answer(*diverging, "--run_dir", path)
    assert said.code == 1
    assert "leeml: error: step 1: the loss is" in said.err
    assert "best" not in said.out
    assert sorted(p.name for p in path.rglob("*.ckpt")) == ["last.ckpt"]
    last = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert last["train_sums"].isfinite().all()
    before = tree(path)
    for verb in ("test", "validate", "predict"):  # weights of 1e32 are finite, what they say is not
        said = answer(verb, "--run_dir", path)
        assert said.code == 1
        assert said.err.splitlines()[-1].startswith("leeml: error:")
    assert tree(path) == before


def test_steps_are_skipped_where_wanted(diverging, experiment, sample, tmp_path):
    said = answer(*diverging, "--run_dir", tmp_path / "run", "--nonfinite", "skip")
    assert said.code == 1
    assert "is inf" in said.err or "is nan" in said.err  # the first validation
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", tmp_path / "other", "--nonfinite", "lower")
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["nonfinite"] == "lower"
    says = ["nonfinite", "halve"]
    assert_fails(tmp_path, *diverging, "--run_dir", tmp_path / "no", "--nonfinite", "halve", says=says)


@pytest.mark.parametrize(("column", "cell"), [(-1, "1e38"), (-1, "-1e38"), (50, "1e308"), (50, "1e39"), (50, "1e16")])
def test_a_cell_beyond_float32(experiment, data, tmp_path, column, cell):
    file = data / "hw1_covid" / "sample" / "covid.train.csv"
    lines = file.read_text().splitlines()
    cells = lines[3].split(",")
    cells[column] = cell
    file.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    args = ["--config", experiment, "--data.root", data, "--run_dir", tmp_path / "run"]
    assert_fails(tmp_path, "fit", *args, says=[f"{file}:4: column", f"'{cell}'", "float32"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 4), st.booleans())
def test_no_table_holds_what_is_not_finite(value, row, numpy):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        rows = [[n, np.float32(value) if numpy else value] if n == row else [n, 1.5] for n in range(5)]
        with pytest.raises(MisconfigurationException, match=f"not written, as y of row {row} is"):
            write_csv(path, ["id", "y"], rows)
        assert list(path.parent.iterdir()) == []
