"""A user's mistake: one line with file, place, what was expected and the way out; nothing half-written or lost."""

import csv
import errno
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import EXPERIMENT, answer, assert_fails, works

from datamodules.errors import DataError
from scripts.cli.homeworks import data_class, homeworks
from scripts.leeml import main

EARLY = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/mse"
NEW = "new_run"  # a run folder that must not appear


@pytest.fixture
def fit(experiment, tmp_path):
    """Arguments of a fit into a new folder."""
    return ["fit", "--config", experiment, "--run_dir", tmp_path / NEW]


# data


def csv_file(root, part="train"):
    return root / "hw1_covid" / "sample" / f"covid.{part}.csv"


def edit(path, change):
    """Rewrite a CSV by a function of its rows (header first)."""
    with open(path, newline="") as file:
        rows = change(list(csv.reader(file)))
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def put(row, column, text):
    def change(rows):
        rows[row][column] = text
        return rows

    return change


def drop_column(*names):
    def change(rows):
        kept = [i for i, name in enumerate(rows[0]) if name not in names]
        return [[row[i] for i in kept] for row in rows]

    return change


@pytest.mark.parametrize("flag", ["--data.root", "--data.dir", None])
def test_no_data_names_the_three_ways_to_get_it(fit, tmp_path, flag):
    where = tmp_path / "empty"
    where.mkdir()
    flags = [flag, where] if flag else []
    ways = ["ml2022spring-hw1", "leeml data fetch hw1_covid", "leeml data sample hw1_covid"]
    assert_fails(tmp_path, *fit, *flags, says=[str(where if flag else tmp_path / "no_data"), "Ways to get them", *ways])


@pytest.mark.parametrize("flag", ["--data.root", "--data.dir"])
def test_a_home_folder_of_nobody(fit, tmp_path, flag):
    assert_fails(tmp_path, *fit, flag, "~no_such_user/data", says=["~", "no user of this machine"])


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_no_data_for_a_trained_run(run, tmp_path, verb):
    assert_fails(
        tmp_path, verb, "--run_dir", run, "--data.root", tmp_path / "nowhere", says=["nowhere", "leeml data fetch"]
    )


def test_several_editions_are_listed(fit, data, tmp_path):
    (data / "hw1_covid" / "sample").rename(data / "hw1_covid" / "2021")
    shutil.copytree(data / "hw1_covid" / "2021", data / "hw1_covid" / "2022")
    assert_fails(tmp_path, *fit, "--data.root", data, says=["2021, 2022", "--data.edition 2021"])
    works(*fit, "--data.root", data, "--data.edition", "2022", "--trainer.fast_dev_run", "1")


def test_an_edition_that_is_not_there(fit, data, tmp_path):
    assert_fails(tmp_path, *fit, "--data.root", data, "--data.edition", "2031", says=["2031", "it holds sample"])


def test_too_few_cells_in_a_row(fit, data, tmp_path):
    edit(csv_file(data), lambda rows: [*rows[:6], rows[6][:-1], *rows[7:]])
    says = [f"{csv_file(data)}:7:", "117 columns", "expected 118"]
    assert_fails(tmp_path, *fit, "--data.root", data, says=says)


def test_a_missing_column(fit, data, tmp_path):
    edit(csv_file(data), lambda rows: [row[:40] + row[41:] for row in rows])  # of one day only
    assert_fails(tmp_path, *fit, "--data.root", data, says=[f"{csv_file(data)}:1:", "day 1", "nohh_cmnty_cli"])


def test_an_extra_column(fit, data, tmp_path):
    edit(csv_file(data), lambda rows: [[*row[:60], "mood" if i == 0 else "1", *row[60:]] for i, row in enumerate(rows)])
    assert_fails(tmp_path, *fit, "--data.root", data, says=[f"{csv_file(data)}:1:", "day 2", "mood"])


@pytest.mark.parametrize("text", ["many", "nan", "-inf", ""])
def test_a_cell_that_is_no_finite_number(fit, data, tmp_path, text):
    edit(csv_file(data), put(9, 41, text))
    says = [f"{csv_file(data)}:10:", "column 42 (nohh_cmnty_cli)", repr(text), "finite number"]
    assert_fails(tmp_path, *fit, "--data.root", data, says=says)


