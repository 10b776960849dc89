"""How studies train: a homework's module and data under a quiet Trainer, judged in evaluation mode."""

import logging
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from datamodules.hw1_covid import CovidData
from modules.hw1_covid import CovidRegressor


class Errors(NamedTuple):
    """Mean squared errors in percent squared, each the mean over members."""

    train: float
    held_out: float


def fit(
    module: LightningModule,
    data: LightningDataModule,
    epochs: int,
    callbacks: Iterable[Callback] = (),
    accelerator: str = "cpu",
) -> Trainer:
    """Train without files, bars or words; afterwards the module is on the CPU.

    The accelerator "auto" is a GPU where there is one: for settings that keep a CPU busy for hours.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                max_epochs=epochs, accelerator=accelerator, devices=1, callbacks=list(callbacks), logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,  # studies judge what they need at the end
            )  # fmt: skip
            trainer.fit(module, data)
    finally:
        logger.setLevel(level)
    return trainer


class Curve(Callback):
    """The training loss of every step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep it without waiting for the device."""
        self.losses.append(outputs["loss"].detach())

    def by_epoch(self, epochs: int) -> list[float]:
        """Mean of each epoch."""
        return torch.stack(self.losses).view(epochs, -1).mean(1).tolist()


def regressor(optimizer: Callable[..., torch.optim.Optimizer], lr: float, **options: Any) -> CovidRegressor:
    """HW1's module with an optimizer at a rate."""
    return CovidRegressor(partial(optimizer, lr=lr), **options)


def rows(data: CovidData, part: str) -> tuple[Tensor, Tensor]:
    """Features (N, C) and targets (N,) of the data's fold, train or val, after setup."""
    batch = data.train_dataloader().dataset[torch.from_numpy(getattr(data.chosen_folds()[0], part))]
    return batch["x"], batch["y"]


@torch.no_grad()
def errors(module: CovidRegressor, data: CovidData) -> Errors:
    """Errors of a trained module on its training rows and on those held out, without dropout."""
    module.eval()
    found = []
    for part in ("train", "val"):
        x, y = rows(data, part)
        found.append(float((module(x.expand(data.members, *x.shape)) - y).square().mean()))
    return Errors(*found)
