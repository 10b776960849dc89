"""A run that is ended from outside says so by its exit code, keeps its state, and goes on exactly."""

import itertools
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import answer, assert_fails, works

from modules.hw1_covid import CovidRegressor

pytestmark = pytest.mark.slow


@pytest.fixture
def at_step(monkeypatch):
    """Runs a function once, within a training step of a number counted over the whole run (of a fold) from 0."""

    def arrange(number, action, fold=0):
        step, left = CovidRegressor.training_step, [action]

        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == number and self.trainer.datamodule.fold == fold and left:
                left.pop()()
            return step(self, batch, batch_idx)

        monkeypatch.setattr(CovidRegressor, "training_step", training_step)

    return arrange


def fit(experiment, sample, path, *more):
    return answer("fit", "--config", experiment, "--data.root", sample, "--run_dir", path, *more)


def weights(path):
    return torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(path, other):
    for (name, a), b in zip(weights(path).items(), weights(other).values(), strict=True):
        assert torch.equal(a, b), name
    assert (path / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


# of 8 steps, 4 an epoch: in the first epoch, its last step, in the last epoch
@pytest.mark.parametrize("step", [1, 3, 6])
def test_sigterm_saves_and_the_run_goes_on_exactly(at_step, experiment, sample, trained, tmp_path, step):
    path = tmp_path / "run"
    at_step(step, lambda: signal.raise_signal(signal.SIGTERM))
    said = fit(experiment, sample, path)
    assert said.code == 143
    assert f"resume with: leeml fit --run_dir {path} --resume" in said.err
    assert torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step + 1
    works("fit", "--run_dir", path, "--resume")
    assert_same_run(path, trained)


@pytest.mark.parametrize("parts", [3, 6])
def test_sigterm_within_an_accumulated_step(at_step, experiment, sample, tmp_path, parts):
    """The gradients so far are in no checkpoint, so the step is finished first."""
    flags = ["--trainer.accumulate_grad_batches", parts, "--data.batch_size", 16]  # 13 batches an epoch
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", tmp_path / "whole", *flags)
    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))  # in the first batch of the second step
    assert fit(experiment, sample, tmp_path / "run", *flags).code == 143
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    works("fit", "--run_dir", tmp_path / "run", "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_sigterm_to_all_processes_of_a_run(often, at_step, experiment, sample, trained, tmp_path):
    """Its workers end at once, which is no error of theirs."""

    def end():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    at_step(5, end)
    said = fit(experiment, sample, tmp_path / "run")
    assert said.code == 143
    assert "--resume" in said.err
    works("fit", "--run_dir", tmp_path / "run", "--resume")
    assert_same_run(tmp_path / "run", trained)


class Killed(BaseException):
    pass


def kill():
    """What SIGKILL leaves: no hook of ours runs."""
    raise Killed


@pytest.fixture
def unheard(monkeypatch):
    """The end of a run is not noticed, as after SIGKILL: no exception hook, nothing tidied up."""

    def fit(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightning.pytorch.trainer.call._interrupt", lambda *args: None)
            patch.setattr("scripts.run.folder.RunFolder.remove", lambda self: None)
            patch.setattr("scripts.train.RunFolder.free", lambda self: os.close(self._lock))
            with pytest.raises(Killed):
                answer(*args)

    return fit


@pytest.fixture
def often(monkeypatch):
    """last.ckpt after every step, not only where seconds have passed."""
    monkeypatch.setattr("callbacks.checkpoints.time.monotonic", itertools.count(0.0, 1000.0).__next__)


def test_killed_before_the_first_checkpoint_it_starts_over(at_step, unheard, experiment, sample, trained, tmp_path):
    first = ["fit", "--config", experiment, "--data.root", sample]
    for name, again in {"same": first, "resumed": ["fit", "--resume"]}.items():
        path = tmp_path / name
        at_step(2, kill)
        unheard(*first, "--run_dir", path)
        assert (path / "config.yaml").is_file()
        assert not list(path.rglob("*.ckpt"))
        (path / ".metrics.csv.999999999.part").write_text("left by the kill")
        works(*again, "--run_dir", path)
        assert_same_run(path, trained)
        assert not list(path.rglob("*.part"))


@pytest.mark.parametrize("step", [2, 4, 5, 7])
def test_after_a_kill_no_row_is_missing_and_none_stands_twice(
    often, at_step, unheard, experiment, sample, trained, tmp_path, step
):
    path = tmp_path / "run"
    at_step(step, kill)
    unheard("fit", "--config", experiment, "--data.root", sample, "--run_dir", path)
    left = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    rows = [line.split(",") for line in (path / "metrics.csv").read_text().splitlines()]
    counted = {int(row[rows[0].index("step")]) for row in rows[1:]}
    assert counted >= set(range(left["global_step"]))
    works("fit", "--run_dir", path, "--resume")
    assert_same_run(path, trained)


def test_a_run_goes_on_from_its_best_checkpoint(run, trained):
    """And what came after it is no more, also where it is stopped again at once."""
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    if best["epoch"] == 1:
        shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    works("fit", "--run_dir", run, "--resume", "--ckpt_path", "best")
    assert_same_run(run, trained)


# flags that the state of a checkpoint would overrule


def test_another_optimizer_is_refused_and_spoils_nothing(run, tmp_path):
    for flags, says in {
        ("--model.optimizer", "SGD"): ["state of AdamW", "SGD", "cannot take it over"],
        ("--model.optimizer", "Adam"): ["state of AdamW", "Adam (model.optimizer)"],
        ("--model.optimizer.weight_decay", "0"): ["2 group(s)", "there are 1"],
    }.items():
        assert_fails(tmp_path, "fit", "--run_dir", run, "--resume", "--trainer.max_epochs", "3", *flags, says=says)
    works("fit", "--run_dir", run, "--resume", "--trainer.max_epochs", "3")


def test_flags_of_the_optimizer_are_applied(run):
    flags = {"lr": 0.001, "weight_decay": 0.3, "eps": 1e-6}
    words = [word for key, value in flags.items() for word in (f"--model.optimizer.{key}", str(value))]
    betas = ["--model.optimizer.betas", "[0.8, 0.9]"]
    works("fit", "--run_dir", run, "--resume", "--trainer.max_epochs", "3", *words, *betas)
    decayed, free = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0][
        "param_groups"
    ]
    assert decayed["initial_lr"] == free["initial_lr"] == 0.001
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert decayed["eps"] == 1e-6
    assert tuple(decayed["betas"]) == (0.8, 0.9)
    init = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]
    assert {key: init[key] for key in flags} == flags


