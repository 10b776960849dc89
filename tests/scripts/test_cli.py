"""The command line from `leeml --help` to the submission file: what it takes, what it writes, and that flags win."""

import csv
import importlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import answer, tree, works

from callbacks.checkpoints import LastCheckpoint
from scripts.cli.homeworks import data_class, homeworks
from scripts.run.folder import RunFolder
from scripts.train import plan, run_cli

PROJECT = Path(__file__).resolve().parent.parent.parent
CONFIGS = sorted(PROJECT.glob("configs/hw*/*.yaml"))


def process(*args):
    """`python scripts/train.py ...`, with as many threads as here, so that its sums have the same bits."""
    line = [sys.executable, str(PROJECT / "scripts" / "train.py"), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def same(one, other):
    """Two checkpoints' weights, bit for bit."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    assert a["global_step"] == b["global_step"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    return all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())


# help


def test_help_answers_without_torch():
    code = (
        "import sys; from scripts.leeml import main; codes = [main(['--help']), main(['data', 'sample', 'hw1_covd']), "
        "main([])]; print(codes, [m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[0, 2, 0] []"


def test_help_names_every_verb_and_each_has_its_own():
    said = works("--help").out
    for verb in ("fit", "validate", "test", "predict", "translate", "distill", "kfold", "data", "bench"):
        assert re.search(rf"^  {verb} ", said, re.MULTILINE)
        own = works(verb, "--help").out
        assert own.startswith(f"usage: leeml {'[options] ' if '--trainer' in own else ''}{verb}"), own[:80]


def test_alone_it_says_what_to_do_next():
    said = works().out
    assert "leeml data sample hw1_covid" in said
    assert "leeml fit --config configs/hw1_covid/medium.yaml" in said


# from fit to submission


def test_a_run_from_fit_to_submission(sample, experiment, tmp_path, pictures):
    run = tmp_path / "run"
    said = works("fit", "--config", experiment, "--data.root", sample, "--run_dir", run)
    fitted = {str(p.relative_to(run)) for p in tree(run) if p.is_file()}
    assert fitted == {
        "config.yaml",
        "metrics.csv",
        "log.txt",
        "scores.json",
        "run.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/loss.png",
        "figures/learning_rate.png",
        "figures/predicted_against_true.png",
    }
    assert all((run / name).stat().st_size for name in fitted)
    for figure in (run / "figures").iterdir():
        assert figure.read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["hidden"] == [16]
    assert config["data"]["init_args"]["root"] == str(sample)
    assert "max_epochs=2" in (run / "log.txt").read_text()
    metrics = rows_of(run / "metrics.csv")
    scores = [float(row["val/mse"]) for row in metrics if row["val/mse"]]
    assert len(scores) == 2
    assert json.loads((run / "scores.json").read_text()) == {"best val/mse": round(min(scores), 5)}
    assert f"{min(scores):.5f}"[:-1] in said.out
    assert "baselines" not in said.out  # generated data has none
    assert str(run) in said.out

    works("validate", "--run_dir", run)
    works("test", "--run_dir", run)
    stored = json.loads((run / "scores.json").read_text())
    assert stored["val/mse"] == stored["test/mse"] == stored["best val/mse"]
    said = works("predict", "--run_dir", run)
    assert "submission.csv" in said.out
    content = (run / "submission.csv").read_bytes()
    lines = content.split(b"\r\n")
    assert lines[0] == b"id,tested_positive"
    assert lines[-1] == b""
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert [int(line.split(b",")[0]) for line in lines[1:-1]] == list(range(60))
    assert all(0 < float(line.split(b",")[1]) < 100 for line in lines[1:-1])


def test_best_score_is_known_to_the_last_checkpoint(trained):
    """Else a resumed run takes a worse epoch for the best and overwrites best.ckpt."""
    scores = [float(row["val/mse"]) for row in rows_of(trained / "metrics.csv") if row["val/mse"]]
    states = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    known = [state["best_model_score"] for name, state in states.items() if "val/mse" in name]
    assert [float(k) for k in known] == [pytest.approx(min(scores))]


def test_a_checkpoint_alone_predicts(trained, sample, tmp_path):
    works("predict", "--run_dir", trained, "--output", tmp_path / "one.csv")
    alone, tests = tmp_path / "alone", tmp_path / "tests"
    (tests / "hw1_covid").mkdir(parents=True)
    alone.mkdir()
    shutil.copy(trained / "checkpoints" / "best.ckpt", alone / "model.ckpt")
    shutil.copy(sample / "hw1_covid" / "sample" / "covid.test.csv", tests / "hw1_covid")
    works("predict", "--ckpt_path", alone / "model.ckpt", "--data.root", tests)
    assert (alone / "submission.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    works("predict", "--ckpt_path", alone / "model.ckpt", "--data.root", tests, "--output", tmp_path / "two" / "x.csv")
    assert (tmp_path / "two" / "x.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_predict_takes_the_checkpoint_asked_for(run):
    sent = {}
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["state_dict"]["net.mlp.1.bias"] += {"best": 1, "last": 2}[name]
        torch.save(checkpoint, path)
    for name in (None, "best", "last", run / "checkpoints" / "last.ckpt"):
        works("predict", "--run_dir", run, *(["--ckpt_path", name] if name else []))
        sent[name] = (run / "submission.csv").read_bytes()
    assert sent[None] == sent["best"] != sent["last"] == sent[run / "checkpoints" / "last.ckpt"]
    (run / "checkpoints" / "best.ckpt").unlink()  # as when no epoch was validated
    assert "last.ckpt" in works("predict", "--run_dir", run).err
    assert (run / "submission.csv").read_bytes() == sent["last"]


def test_default_run_folder(tmp_path, monkeypatch):
    for config in ("configs/hw1_covid/medium.yaml", PROJECT / "configs/hw1_covid/medium.yaml", "hw1_covid/medium.yaml"):
        if config == "hw1_covid/medium.yaml":
            monkeypatch.chdir(PROJECT / "configs")
        run = plan(["fit", "--config", str(config)]).run
        assert run.path.parent == tmp_path / "here" / "runs" / "hw1_covid" / "medium"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.path.name)


def test_two_runs_in_one_second_have_two_folders(monkeypatch):
    class Noon:
        @staticmethod
        def now():
            return Noon

        @staticmethod
        def strftime(form):
            return "noon"

    monkeypatch.setattr("scripts.run.folder.datetime", Noon)
    names = []
    for _ in range(3):
        run = RunFolder.new("hw1_covid", "medium")
        run.create()
        names.append(run.path.name)
    assert names == ["noon", "noon_2", "noon_3"]


# what wins


def test_flags_beat_the_config(sample, experiment, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("data:\n  init_args:\n    batch_size: 100\nmodel:\n  init_args:\n    hidden: [3, 3]\n")
    run = tmp_path / "run"
    args = ["--config", experiment, "--config", other, "--data.batch_size", 50, "--trainer.max_epochs", 1]
    works("fit", *args, "--data.root", sample, "--run_dir", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 50
    assert config["data"]["init_args"]["target"] == "change"
    assert config["model"]["init_args"]["hidden"] == [3, 3]
    assert config["model"]["init_args"]["dropout"] == 0.1
    assert config["trainer"]["max_epochs"] == 1


def test_flags_beat_the_checkpoint(trained):
    stored = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["dropout"] == 0.1  # what LightningCLI would put over the flag
    args = ["validate", "--run_dir", str(trained), "--model.dropout", "0.4", "--data.batch_size", "7"]
    cli = run_cli(args)
    assert cli.model.net_options["dropout"] == 0.4
    assert cli.datamodule.batch_size == 7


def test_data_root_beats_the_folder_of_the_runs_config(sample, experiment, data, tmp_path):
    run = tmp_path / "run"
    folder = data / "hw1_covid" / "sample"
    works("fit", "--config", experiment, "--data.dir", folder, "--run_dir", run, "--trainer.max_epochs", 1)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["dir"] == str(folder)
    assert run_cli(["validate", "--run_dir", str(run)]).datamodule.locate() == folder
    cli = run_cli(["validate", "--run_dir", str(run), "--data.root", str(sample)])
    assert cli.datamodule.locate() == sample / "hw1_covid" / "sample"


def test_relative_folders_are_kept_whole(data, experiment, tmp_path):
    """A run made with relative paths is found and scored from another folder."""
    here = Path.cwd()
    shutil.copy(experiment, here / "my.yaml")
    args = ["--config", "my.yaml", "--data.root", "../data", "--run_dir", "run", "--trainer.max_epochs", 1]
    works("fit", *args)
    os.chdir(tmp_path)
    assert "test/mse" in works("test", "--run_dir", "here/run").out


# every config


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """Generated sets of all homeworks."""
    root = tmp_path_factory.mktemp("samples")
    for homework in homeworks():
        data_class(homework).sample(root / homework / "sample")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_dry_run_of_every_config_writes_nothing(config, samples, tmp_path):
    before = tree(tmp_path)
    line = ["fit", "--config", config.relative_to(PROJECT), "--data.root", samples, "--trainer.fast_dev_run", 1]
    small = ["--data.max_tokens", 256] if "hw5" in str(config) else ["--data.batch_size", 8]
    if config.stem in ("big", "boss") and "hw5" in str(config):
        small += ["--model.net.layers", 1]  # the six of big take 4 GB, which a worker keeps
    works(*line, *small)
    assert tree(tmp_path) == before


def test_there_are_configs():
    assert {"simple", "medium", "strong", "boss"} <= {p.stem for p in CONFIGS}


def test_dry_runs_by_config_and_into_a_folder_write_nothing(sample, experiment, tmp_path):
    dry = tmp_path / "dry.yaml"
    dry.write_text("trainer:\n  fast_dev_run: 1\n")
    before = tree(tmp_path)
    for verb in ("fit", "kfold"):
        args = ["--config", experiment, "--config", dry, "--data.root", sample, "--run_dir", tmp_path / "run"]
        works(verb, *args)
    assert tree(tmp_path) == before


def test_print_config_shows_what_would_be_run():
    args = ["fit", "--print_config", "--config", "configs/hw1_covid/medium.yaml", "--data.batch_size", "7"]
    config = yaml.safe_load(works(*args).out)
    assert config["model"]["class_path"].endswith("CovidRegressor")
    assert config["data"]["init_args"]["batch_size"] == 7


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_named_class_keeps_no_argument_of_another(config):
    """An Adam that took over AdamW's weight decay would be another optimizer than the config's."""
    said = yaml.safe_load(config.read_text())["model"]["init_args"]
    resolved = yaml.safe_load(works("fit", "--print_config", "--config", config).out)["model"]["init_args"]
    named = [name for name, value in said.items() if isinstance(value, dict) and "class_path" in value]
    assert "optimizer" in named
    for name in named:
        module, _, attribute = resolved[name]["class_path"].rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
        for key, value in resolved[name].get("init_args", {}).items():
            if key not in said[name].get("init_args", {}):
                default = parameters[key].default
                assert value == (list(default) if isinstance(default, tuple) else default), f"{name}.{key}"


# stopping and going on


def start_and_kill(args, ready):
    """Run in a process that is killed as soon as it is ready."""
    running = process(*args)
    try:
        end = time.monotonic() + 120
        while not ready():
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    assert running.returncode == -signal.SIGKILL, "the run was over before it was killed"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(sample, experiment, tmp_path):
    epochs = 40
    args = ["fit", "--config", experiment, "--data.root", sample, "--trainer.max_epochs", epochs]
    args += ["--data.batch_size", 32, "--seed_everything", 5, "--checkpoint.save_top_k", 0]
    whole, run = tmp_path / "whole", tmp_path / "run"
    metrics, last = run / "metrics.csv", run / "checkpoints" / "last.ckpt"

    def beyond_the_checkpoint():  # it is of the first epoch, until ten seconds have passed
        return last.is_file() and metrics.is_file() and "\n2," in metrics.read_text()

    start_and_kill([*args, "--run_dir", run], beyond_the_checkpoint)
    assert torch.load(last, weights_only=True)["epoch"] < epochs - 1
    metrics.write_bytes(metrics.read_bytes()[:-5])  # a row that the kill cut short
    works("fit", "--run_dir", run, "--resume")
    works(*args, "--run_dir", whole)
    assert same(whole / "checkpoints" / "last.ckpt", last)
    for column in ("val/mse", "train/loss", "lr-AdamW/pg1"):
        values = [(int(row["step"]), row[column]) for row in rows_of(metrics) if row[column]]
        steps = [step for step, _ in values]
        assert steps == sorted(set(steps)), column
        expected = [(int(row["step"]), row[column]) for row in rows_of(whole / "metrics.csv") if row[column]]
        assert values == expected, column


def test_a_longer_run_is_the_same_as_going_on(sample, experiment, tmp_path):
    """Also with averaged weights, and a finished run that goes on to its own end keeps its metrics."""
    args = ["fit", "--config", experiment, "--data.root", sample, "--seed_everything", 5, "--trainer.callbacks"]
    args += ["[{class_path: EMAWeightAveraging, init_args: {decay: 0.9}}]"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    works(*args, "--run_dir", whole, "--trainer.max_epochs", 4)
    works(*args, "--run_dir", run, "--trainer.max_epochs", 2)
    works("fit", "--run_dir", run, "--resume", "--trainer.max_epochs", 4)
    for name in ("best", "last"):
        assert same(whole / "checkpoints" / f"{name}.ckpt", run / "checkpoints" / f"{name}.ckpt")
    assert rows_of(run / "metrics.csv") == rows_of(whole / "metrics.csv")
    works("fit", "--run_dir", run, "--resume")
    assert rows_of(run / "metrics.csv") == rows_of(whole / "metrics.csv")
    assert same(whole / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")


@pytest.fixture
def unbeatable(run):
    """A run in a folder of another name than it was made in, with a best score that no epoch will reach."""
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    (state,) = [state for name, state in checkpoint["callbacks"].items() if "val/mse" in name]
    assert not Path(state["best_model_path"]).is_relative_to(run)
    low = torch.tensor(0.001)
    state |= {"best_model_score": low, "kth_value": low, "best_k_models": {state["best_model_path"]: low}}
    torch.save(checkpoint, last)
    return run


def test_a_moved_run_still_knows_its_best(unbeatable):
    """Lightning forgets the best score when the folder has another name, and overwrites best.ckpt."""
    best = unbeatable / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    works("fit", "--run_dir", unbeatable, "--resume", "--trainer.max_epochs", 4)
    assert torch.load(unbeatable / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3
    assert best.read_bytes() == before


def test_a_new_run_from_another_ones_checkpoint_has_its_own_best(unbeatable, sample, experiment, tmp_path):
    new = tmp_path / "new"
    args = ["--config", experiment, "--data.root", sample, "--run_dir", new, "--trainer.max_epochs", 3]
    works("fit", *args, "--ckpt_path", unbeatable / "checkpoints" / "last.ckpt")
    assert torch.load(new / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2


def test_last_checkpoint_is_of_the_last_epoch_not_of_the_best(sample, experiment, tmp_path):
    """Lightning's save_last keeps the newest *best* one."""
    run = tmp_path / "run"
    args = ["--config", experiment, "--data.root", sample, "--run_dir", run, "--trainer.max_epochs", 3]
    works("fit", *args, "--model.optimizer.lr", 30, "--trainer.callbacks", "[]")  # worse from epoch to epoch
    best, last = (torch.load(run / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert best["epoch"] < last["epoch"] == 2


def test_last_checkpoint_is_written_as_often_as_it_should(tmp_path):
    class Trainer:
        fast_dev_run, should_stop, max_epochs, current_epoch, global_step = False, False, 9, 0, 0
        world_size, log_every_n_steps, is_last_batch = 1, 50, False
        saved, strategy = 0, SimpleNamespace(broadcast=lambda value: value, checkpoint_io=None)

        def save_checkpoint(self, path, weights_only):
            self.saved += 1

    trainer, often = Trainer(), LastCheckpoint(tmp_path / "last.ckpt", seconds=1000)
    often.on_train_start(trainer, None)
    counts = []
    for epoch in range(9):
        trainer.current_epoch, trainer.global_step = epoch, epoch + 1
        often.on_train_epoch_end(trainer, None)
        counts.append(trainer.saved)
    often.on_train_end(trainer, None)
    assert counts == [1] * 8 + [2]  # after the first epoch, then not for a while, and at the end
    assert trainer.saved == 2
    trainer.global_step += 1  # ended within an epoch
    often.on_train_end(trainer, None)
    assert trainer.saved == 3


@pytest.mark.parametrize(("world_size", "step", "saves"), [(1, 7, True), (2, 7, False), (2, 50, True)])
def test_last_checkpoint_is_written_within_a_long_epoch(tmp_path, monkeypatch, world_size, step, saves):
    saved = []
    strategy = SimpleNamespace(broadcast=lambda value: value, checkpoint_io=None)
    trainer = SimpleNamespace(
        fast_dev_run=False, global_step=0, world_size=world_size, log_every_n_steps=50, strategy=strategy,
        is_last_batch=False,
        save_checkpoint=lambda path, weights_only: saved.append(trainer.global_step),
    )  # fmt: skip
    clock = [0.0]
    monkeypatch.setattr("callbacks.checkpoints.time.monotonic", lambda: clock[0])
    often = LastCheckpoint(tmp_path / "last.ckpt", seconds=10)
    often.on_train_start(trainer, None)
    for clock[0], trainer.global_step in [
        (9.0, step - 1),
        (11.0, step - 1),
        (11.0, step),
        (12.0, step),
        (13.0, 2 * step),
    ]:
        often.on_train_batch_end(trainer, None, None, None, 0)
    assert saved == [step] * saves  # not before its time, not within an accumulated step, not again at once


# k-fold


@pytest.fixture(scope="module")
def folded(sample, experiment, tmp_path_factory):
    """Five folds in one pass, and one by one."""
    found = {}
    for name, flags in (("pass", []), ("single", ["--one_by_one"])):
        run = tmp_path_factory.mktemp("folded") / name
        args = ["kfold", f"--config={experiment}", "--folds", 3, "--data.root", sample, "--run_dir", run]
        found[name] = run, works(*args, *flags).out
    return found


@pytest.mark.parametrize("name", ["pass", "single"])
def test_kfold_predicts_every_row_once(folded, sample, name):
    run, said = folded[name]
    with open(run / "out_of_fold.csv", newline="") as file:
        assert file.readline() == "id,fold,true,predicted\r\n"
    rows = rows_of(run / "out_of_fold.csv")
    train = rows_of(sample / "hw1_covid" / "sample" / "covid.train.csv")
    assert [row["id"] for row in rows] == [row["id"] for row in train]
    last = list(csv.reader(io.StringIO((sample / "hw1_covid" / "sample" / "covid.train.csv").read_text())))[1:]
    assert [float(row["true"]) for row in rows] == [float(cells[-1]) for cells in last]
    sizes = [sum(row["fold"] == str(k) for row in rows) for k in range(3)]
    assert sizes == [82, 82, 82]
    scores = json.loads((run / "scores.json").read_text())
    for k, score in enumerate(scores["folds"]):
        errors = [(float(r["true"]) - float(r["predicted"])) ** 2 for r in rows if r["fold"] == str(k)]
        assert score == pytest.approx(sum(errors) / len(errors), abs=1e-5)
        assert re.search(rf"^  {k}\s+82\s+{score:.4f}", said, re.MULTILINE)
    assert f"{scores['kfold mse']:.4f}" in said
    assert "submission.csv" in said
    submission = rows_of(run / "submission.csv")
    assert [int(row["id"]) for row in submission] == list(range(60))


def test_one_by_one_uses_the_same_folds(folded):
    one, other = (rows_of(folded[name][0] / "out_of_fold.csv") for name in ("pass", "single"))
    assert [row["fold"] for row in one] == [row["fold"] for row in other]
    assert len({row["fold"] for row in one}) == 3
    assert sorted(p.name for p in folded["single"][0].iterdir() if p.is_dir()) == ["fold_0", "fold_1", "fold_2"]


def test_kfold_without_a_test_file_keeps_what_it_learned(data, experiment, tmp_path):
    (data / "hw1_covid" / "sample" / "covid.test.csv").unlink()
    run = tmp_path / "run"
    said = answer("kfold", "--config", experiment, "--folds", 2, "--data.root", data, "--run_dir", run)
    assert said.code == 0  # a set of one's own need not have a test part
    assert re.search(r"^leeml: no submission.csv .*covid.test.csv", said.err, re.MULTILINE)
    assert len(rows_of(run / "out_of_fold.csv")) == 246
    assert not (run / "submission.csv").exists()
    assert "mean" in said.out


def test_kfold_drops_early_stopping(sample, experiment, tmp_path):
    """Stopping by held-out rows would choose by what is scored."""
    stopping = tmp_path / "stopping.yaml"
    text = experiment.read_text() + (
        "    - class_path: EarlyStopping\n      init_args: {monitor: val/mse, stopping_threshold: 1000}\n"
    )
    stopping.write_text(text.replace("max_epochs: 2", "max_epochs: 3"))
    for verb, epochs in (("fit", 1), ("kfold", 3)):
        run = tmp_path / verb
        works(verb, "--config", stopping, "--data.root", sample, "--run_dir", run)
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epochs - 1
