"""A task of your own in leeml, from a file outside the project: the handwritten digits that scikit-learn brings.

From the folder of this file (--trust: a run may name classes that leeml does not know only where you say so):

    leeml fit --model own_task.DigitClassifier --data own_task.Digits --trainer.max_epochs 20 --run_dir runs/digits
    leeml predict --run_dir runs/digits --trust
    leeml kfold --model own_task.DigitClassifier --data own_task.Digits --trainer.max_epochs 20
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from datamodules.base import ClassifierData, Fold
from datamodules.samplers import LengthBucketSampler, ResumableLoader
from modules.base import HomeworkModule


class Digits(ClassifierData):
    """Batches of pixels (B, 64) in [0, 1], digits (B,) and row numbers (B,)."""

    homework = "digits"

    def locate(self):  # no folder to look for: the data are part of a library
        return Path()

    def read_files(self, stage):
        x, y = load_digits(return_X_y=True)
        self.set = TensorDataset(torch.from_numpy(x / 16).float(), torch.from_numpy(y), torch.arange(len(y)))
        self.facts = {"pixels": x.shape[1], "classes": 10}  # what the module must know

    def split(self):
        return [Fold(*rows) for rows in KFold(self.n_folds, shuffle=True, random_state=self.seed).split(self.set)]

    def labels(self, rows):
        return rows.tolist(), self.set.tensors[1].numpy()[rows]

    def train_dataloader(self):  # 64 rows of length 1 a batch; it resumes exactly, and ranks share the rows
        rows = self.chosen_folds()[0].train
        return ResumableLoader(self.set, LengthBucketSampler(rows, np.ones(len(rows)), 64, self.seed, *self.rank()))

    def _whole(self, rows):
        rank, world = self.rank()
        return DataLoader(self.set, sampler=[rows[rank::world]], batch_size=None)

    def val_dataloader(self):
        return self._whole(self.chosen_folds()[0].val)

    def predict_dataloader(self):
        return self._whole(np.arange(len(self.set)))


class DigitClassifier(HomeworkModule):
    """A perceptron; leeml brings the optimizer, the checkpoints, the figures and the submission file."""

    homework, monitor, mode = "digits", "val/accuracy", "max"

    def build(self, facts):
        self.net = nn.Sequential(nn.Linear(facts["pixels"], 64), nn.ReLU(), nn.Linear(64, facts["classes"]))

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return self.track(F.cross_entropy(self.net(x), y))

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        self.log("val/accuracy", (self.net(x).argmax(1) == y).float().mean(), batch_size=len(y), prog_bar=True)

    def predict_step(self, batch, batch_idx):
        x, _, row = batch
        return {"row": row, "prediction": self.net(x).softmax(1)}