def test_a_bad_cell_in_the_test_file(run, data, tmp_path):
    edit(csv_file(data, "test"), put(3, 100, "?"))
    says = [f"{csv_file(data, 'test')}:4:", "column 101", "'?'"]
    assert_fails(tmp_path, "predict", "--run_dir", run, "--data.root", data, says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "empty"), (None, "only a header line"), ("\0" * 50, "id"), ("id;cli;tested_positive\n1;2;3\n", "commas")],
    ids=["empty", "header", "zeros", "semicolons"],
)
def test_a_file_without_rows(fit, data, tmp_path, content, says):
    path = csv_file(data)
    path.write_text(path.read_text().splitlines()[0] + "\n" if content is None else content)
    assert_fails(tmp_path, *fit, "--data.root", data, says=[str(path), says])


def test_an_id_that_stands_twice(fit, data, tmp_path):
    edit(csv_file(data), lambda rows: [*rows, rows[4]])
    last = len(csv_file(data).read_text().splitlines())
    assert_fails(tmp_path, *fit, "--data.root", data, says=[f"{csv_file(data)}:{last}:", "line 5", "remove"])


def test_a_file_that_is_not_utf8(fit, data, tmp_path):
    path = csv_file(data)
    path.write_bytes(path.read_bytes().replace(b"worried", "worriéd".encode("latin-1"), 1))
    assert_fails(tmp_path, *fit, "--data.root", data, says=[str(path), "UTF-8"])


@pytest.mark.parametrize(("verb", "column"), [("test", "cli"), ("predict", "cli"), ("predict", "WA")])
def test_other_features_than_the_models(run, data, tmp_path, verb, column):
    for part in ("train", "test"):
        edit(csv_file(data, part), drop_column(column))
    says = [f"covid.{'test' if verb == 'predict' else ''}", ":1:", column, "trained on", "train a model"]
    assert_fails(tmp_path, verb, "--run_dir", run, "--data.root", data, says=says)


def test_other_kind_of_features_than_the_models(run, sample, tmp_path):
    for verb in ("test", "predict"):
        assert_fails(
            tmp_path, verb, "--run_dir", run, "--data.features", "differences", says=["data.features", "differences"]
        )


