"""scripts/tune.py and scripts/run/sweep.py: a search that learns, goes on after a stop, and reads W&B's own format."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import answer, assert_fails, works
from wandb.sdk.launch.sweeps import utils as wandb_sweeps
from wandb_files import without_account
from wandb_service import Service, serving

from callbacks.finite import NotFiniteError
from datamodules.files.places import PROJECT
from scripts import tune
from scripts.run.folder import RunFolder
from scripts.run.sweep import flags_of, read_sweep
from scripts.train import _class

SWEEPS = sorted((PROJECT / "configs" / "sweeps").glob("*.yaml"))
HOMEWORKS = {path.name for path in (PROJECT / "configs").glob("hw*")}
SMALL = """\
program: leeml
command: ["${{env}}", leeml, fit, --config, {config}, --config, configs/presets/wandb.yaml, "${{args}}"]
method: bayes
metric: {{name: val/mse, goal: minimize}}
early_terminate: {{type: hyperband, min_iter: 1, eta: 2}}
parameters:
  model.optimizer.lr: {{distribution: log_uniform_values, min: 0.0001, max: 0.1}}
  model.hidden: {{values: [[4], [16, 16]]}}
  seed_everything: {{value: 3}}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, experiment):
    path = tmp_path_factory.mktemp("sweep") / "hw1_covid.yaml"
    path.write_text(SMALL.format(config=experiment))
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory, sweep, sample):
    """Folder of a search of three trials that was interrupted in the second, gone on with, and what was said."""
    folder = tmp_path_factory.mktemp("searched") / "tune"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.run.folder.PROJECT", folder.parent)
        patch.setattr(tune.Judge, "on_validation_end", interrupted(tune.Judge.on_validation_end))
        stopped = answer("tune", sweep, "--trials", 3, "--run_dir", folder, "--data.root", sample)
    before = {trial.number: trial.params for trial in study(folder).trials}
    return folder, stopped, before, works("tune", "--run_dir", folder, "--resume", "--trials", 3)


def interrupted(told):
    def inner(judge, trainer, module):
        if judge.trial.number == 1 and not trainer.sanity_checking:
            raise KeyboardInterrupt
        told(judge, trainer, module)

    return inner


def study(folder):
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'study.db'}")


def test_an_interrupted_search_goes_on(searched):
    folder, stopped, before, _ = searched
    assert stopped.code == 130
    assert f"resume with: leeml tune --run_dir {folder} --resume" in stopped.err
    trials = study(folder).trials
    assert [t.state.name for t in trials[:2]] == ["COMPLETE", "FAIL"]
    assert trials[2].params == before[1] == trials[1].params, "the interrupted trial is made again"
    assert sum(t.state.name in ("COMPLETE", "PRUNED") for t in trials) == 3
    assert len({json.dumps(t.params) for t in trials}) == 3


def test_a_trial_is_judged_by_its_best_validation(searched, sweep):
    folder, *_ = searched
    rows = {row["trial"]: row for row in csv.DictReader((folder / "trials.csv").open())}
    assert len(rows) == 4
    for number, row in rows.items():
        if row["state"] == "fail":
            assert not (folder / "trials" / f"{int(number):03}").exists()
            continue
        run = folder / "trials" / f"{int(number):03}"
        seen = [float(r["val/mse"]) for r in csv.DictReader((run / "metrics.csv").open()) if r["val/mse"]]
        assert float(row["val/mse"]) == pytest.approx(min(seen), rel=1e-4)
        assert len(seen) == float(row["validations"])
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["seed_everything"] == 3
        assert config["model"]["init_args"]["hidden"] == json.loads(row["model.hidden"])
    scores = [float(row["val/mse"]) for row in rows.values() if row["state"] == "complete"]
    assert scores == sorted(scores)