@pytest.mark.parametrize("callback", ["EarlyStopping", "EMAWeightAveraging"])
def test_settings_of_callbacks_are_applied(experiment, sample, tmp_path, callback):
    path = tmp_path / "run"
    settings = {
        "EarlyStopping": "{class_path: EarlyStopping, init_args: {monitor: val/mse, patience: %s}}",
        "EMAWeightAveraging": "{class_path: EMAWeightAveraging, init_args: {decay: %s}}",
    }[callback]
    before, now = {"EarlyStopping": (3, 7), "EMAWeightAveraging": (0.9, 0.0)}[callback]
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", path, "--trainer.callbacks",
          f"[{settings % before}]")  # fmt: skip
    works("fit", "--run_dir", path, "--resume", "--trainer.max_epochs", 3, "--trainer.callbacks", f"[{settings % now}]")
    last = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    if callback == "EarlyStopping":
        (state,) = [state for name, state in last["callbacks"].items() if "EarlyStopping" in name]
        assert state["patience"] == 7
    else:  # a mean that forgets all but the last weights is these
        for name, mean in last["state_dict"].items():
            assert torch.equal(mean, last["current_model_state"][name])
        says = ["weights are a mean", "keep it in the list"]
        assert_fails(tmp_path, "fit", "--run_dir", path, "--resume", "--trainer.callbacks", "[]", says=says)


def test_batches_stay_as_they_are_within_an_epoch(at_step, experiment, sample, tmp_path):
    path = tmp_path / "run"
    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))
    fit(experiment, sample, path)
    says = ["middle of an epoch", "data.batch_size", "from 64 to 32"]
    assert_fails(tmp_path, "fit", "--run_dir", path, "--resume", "--data.batch_size", 32, says=says)


# one folder, one process