def test_a_file_as_an_editor_leaves_it_is_accepted(experiment, data, tmp_path):
    def weights(name):
        works("fit", "--config", experiment, "--data.root", data, "--run_dir", tmp_path / name, "--seed_everything", 1)
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    def as_pandas(rows):
        seen = {}
        for i, name in enumerate(rows[0]):
            seen[name] = seen.get(name, -1) + 1
            rows[0][i] = f"{name}.{seen[name]}" if seen[name] else name
        return rows

    plain = weights("plain")
    for part in ("train", "test"):
        path = csv_file(data, part)
        with open(path, newline="") as file:
            rows = as_pandas(list(csv.reader(file)))
        with open(path, "w", newline="", encoding="utf-8-sig") as file:  # with a byte order mark
            csv.writer(file, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows(rows)
    assert csv_file(data).read_bytes().startswith(b'\xef\xbb\xbf"id","AL"')
    assert b'"tested_positive.3"' in csv_file(data).read_bytes()
    edited = weights("edited")
    assert plain.keys() == edited.keys()
    assert all(torch.equal(value, edited[key]) for key, value in plain.items())
    predicted = []
    for name in ("plain", "edited"):
        works("predict", "--run_dir", tmp_path / name)  # the test file as edited
        predicted.append((tmp_path / name / "submission.csv").read_bytes())
    assert predicted[0] == predicted[1]


# configs and flags


def line_of(text, part):
    return next(i for i, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("lr: 0.003", "lrr: 0.003", ["model.optimizer.lrr", "AdamW", "did you mean lr?"]),
        ("hidden:", "hiden:", ["model.hiden", "CovidRegressor", "did you mean hidden?"]),
        ("target:", "taget:", ["data.taget", "CovidData", "did you mean target?"]),
        ("max_epochs:", "max_epoch:", ["trainer.max_epoch:", "did you mean trainer.max_epochs?"]),
        ("trainer:", "trainr:", ["trainr.max_epochs", "did you mean trainer.max_epochs?"]),
        ("warmup:", "warmupp:", ["trainer.callbacks.warmupp", "WarmupScheduler", "did you mean warmup?"]),
        ("CovidData", "CovidDate", ["data: there is no class 'CovidDate'", "did you mean CovidData?"]),
        ("AdamW", "AdamV", ["model.optimizer", "AdamV", "did you mean Adam"]),
        ("hidden: [16]", "hidden: 16", ["model.hidden", "expected a list", "found 16"]),
        ("target: change", "target: nope", ["data.target", "'level' or 'change'", "found nope"]),
        ("max_epochs: 2", "max_epochs: two", ["trainer.max_epochs", "expected a whole number", "found two"]),
        ("class_path: CovidData", "clas_path: CovidData", ["data:", "class_path"]),
    ],
)
def test_a_mistake_in_a_config_is_found_in_its_line(sample, tmp_path, right, wrong, says):
    text = EXPERIMENT.replace(right, wrong)
    config = tmp_path / "mine.yaml"
    config.write_text(text)
    line = line_of(text, "data:" if wrong.startswith("clas_path") else wrong)
    args = ["fit", "--config", config, "--run_dir", tmp_path / NEW, "--data.root", sample]
    assert assert_fails(tmp_path, *args, says=says).startswith(f"leeml: error: {config}:{line}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "nothing"), ("- a\n", "sections"), ("model:\n  a: [1\n", ":3: not YAML"), ("model: \xff", "not a UTF-8")],
)
def test_a_config_that_is_none(tmp_path, text, says):
    config = tmp_path / "mine.yaml"
    config.write_bytes(text.encode("latin-1"))
    for verb in ("fit", "kfold"):
        assert_fails(tmp_path, verb, "--config", config, "--run_dir", tmp_path / NEW, says=[str(config), says])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--data.batchsize 3", ["data.batchsize", "did you mean batch_size?"]),
        ("--model.droput 0.5", ["model.droput", "did you mean dropout?"]),
        ("--model.optimizer.lrr 0.5", ["model.optimizer.lrr", "did you mean lr?"]),
        ("--modle.hidden [3]", ["--modle.hidden", "did you mean --model.hidden?"]),
        ("--trainer.max_epoch 3", ["--trainer.max_epoch:", "did you mean --trainer.max_epochs?"]),
        ("--bogus 3", ["--bogus", "no such flag; see"]),
        ("--ckpt last", ["--ckpt", "did you mean --ckpt_path?"]),
        ("--epochs 3", ["--epochs", "did you mean --trainer.max_epochs?"]),
        ("--batch_size 3", ["--batch_size", "did you mean --data.batch_size?"]),
        ("--seed 1", ["--seed", "did you mean --seed_everything?"]),
        ("--lr 0.1", ["--lr", "did you mean --model.optimizer.lr?"]),
        ("medium", ["medium", "flags begin with --"]),
        ("--model CovidRegresor", ["no class 'CovidRegresor'", "did you mean CovidRegressor?"]),
        ("--model.optimizer SDG", ["model.optimizer", "no class or function 'SDG'", "did you mean SGD?"]),
        ("--data.batch_size x", ["data.batch_size", "expected a whole number, found x"]),
        ("--data.split nope", ["data.split", "'random'", "'grouped'", "found nope"]),
        ("--model.dropout null", ["model.dropout: expected a number, found null"]),
        ("--data.batch_size null", ["data.batch_size: expected a whole number, found null"]),
        ("--model.hidden null", ["model.hidden: expected a list, found null"]),
        ("--model.activation null", ["model.activation: expected one of relu,", "found null"]),
        ("--model.activation nope", ["model.activation", "'relu'", "found nope"]),
        ("--model.hidden 5", ["model.hidden", "expected a list, found 5"]),
        ("--trainer.max_epochs x", ["trainer.max_epochs", "expected a whole number, found x"]),
        ("--run_dir", ["--run_dir", "expected one argument"]),
        ("--config", ["--config", "expected one argument"]),
    ],
)
def test_a_flag_that_is_not_understood(fit, sample, tmp_path, flags, says):
    assert_fails(tmp_path, *fit, "--data.root", sample, *flags.split(), says=says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--data.folds 1", ["data.folds is 1", "at least 2"]),
        ("--data.fold 9", ["data.fold is 9", "0 to 4"]),
        ("--data.batch_size 0", ["data.batch_size is 0", "at least 1"]),
        ("--data.members 0", ["data.members is 0", "at least 1"]),
        ("--data.folds 5000", ["covid.train.csv", "data.folds = 5000"]),
        ("--data.select f_test --data.k 1000", ["data.k is 1000", "116"]),
        ("--data.columns [nope*]", ["data.columns", "'nope*'", "hh_cmnty_cli"]),
        ("--model.dropout 2", ["dropout", "model.dropout", "below 1", "2.0"]),
        ("--model.hidden [0]", []),
        ("--model.optimizer.lr -1", ["learning rate", "-1"]),
        ("--trainer.max_epochs -5", ["max_epochs", "-5"]),
        ("--trainer.check_val_every_n_epoch 0", []),
        ("--trainer.strategy nope", ["strategy", "nope", "ddp"]),
        ("--trainer.accelerator nope", ["accelerator", "nope", "cpu"]),
        ("--trainer.devices cpu", ["devices", "int"]),
        ("--seed_everything -1", ["seed_everything", "-1"]),
        (f"--trainer.limit_val_batches 0 {EARLY}", ["Early stopping", "val/mse", "let the validation run"]),
    ],
)
def test_a_value_that_cannot_be(fit, sample, tmp_path, flags, says):
    assert_fails(tmp_path, *fit, "--data.root", sample, *flags.split(), says=says)