def test_only_the_best_keeps_its_checkpoint_and_can_be_tested(searched, sample):
    folder, *_, said = searched
    best = folder / "trials" / f"{study(folder).best_trial.number:03}"
    assert [path.parent.parent for path in folder.rglob("*.ckpt")] == [best]
    assert f"leeml test --run_dir {best}" in said.out
    works("test", "--run_dir", best, "--data.root", sample)
    assert (folder / "importance.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_search_can_be_lengthened_only_by_resume(searched, sweep):
    folder, *_ = searched
    assert_fails(folder, "tune", sweep, "--run_dir", folder, says=["holds a search already", "--resume"])
    assert_fails(folder, "tune", sweep, "--run_dir", folder, "--resume", says=["leave them out"])


def test_a_search_that_cannot_begin_leaves_nothing(tmp_path, sweep):
    folder = tmp_path / "tune"
    assert_fails(tmp_path, "tune", sweep, "--run_dir", folder, "--data.root", tmp_path, says=["hw1_covid"])


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, sweep):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "sweep.yaml").write_text("of the user")
    line = ("tune", sweep, "--run_dir", folder, "--data.root", tmp_path)
    assert_fails(tmp_path, *line, says=[str(folder), "holds sweep.yaml already", "empty folder"])
    (folder / "sweep.yaml").unlink()
    assert_fails(tmp_path, *line, says=["hw1_covid"])
    assert folder.is_dir(), "an empty folder of the user stays"


def test_a_study_that_cannot_be_opened_is_no_traceback(tmp_path, sweep, monkeypatch):
    def full(run, sweep):
        (run.path / "study.db").touch()
        raise OSError(errno.ENOSPC, "full", str(run.path / "study.db"))

    monkeypatch.setattr(tune, "open_study", full)
    assert_fails(tmp_path, "tune", sweep, "--run_dir", tmp_path / "tune", says=["study.db", "free some space"])


def test_a_second_start_leaves_the_first_alone(tmp_path, sweep, sample, monkeypatch):
    first = RunFolder(tmp_path / "tune")
    tune.begin(first, sweep.read_text(), ["--data.root", str(sample)], 0)
    monkeypatch.setattr("scripts.run.folder.lock", lambda file: False)  # as another process sees it
    line = ("tune", sweep, "--run_dir", first.path, "--seed", 1)
    assert_fails(tmp_path, *line, says=[str(first.path), "in progress"])
    first.free()


def test_trials_that_fail_count_and_end_the_search(tmp_path, sweep, monkeypatch):
    calls = []

    def fails(*args, **kwargs):
        calls.append(args)
        raise NotFiniteError("step 3: loss is nan")

    monkeypatch.setattr(tune, "run_cli", fails)
    said = answer("tune", sweep, "--trials", 3, "--run_dir", tmp_path / "tune")
    assert (said.code, len(calls)) == (1, 3)
    assert "all 3 trials failed; the last: step 3: loss is nan" in said.err
    assert len(study(tmp_path / "tune").trials) == 3, "what failed is kept"


def record(folder, sweep_text, flags):
    """A search that somebody else began."""
    folder.mkdir()
    (folder / "sweep.yaml").write_text(sweep_text)
    (folder / "tune.json").write_text(json.dumps({"flags": flags, "seed": 0}))
    (folder / "study.db").touch()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_our_own_searches_resume_without_trust(tmp_path, path):
    flags = [
        "--data.root",
        str(tmp_path),
        "--trainer.max_epochs=3",
        "--trainer.accelerator",
        "cpu",
        "--seed_everything=7",
    ]
    record(tmp_path / "tune", path.read_text(), flags)
    assert tune.read_asked(RunFolder(tmp_path / "tune"), trust=False) == (flags, 0)


def test_no_trial_of_somebody_elses_search_is_a_link(tmp_path, sweep):
    record(tmp_path / "tune", sweep.read_text(), [])
    (tmp_path / "tune" / "trials").mkdir()
    (tmp_path / "tune" / "trials" / "000").symlink_to(tmp_path / "elsewhere")
    assert_fails(tmp_path, "tune", "--run_dir", tmp_path / "tune", "--resume", says=["trials/000", "is a link"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"flags": 3, "seed": 0}', '{"flags": [], "seed": "x"}'])
def test_a_damaged_record_is_one_line(tmp_path, sweep, text):
    record(tmp_path / "tune", sweep.read_text(), [])
    (tmp_path / "tune" / "tune.json").write_text(text)
    assert_fails(tmp_path, "tune", "--run_dir", tmp_path / "tune", "--resume", says=["tune.json", "damaged"])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("method: bayes", "method: best", ["method", "bayes, random, grid"]),
        ("method: bayes", "method: grid", ["model.optimizer.lr", "grid needs values"]),
        ("log_uniform_values", "beta", ["model.optimizer.lr", "beta", "log_uniform_values"]),
        ("min: 0.0001, ", "", ["min is missing"]),
        ("goal: minimize", "goal: least", ["metric.goal", "minimize"]),
        ("type: hyperband", "type: median", ["early_terminate", "hyperband"]),
        ("name: val/mse", "name: val/bleu", ["val/bleu", "val/mse"]),
    ],
)
def test_a_wrong_sweep_is_refused(tmp_path, sweep, sample, old, new, says):
    text = sweep.read_text()
    assert old in text
    (tmp_path / "wrong.yaml").write_text(text.replace(old, new, 1))
    line = ("tune", tmp_path / "wrong.yaml", "--data.root", sample, "--run_dir", tmp_path / "tune")
    assert_fails(tmp_path, *line, says=says)