def test_a_run_in_progress_is_left_alone(run, experiment, sample, tmp_path):
    holder = "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
    holder += "file.write('process 1 on here')\nfile.flush()\nprint('locked', flush=True)\nsys.stdin.read()\n"
    new = tmp_path / "new"
    new.mkdir()
    for folder, args in {run: ["--resume"], new: ["--config", experiment, "--data.root", sample]}.items():
        with subprocess.Popen(
            [sys.executable, "-c", holder, folder / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            says = [str(folder), "in progress in process 1 on here"]
            assert_fails(tmp_path, "fit", "--run_dir", folder, *args, says=says)
            process.kill()  # which frees it
        works("fit", "--run_dir", folder, *args)
        assert not (folder / ".lock").exists()


# folds


@pytest.fixture(scope="module")
def folded(experiment, sample, tmp_path_factory):
    """Three folds, one by one and in one pass, that nothing disturbed."""
    found = {}
    for name, flags in {"one_by_one": ["--one_by_one"], "pass": []}.items():
        found[name] = tmp_path_factory.mktemp("folded") / name
        works("kfold", "--config", experiment, "--data.root", sample, "--folds", 3, "--run_dir", found[name], *flags)
    return found


def assert_same_folds(path, other):
    for name in ("out_of_fold.csv", "submission.csv", "scores.json"):
        assert (path / name).read_bytes() == (other / name).read_bytes(), name
    for metrics in other.rglob("metrics.csv"):
        assert (path / metrics.relative_to(other)).read_bytes() == metrics.read_bytes()


@pytest.mark.parametrize("way", ["one_by_one", "pass"])
@pytest.mark.parametrize("resume", [True, False])
def test_folds_go_on_where_they_stopped(at_step, experiment, sample, folded, tmp_path, way, resume):
    path = tmp_path / "run"
    args = ["kfold", "--config", experiment, "--data.root", sample, "--folds", 3, "--run_dir", path]
    args += ["--one_by_one"] if way == "one_by_one" else []
    at_step(5, lambda: signal.raise_signal(signal.SIGTERM), fold=1 if way == "one_by_one" else None)
    said = answer(*args)
    assert said.code == 143
    assert f"resume with: leeml kfold --run_dir {path} --resume" in said.err
    first = path / "fold_0" / "checkpoints" / "last.ckpt"
    before = first.stat().st_mtime_ns if way == "one_by_one" else None
    works(*(["kfold", "--run_dir", path, "--resume"] if resume else args))
    assert_same_folds(path, folded[way])
    if before:
        assert first.stat().st_mtime_ns == before, "trained again"
    works(*args)  # all is there: only joined once more
    assert_same_folds(path, folded[way])


def test_folds_of_several_machines_are_joined(experiment, sample, folded, tmp_path):
    args = ["kfold", "--config", experiment, "--data.root", sample, "--folds", 3]
    here, there = tmp_path / "here", tmp_path / "there"
    assert "folds 1 are missing" in works(*args, "--only", "0,2", "--run_dir", here).out
    works(*args, "--only", 1, "--run_dir", there)
    shutil.copytree(there / "fold_1", here / "fold_1")
    works("kfold", "--run_dir", here, "--resume", "--data.root", sample)
    assert_same_folds(here, folded["one_by_one"])


def test_folds_are_made_alike(experiment, sample, tmp_path):
    args = ["kfold", "--config", experiment, "--data.root", sample, "--trainer.max_epochs", 1]
    path, other = tmp_path / "run", tmp_path / "other"
    works(*args, "--folds", 2, "--only", 0, "--run_dir", path)
    for flags, says in {
        ("--folds", "3"): ["2 folds one by one"],
        ("--only", "2"): ["--only 2: expected numbers from 0 to 1"],
        ("--model.dropout", "0.5"): ["begun with other flags", f"leeml kfold --run_dir {path} --resume"],
    }.items():
        assert_fails(tmp_path, *args, "--run_dir", path, *flags, says=says)
    works(*args, "--folds", 2, "--only", 1, "--run_dir", other, "--model.dropout", 0.5)
    shutil.copytree(other / "fold_1", path / "fold_1")
    says = ["model.init_args.dropout is 0.5", "it is 0.1", "made alike"]
    assert_fails(tmp_path, "kfold", "--run_dir", path, "--resume", says=says)
    assert_fails(tmp_path, "kfold", "--run_dir", tmp_path / "none", "--resume", says=["no k-fold run to resume"])
    assert_fails(tmp_path, *args, "--run_dir", path / "fold_0", says=["holds a run already"])