def test_a_misspelt_config(tmp_path):
    for verb in ("fit", "kfold"):
        says = ["configs/hw1_covid/medum.yaml", "did you mean configs/hw1_covid/medium.yaml?"]
        assert_fails(tmp_path, verb, "--config", "configs/hw1_covid/medum.yaml", says=says)
    assert_fails(tmp_path, "fit", "--config", "zzz", says=["zzz", "there are", "configs/hw1_covid/boss.yaml"])


@pytest.mark.parametrize("verb", ["fit", "kfold"])
def test_no_experiment(tmp_path, verb):
    assert_fails(tmp_path, verb, says=["--config configs/hw1_covid/medium.yaml"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fti"], "did you mean 'fit'?"),
        (["predict_"], "did you mean 'predict'?"),
        (["zzz"], "leeml --help"),
        (["data", "smaple", "hw1_covid"], "did you mean sample?"),
        (["data"], "action"),
        (["data", "sample"], "homework"),
        (["data", "sample", "hw1_covd"], "did you mean hw1_covid?"),
        (["data", "fetch", "hw77"], "hw1_covid"),
        (["data", "fetch", "hw1_covid", "--edition", "1999"], "2021, 2022, 2023"),
        (["data", "prepare", "hw1_covid"], "no such file or folder"),
        (["kfold", "--folds", "x"], "--folds"),
        (["kfold", "--config", "configs/hw5_translation/tiny.yaml"], "text has no mean"),
    ],
)
def test_a_misspelt_verb_or_homework(tmp_path, args, says):
    assert_fails(tmp_path, *args, says=[says])


@pytest.mark.parametrize("flag", [[], ["--data.root"]])
def test_sample_data_never_overwrites(data, tmp_path, flag):
    assert_fails(tmp_path, "data", "sample", "hw1_covid", *flag, data, says=[str(data), "here already"])


def test_one_folder_for_data(data, tmp_path):
    assert_fails(tmp_path, "data", "sample", "hw1_covid", data, "--data.root", tmp_path, says=["two data folders"])


def test_the_homework_may_stand_behind_the_flags(tmp_path):
    line = ["--data.root", tmp_path, "hw4_speaker", "--split", "test", "--source", tmp_path / "none"]
    assert_fails(tmp_path, "data", "prepare", *line, says=["none: no such folder"])


@pytest.mark.parametrize("homework", homeworks())
def test_who_has_no_data_is_told_what_makes_it_of_raw_files(tmp_path, homework):
    with pytest.raises(DataError, match=f"leeml data prepare {homework}"):
        data_class(homework)(root=str(tmp_path)).locate()


# checkpoints


@pytest.fixture(scope="module")
def best(trained):
    return torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.fixture(params=["predict from it alone", "test it in a run", "go on from it"])
def opening(request, run, fit, sample):
    """Ways to open a checkpoint."""
    if request.param == "predict from it alone":
        return ["predict", "--data.root", sample]
    return ["test", "--run_dir", run] if request.param == "test it in a run" else [*fit, "--data.root", sample]


def test_checkpoint_of_another_homework(opening, tmp_path, best):
    path = tmp_path / "other.ckpt"
    torch.save(best | {"homework": "hw3_food"}, path)
    assert_fails(tmp_path, *opening, "--ckpt_path", path, says=[str(path), "hw3_food", "hw1_covid", "--run_dir"])


@pytest.mark.parametrize("size", [0, 100, 0.5, -1], ids=str)
def test_truncated_checkpoint(run, tmp_path, size):
    path = run / "checkpoints" / "best.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    assert_fails(tmp_path, "predict", "--run_dir", run, says=[str(path), "cut short", "another one"])