def test_a_grid_tries_every_value_once(tmp_path, sweep):
    text = sweep.read_text().replace("method: bayes", "method: grid")
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("{distribution: log_uniform_values, min: 0.0001, max: 0.1}", "{values: [0.1, 0.2]}"))
    grid = read_sweep(path)
    assert grid.most == 4
    searching = tune.open_study(RunFolder(tmp_path / "grid"), grid)
    searching.sampler = grid.sampler(0)
    found = [grid.values(searching.ask()) for _ in range(grid.most)]
    assert {(v["model.optimizer.lr"], len(v["model.hidden"])) for v in found} == {
        (a, b) for a in (0.1, 0.2) for b in (1, 2)
    }


def agent_command(path, values):
    """What W&B's agent would start for these values, by its own code."""
    content = yaml.safe_load(path.read_text())
    found = {"env": ["/usr/bin/env"]} | wandb_sweeps.create_sweep_command_args(
        {"args": {key: {"value": value} for key, value in values.items()}}
    )
    line = []
    for word in wandb_sweeps.create_sweep_command(content["command"]):
        line += found[word[2:-1]] if word.startswith("${") else [word]
    return line


def test_every_homework_has_a_sweep():
    assert {path.stem for path in SWEEPS} == HOMEWORKS


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_means_the_same_to_us_and_to_the_agent(path):
    sweep = read_sweep(path)
    trial = optuna.create_study(sampler=sweep.sampler(0)).ask()
    values = sweep.values(trial)
    ours = yaml.safe_load(works("fit", *sweep.flags, *flags_of(values), "--print_config").out)
    line = agent_command(path, values)
    assert line[:3] == ["/usr/bin/env", "leeml", "fit"]
    theirs = yaml.safe_load(works(*line[2:], "--print_config").out)
    assert theirs["model"] == ours["model"]
    assert theirs["data"] == ours["data"]
    assert any(logger["class_path"].endswith("WandbLogger") for logger in theirs["trainer"]["logger"])
    assert not ours["trainer"]["logger"]
    monitor = yaml.safe_load(path.read_text())["metric"]
    module = _class(ours["model"]["class_path"])
    assert (monitor["name"], monitor["goal"][:3]) == (module.monitor, module.mode)
    for key, value in values.items():
        place = ours
        for part in key.split("."):
            place = place[part] if part in place else place["init_args"][part]
        assert place == value


AGENT = """
from wandb import wandb_agent
wandb_agent.Agent.POLL_INTERVAL = 0.1
wandb_agent.run_agent("s", entity="someone", project="leeml")
"""


def test_an_agent_of_wandb_runs_a_trial_to_its_end(tmp_path, sweep, sample):
    values = {"model.optimizer.lr": 0.02, "model.hidden": [4], "seed_everything": 3}
    home = tmp_path / "home"
    home.mkdir()
    text = sweep.read_text().replace("leeml, fit,", f"leeml, fit, --run_dir, {tmp_path / 'run'},")
    with serving(Service(text, {"first": values})) as service:
        env = without_account(home) | {
            "WANDB_BASE_URL": service.address,
            "WANDB_API_KEY": "0123456789" * 4,
            "WANDB_DIR": str(tmp_path),
            "LEEML_DATA": str(sample),
            "PYTHONPATH": str(PROJECT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        line = [sys.executable, "-c", AGENT]
        said = subprocess.run(line, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert service.exit_codes == {"first": 0}, said.stderr
    assert (service.runs["first"]["sweep"], service.runs["first"]["project"]) == ("s", "leeml")
    rows = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    local = [float(row["val/mse"]) for row in rows if row["val/mse"]]
    assert [row["val/mse"] for row in service.history["first"] if "val/mse" in row] == pytest.approx(local)
