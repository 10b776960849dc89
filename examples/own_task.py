"""A task of your own in leeml, from a file outside the project: the handwritten digits that scikit-learn brings.

From the folder of this file (--trust: a run may name classes that leeml does not know only where you say so):

    leeml fit --model own_task.DigitClassifier --data own_task.Digits --trainer.max_epochs 20 --run_dir runs/digits
    leeml predict --run_dir runs/digits --trust
    leeml kfold --model own_task.DigitClassifier --data own_task.Digits --trainer.max_epochs 20
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules.base import ClassifierData, Fold
from datamodules.samplers import MemberBatchSampler, ResumableLoader
from modules.base import HomeworkModule


class Rows:
    """Batches by row numbers: x (B, 64) in [0, 1], y (B,), row (B,)."""

    def __init__(self):
        digits = load_digits()
        self.x, self.y = torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        rows = rows.flatten()
        return {"x": self.x[rows], "y": self.y[rows], "row": rows}


class Digits(ClassifierData):
    """1,797 digits; `facts` are what the module must know of them."""

    homework = "digits"

    def locate(self):  # no folder to look for: the data are part of a library
        return Path()

    def read_files(self, stage):
        self.rows = Rows()
        self.facts = {"pixels": self.rows.x.shape[1], "classes": 10}

    def split(self):
        cut = StratifiedKFold(self.n_folds, shuffle=True, random_state=self.seed).split(self.rows.x, self.rows.y)
        return [Fold(*part) for part in cut]

    def labels(self, rows):
        return rows.tolist(), self.rows.y.numpy()[rows]

    def train_dataloader(self):
        rows = self.chosen_folds()[0].train
        return ResumableLoader(self.rows, MemberBatchSampler([rows], 64, self.seed, *self.rank()))

    def _whole(self, rows):
        rank, world = self.rank()
        return DataLoader(self.rows, sampler=[torch.as_tensor(rows[rank::world])], batch_size=None)

    def val_dataloader(self):
        return self._whole(self.chosen_folds()[0].val)

    def predict_dataloader(self):
        return self._whole(torch.arange(len(self.rows)))


class DigitClassifier(HomeworkModule):
    """A perceptron; leeml brings the optimizer, the checkpoints, the figures and the submission file."""

    homework, monitor, mode = "digits", "val/accuracy", "max"

    def build(self, facts):
        self.net = nn.Sequential(nn.Linear(facts["pixels"], 64), nn.ReLU(), nn.Linear(64, facts["classes"]))

    def training_step(self, batch, batch_idx):
        return self.track(F.cross_entropy(self.net(batch["x"]), batch["y"]))

    def validation_step(self, batch, batch_idx):
        right = (self.net(batch["x"]).argmax(1) == batch["y"]).float().mean()
        self.log("val/accuracy", right, batch_size=len(batch["y"]), prog_bar=True)

    def predict_step(self, batch, batch_idx):
        return {"row": batch["row"], "prediction": self.net(batch["x"]).softmax(1)}