def test_truncated_checkpoint_to_resume_from(run, tmp_path):
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_fails(tmp_path, "fit", "--run_dir", run, "--resume", says=[str(path), "cut short"])


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_never_runs(opening, tmp_path, best):
    path = tmp_path / "attack.ckpt"
    torch.save(best | {"config": best["config"] | {"x": Attack(tmp_path / "pwned")}}, path)
    says = [str(path), "code", "only open checkpoints of leeml"]
    assert_fails(tmp_path, *opening, "--ckpt_path", path, says=says)
    assert_fails(tmp_path, *opening, "--ckpt_path", path, "--weights_only", "false", says=says)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_code_that_poses_as_a_checkpoint_never_runs(tmp_path, how):
    path, attack = tmp_path / "attack.ckpt", Attack(tmp_path / "pwned")
    if how == "pickle":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    else:
        torch.save({"state_dict": {}, "x": attack}, path)
    assert_fails(tmp_path, "predict", "--ckpt_path", path, says=[str(path), "code", "only open checkpoints of leeml"])
    assert not (tmp_path / "pwned").exists()


def test_the_attack_would_work(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], "text"], ids=["foreign", "list", "text"])
def test_not_a_checkpoint_of_ours(tmp_path, content):
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    assert_fails(tmp_path, "predict", "--ckpt_path", path, says=[str(path), "not a checkpoint of leeml", "leeml fit"])


def test_not_a_checkpoint_at_all(opening, tmp_path):
    path = tmp_path / "notes.ckpt"
    path.write_text("buy milk")
    assert_fails(tmp_path, *opening, "--ckpt_path", path, says=[str(path), "damaged"])


def test_checkpoint_whose_weights_do_not_fit(run, tmp_path, best):
    path = run / "checkpoints" / "best.ckpt"
    says = [str(path), "net.mlp.0.linear.", "(1, 1, 16)", "(1, 1, 3)", "--model flags"]
    assert_fails(tmp_path, "predict", "--run_dir", run, "--model.hidden", "[3]", says=says)
    weights = dict(best["state_dict"])
    weights.pop("net.mlp.1.bias")
    torch.save(best | {"state_dict": weights}, path)
    assert_fails(tmp_path, "test", "--run_dir", run, says=[str(path), "net.mlp.1.bias is absent"])
    torch.save(best | {"facts": {k: v for k, v in best["facts"].items() if k != "mean"}}, path)
    assert_fails(tmp_path, "test", "--run_dir", run, says=[str(path), "'mean'", "train again"])


# run folders


def test_a_folder_of_no_run(experiment, tmp_path):
    (tmp_path / "notes").mkdir()
    for folder in ("notes", "nowhere"):
        for args in (["predict"], ["test"], ["validate"], ["fit", "--resume"]):
            assert_fails(
                tmp_path, *args, "--run_dir", tmp_path / folder, says=[str(tmp_path / folder), "no config.yaml"]
            )


def test_a_run_without_the_checkpoint_asked_for(run, tmp_path):
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.ckpt").unlink()
    says = [str(run / "checkpoints"), "no such checkpoint", "found: none", "train again"]
    assert_fails(tmp_path, "predict", "--run_dir", run, says=says)
    assert_fails(tmp_path, "fit", "--run_dir", run, "--resume", says=says)
    assert_fails(tmp_path, "predict", "--run_dir", run, "--ckpt_path", "x.ckpt", says=["x.ckpt", "no such checkpoint"])


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_verb_that_needs_a_run(tmp_path, verb):
    assert_fails(tmp_path, verb, says=[verb, "--run_dir", "--ckpt_path"])
    assert_fails(tmp_path, verb, "--ckpt_path", "best", says=["--run_dir"])


def test_resume_without_a_run(experiment, tmp_path):
    assert_fails(tmp_path, "fit", "--resume", says=["--resume needs --run_dir"])
    assert_fails(tmp_path, "fit", "--config", experiment, "--resume", says=["--resume needs --run_dir"])


def test_a_run_is_never_overwritten(run, experiment, sample, tmp_path):
    args = ["--config", experiment, "--data.root", sample, "--run_dir", run]
    for verb in ("fit", "kfold"):
        assert_fails(tmp_path, verb, *args, says=[str(run), "holds a run already", "--resume", "another --run_dir"])
    shutil.rmtree(run / "checkpoints")  # its metrics are something to lose, too
    assert_fails(tmp_path, "fit", *args, says=["holds a run already"])


