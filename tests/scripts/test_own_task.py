"""Models and data of the user's own files: trained as they are, or refused in one line that says what to subclass."""

import csv
import shutil
import sys

import pytest
import torch
from conftest import answer, works

from datamodules.files.places import PROJECT
from scripts.run.budget import Settled

PLAIN = """\
import numpy
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from datamodules.base import Fold, HomeworkData
from modules.base import HomeworkModule


class Data(LightningDataModule):
    def setup(self, stage):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        self.set = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self):
        return DataLoader(self.set, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.set, batch_size=16)

    predict_dataloader = test_dataloader = val_dataloader


class Net(LightningModule):
    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.net, self.rate = nn.Linear(4, 1), rate

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.rate)


class Writer(Net):
    def predict_step(self, batch, batch_idx):
        rows = torch.arange(16 * batch_idx, 16 * batch_idx + len(batch[0])).flip(0)
        return {"row": rows, "text": [f"line {row}" for row in rows.tolist()]}


class Mute(Net):
    def predict_step(self, batch, batch_idx):
        return None if batch_idx < 0 else "words"


class NoFolds(HomeworkData):
    homework = "none"

    def __init__(self, size: int = 3):
        super().__init__()

    def read_files(self, stage):
        pass


class OnlyFolds(HomeworkData):
    homework = "none"

    def read_files(self, stage):
        pass


class Points(HomeworkData):  # around 3, for a module that generates such
    homework = "points"

    def locate(self):
        return "memory"

    def read_files(self, stage):
        self.set = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) + 3
        self.facts = {"width": 1}

    def train_dataloader(self):
        return DataLoader(self.set, batch_size=16)

    val_dataloader = train_dataloader


class Cut(Points):
    def split(self):
        return [Fold(numpy.arange(0, 32), numpy.arange(32, 64)), Fold(numpy.arange(32, 64), numpy.arange(0, 32))]

    def labels(self, rows):
        return rows.tolist(), self.set.numpy()[rows, 0]

    @staticmethod
    def score(true, predicted):
        return float(((true - predicted) ** 2).mean())


class Bare(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def predict_step(self, batch, batch_idx):
        return self.net(batch)


class Rivals(HomeworkModule):  # a GAN: two optimizers, stepped by hand
    homework, monitor = "points", "val/distance"

    def build(self, facts):
        self.automatic_optimization = False
        self.maker = nn.Linear(1, facts["width"])
        self.judge = nn.Sequential(nn.Linear(facts["width"], 8), nn.ReLU(), nn.Linear(8, 1))

    def made(self, count):
        return self.maker(torch.randn(count, 1))

    def training_step(self, batch, batch_idx):
        makers, judges = self.optimizers()
        true, made = self.judge(batch), self.judge(self.made(len(batch)).detach())
        for optimizer, loss in (
            (judges, lambda: softplus(-true).mean() + softplus(made).mean()),
            (makers, lambda: softplus(-self.judge(self.made(len(batch)))).mean()),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.log("val/distance", (self.made(1000).mean() - batch.mean()).abs())

    def configure_optimizers(self):
        return [self.optimizer_of(self.maker), self.optimizer_of(self.judge)]


class Other(nn.Module):
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a file of the user's own."""
    (tmp_path / "users_own.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    return tmp_path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_the_example_trains_predicts_and_has_folds(folder):
    shutil.copy(PROJECT / "examples" / "own_task.py", folder)
    names = ["--model", "own_task.DigitClassifier", "--data", "own_task.Digits", "--trainer.max_epochs"]
    works("fit", *names, 8, "--run_dir", "run")
    assert "names own_task.DigitClassifier" in answer("predict", "--run_dir", "run").err
    works("predict", "--run_dir", "run", "--trust")
    header, *rows = rows_of("run/submission.csv")
    assert header == ["id", *(f"prediction_{digit}" for digit in range(10))]
    assert [int(row[0]) for row in rows] == list(range(1797))
    said = works("kfold", *names, 8, "--folds", 2, "--run_dir", "folds").out
    _, *rows = rows_of("folds/out_of_fold.csv")
    assert len(rows) == 1797
    assert sum(row[2] == row[3] for row in rows) / len(rows) > 0.85
    assert "accuracy" in said


def test_plain_lightning_classes_are_trained_resumed_tested_and_predict():
    args = ["--model", "users_own.Net", "--data", "users_own.Data", "--run_dir", "run"]
    works("fit", *args, "--trainer.max_epochs", 20, "--checkpoint.monitor", "val_loss")
    again = works("fit", *args, "--trainer.max_epochs", 21, "--resume").err
    assert "the training loader cannot know where the run stopped" in again
    works("test", "--run_dir", "run", "--trust")
    works("predict", "--run_dir", "run", "--trust")
    header, *rows = rows_of("run/submission.csv")
    assert header == ["id", "prediction"]
    assert [int(row[0]) for row in rows] == list(range(64))
    said = answer("test", "--run_dir", "run", "--trust").out
    assert float(said.split("test_loss")[-1].split()[0]) < 0.1, "it learned the sum, whose variance is 4"


def test_folds_need_predictions_with_their_rows():
    line = ["kfold", "--model", "users_own.Bare", "--data", "users_own.Cut", "--folds", 2, "--run_dir", "folds"]
    said = answer(*line, "--trainer.max_epochs", 1)
    assert said.code == 1
    assert "Bare.predict_step returns no 'row' and 'prediction'" in said.err


def test_two_optimizers_keep_the_splitting_of_weight_decay():
    """And the run goes on: a GAN by hand, whose optimizer a flag names, and a schedule for both."""
    names = ["--model", "users_own.Rivals", "--data", "users_own.Points", "--run_dir", "run"]
    optimizer = ["--model.optimizer", "AdamW", "--model.optimizer.lr", 0.02, "--model.optimizer.weight_decay", 0.01]
    works("fit", *names, *optimizer, "--trainer.max_epochs", 60)
    works("fit", *names, "--trainer.max_epochs", 61, "--resume")
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    groups = [[group["weight_decay"] for group in state["param_groups"]] for state in checkpoint["optimizer_states"]]
    assert groups == [[0.01, 0.0], [0.01, 0.0]]
    with open("run/metrics.csv", newline="") as file:
        distances = [float(row["val/distance"]) for row in csv.DictReader(file) if row["val/distance"]]
    assert min(distances) < 0.5, "it begins 3 away"


def test_two_optimizers_have_the_steps_that_fit_into_a_budget(monkeypatch):
    """Lightning's max_steps counts the steps of both."""
    monkeypatch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
    monkeypatch.setattr("scripts.run.budget.plan", lambda speed, seconds: Settled(40, 10))
    works("fit", "--model", "users_own.Rivals", "--data", "users_own.Points", "--run_dir", "run", "--budget", "9s")
    header, *rows = rows_of("run/metrics.csv")
    judged = [row[header.index("step")] for row in rows if row[header.index("val/distance")]]
    assert judged == ["9", "19", "29", "39"]


def test_text_needs_no_table_of_the_data():
    args = ["--model", "users_own.Writer", "--data", "users_own.Data", "--run_dir", "run"]
    works("fit", *args, "--trainer.max_epochs", 1)
    works("predict", "--run_dir", "run", "--trust")
    with open("run/submission.txt") as file:
        assert file.read().splitlines() == [f"line {row}" for row in range(64)]


def test_predictions_that_no_file_can_hold_are_named():
    works("fit", "--model", "users_own.Mute", "--data", "users_own.Data", "--run_dir", "run", "--trainer.max_epochs", 1)
    said = answer("predict", "--run_dir", "run", "--trust")
    assert said.code == 1
    assert "Mute.predict_step returns a str, of which no file can be written; expected {'row'" in said.err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("fit --model users_own.Other --data users_own.Data", "model: users_own.Other is no LightningModule: subclass"),
        ("fit --model users_own.Net --data users_own.Other", "data: users_own.Other is no LightningDataModule: subcl"),
        ("fit --model users_own.Gone --data users_own.Data", "model: there is no class 'users_own.Gone'"),
        (
            "fit --model CovidRegressor --data users_own.Data",
            "CovidRegressor has no facts of the data: give the",
        ),
        (
            "kfold --model users_own.Net --data users_own.Data",
            "kfold cannot work on Data: it needs folds, labels",
        ),
        ("kfold --model users_own.Net --data users_own.NoFolds", "NoFolds: it has no split and no labels and no score"),
        ("kfold --model users_own.Net --data users_own.OnlyFolds", "it has no split and no labels and no score of its"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(line, says, folder):
    said = answer(*line.split())
    assert said.code in (1, 2)
    assert says in said.err
    assert not (folder / "runs").exists()
