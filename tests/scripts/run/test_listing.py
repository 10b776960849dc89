"""scripts/runs.py and run/listing.py: the table and the comparison say what the runs' files hold."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import answer, works
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from callbacks.curves import read_metrics
from datamodules.files.places import PROJECT
from scripts.run.listing import describe_run, differences, find_runs, flatten
from scripts.run.origin import read_origin


def test_the_table_says_what_the_run_holds(run):
    info = describe_run(run)
    curve = read_metrics(run / "metrics.csv")["val/mse"]
    assert (info.homework, info.level, info.epochs, info.state) == ("hw1_covid", "experiment", "2 of 2", "done")
    assert abs(info.best - min(value for _, value in curve)) < 1e-4
    assert info.began
    said = works("runs", run.parent).out
    assert f"mse {info.best:.4g}" in said
    (found,) = json.loads(works("runs", run.parent, "--json").out)
    assert found["path"] == str(run)


def test_an_interrupted_run_is_told_from_one_that_ended(run):
    origin = read_origin(run)
    assert origin["ended"]
    (run / "run.json").write_text(json.dumps({**origin, "ended": None}))
    assert describe_run(run).state == "interrupted"
    (run / "checkpoints" / "last.ckpt").unlink()
    assert describe_run(run).state == "stopped"


OWNER = """
import sys
from pathlib import Path
from scripts.run.folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
run.own()
print(flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_owns_is_running(run):
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER, run], stdin=pipe, stdout=pipe, cwd=PROJECT) as owner:
        assert owner.stdout.readline()
        assert describe_run(run).state == "running"
        owner.communicate()
    assert describe_run(run).state == "done"


def test_a_damaged_run_hides_no_other(run, tmp_path):
    bad = tmp_path / "bad"
    (bad / "checkpoints").mkdir(parents=True)
    (bad / "config.yaml").write_text("model: [")
    said = works("runs", tmp_path).out
    assert "left out: " in said
    assert str(bad / "config.yaml") in said
    assert "done" in said
    assert list(find_runs(tmp_path)) == [bad, run]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.yaml", "{model: 1, data: 2, trainer: [1]}", "trainer: expected a section, found [1]"),
        ("config.yaml", "{model: 1, data: 2, trainer: {}, checkpoint: x}", "checkpoint: expected a section"),
        ("scores.json", "[1, 2]", "expected names with scores"),
        ("scores.json", "{", "not JSON"),
        ("metrics.csv", "epoch,val/mse\ninf,1\n", ""),
        ("metrics.csv", "epoch,val/mse\n1,1\n", ""),
    ],
)
def test_what_is_damaged_is_left_out(run, tmp_path, name, text, says):
    bad = shutil.copytree(run, tmp_path / "bad")
    (bad / name).write_text(text)
    said = works("runs", tmp_path).out.splitlines()
    assert [line.split()[0] for line in said if line.endswith("done")] == ["run"]
    assert [line for line in said if line.startswith(f"left out: {bad}") and says in line]


@pytest.mark.parametrize("sort", ["git", "began", "best", "level"])
def test_odd_values_do_not_end_the_table(run, tmp_path, sort):
    odd = shutil.copytree(run, tmp_path / "odd")
    (odd / "scores.json").write_text('{"best val/mse": "x", "test/mse": null}')
    (odd / "run.json").write_text('{"began": 3, "configs": [4], "git": 5, "ended": 6}')
    assert len(works("runs", tmp_path, "--sort", sort).out.splitlines()) == 3
    (odd / "run.json").write_text('{"configs": 4}')
    assert len(works("runs", tmp_path, "--sort", sort).out.splitlines()) == 3


def test_differences_of_two_runs(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["model"]["init_args"]["dropout"] = 0.75
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    said = works("runs", "diff", run, other, "--output", tmp_path / "both.png").out
    assert [line.split() for line in said.splitlines() if "dropout" in line] == [["model.dropout", "0.1", "0.75"]]
    assert Image.open(tmp_path / "both.png").width > 500


def test_folders_that_are_no_runs_are_refused_in_one_line(tmp_path):
    for args in (("runs", tmp_path / "none"), ("runs", "diff", tmp_path, tmp_path)):
        said = answer(*args)
        assert (said.code, said.err.count("\n")) == (1, 1), said.err
        assert str(tmp_path) in said.err


def test_a_callback_of_one_run_is_one_row():
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/mse", "patience": 3},
    }
    guide = {"class_path": "callbacks.general_guide.GeneralGuide", "init_args": {"goal": None, "gap": 1.5}}
    later = {**stop, "init_args": {"monitor": "val/mse", "patience": 9}}
    one = {"trainer": {"callbacks": [stop, guide], "max_epochs": 2}}
    two = {"trainer": {"callbacks": [later, stop], "max_epochs": 2}}
    assert differences(one, two) == [
        ("trainer.callbacks.EarlyStopping.patience", "3", "9"),
        ("trainer.callbacks.GeneralGuide", "callbacks.general_guide.GeneralGuide", "-"),
        ("trainer.callbacks.EarlyStopping 2", "-", "lightning.pytorch.callbacks.EarlyStopping"),
    ]


def test_what_is_a_value_in_one_and_a_section_in_the_other_is_listed():
    assert differences({"net": 1}, {"net": {"depth": 2}}) == [("net", "1", "-"), ("net.depth", "-", "2")]


NAMES = st.sampled_from(["a", "b", "ab", "class_path"])
VALUES = st.recursive(
    st.integers() | st.booleans() | st.none(),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3) | st.lists(st.integers(), max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3))
def test_differences_are_none_only_between_equals(a, b):
    assert differences(a, a) == []
    assert (flatten(a) == flatten(b)) == (differences(a, b) == [])