@pytest.mark.parametrize("below", ["", "deep/run"])
def test_a_run_folder_that_cannot_be(experiment, sample, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    says = [str(file), "cannot write a run here", "--run_dir"]
    assert_fails(tmp_path, "fit", "--config", experiment, "--data.root", sample, "--run_dir", file / below, says=says)


@pytest.mark.parametrize("below", ["x.csv", "deep/x.csv"])
def test_an_output_that_cannot_be(run, tmp_path, below):
    (tmp_path / "file").write_text("")
    says = [str(tmp_path / "file"), "in the way"]
    assert_fails(tmp_path, "predict", "--run_dir", run, "--output", tmp_path / "file" / below, says=says)
    assert_fails(tmp_path, "predict", "--run_dir", run, "--output", run, says=[str(run), "a folder is in the way"])


# disk full


class FullDisk:
    """os.replace and Path.write_bytes fail for files of a name, from the n-th time on."""

    def __init__(self, monkeypatch, name, allowed=0):
        self.name, self.allowed, self.times = name, allowed, 0
        for owner, function in ((os, "replace"), (Path, "write_bytes")):
            monkeypatch.setattr(owner, function, self.wrap(getattr(owner, function)))

    def wrap(self, real):
        def call(*args):
            target = str(args[-1] if real is self.replace else args[0])
            if self.name in target:
                self.times += 1
                if self.times > self.allowed:
                    if real is not self.replace:
                        with open(args[0], "wb") as file:
                            file.write(args[1][:100])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        return call

    replace = os.replace


def test_disk_full_when_the_submission_is_written(run, tmp_path, monkeypatch):
    (run / "submission.csv").write_text("of an earlier day")
    FullDisk(monkeypatch, "submission.csv")
    assert_fails(tmp_path, "predict", "--run_dir", run, says=["no space left on device", "free some space"])


def test_disk_full_at_the_first_checkpoint_leaves_no_folder(fit, sample, tmp_path, monkeypatch):
    FullDisk(monkeypatch, ".ckpt")
    says = [str(tmp_path / NEW / "checkpoints"), "no space left on device", "free some space"]
    assert_fails(tmp_path, *fit, "--data.root", sample, says=says)


def test_disk_full_later_loses_nothing(fit, sample, tmp_path, monkeypatch):
    full = FullDisk(monkeypatch, "best.ckpt", allowed=2)  # written and renamed once
    said = answer(*fit, "--data.root", sample)
    assert full.times > 2
    assert said.code == 1
    assert re.search(r"leeml: error: .*best\.ckpt: no space left on device", said.err)
    assert f"leeml fit --run_dir {tmp_path / NEW} --resume" in said.err
    folder = tmp_path / NEW / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    for path in folder.iterdir():
        torch.load(path, weights_only=True)
    monkeypatch.undo()
    works("fit", "--run_dir", tmp_path / NEW, "--resume")
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 1


# machines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so asking for one is no mistake")
@pytest.mark.parametrize("flags", ["--trainer.accelerator gpu", "--config configs/presets/gpu.yaml"])
def test_a_gpu_where_there_is_none(fit, sample, tmp_path, flags):
    says = ["accelerator is gpu", "none that torch can use", "--trainer.accelerator cpu"]
    assert_fails(tmp_path, *fit, "--data.root", sample, *flags.split(), says=says)


# faults of ours


def test_a_fault_of_ours_keeps_its_traceback(run, monkeypatch):
    def broken(*args):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("datamodules.hw1_covid.CovidData.submission", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["predict", "--run_dir", str(run)])


def test_debug_shows_the_traceback_of_a_mistake_too(monkeypatch, tmp_path):
    monkeypatch.setenv("LEEML_DEBUG", "1")
    with pytest.raises(Exception, match=r"no config\.yaml"):
        main(["predict", "--run_dir", str(tmp_path)])


def test_an_option_is_missed_in_its_own_class_not_in_one_beside_it(tmp_path):
    path = tmp_path / "own.yaml"
    flip = "{class_path: torchvision.transforms.v2.RandomHorizontalFlip}"
    path.write_text(f"data: {{class_path: FoodData, init_args: {{grow: 1, augment: [{flip}]}}}}")
    line = ("fit", "--config", "configs/hw3_food/strong_cpu.yaml", "--config", path, "--print_config")
    assert_fails(tmp_path, *line, says=["data.grow: FoodData has no option 'grow'"])
