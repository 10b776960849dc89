import csv
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from callbacks.samples import Samples

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*deprecated")


class Says(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        return self.layer(batch).square().mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def samples(self):
        return ["source", "output"], [["一, 二", f'"{self.global_step}"\n'], ["x", ""]]


class Tables(Logger):
    """A logger that takes tables, as W&B's."""

    name, version = "tables", 0

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[dict[str, Any]] = []

    def log_table(self, **table):
        self.taken.append(table)

    def log_metrics(self, *args, **kwargs):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass


def fit(folder, epochs, ckpt=None, **options):
    logger = Tables()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logger, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Samples()], enable_checkpointing=False, **options,
    )  # fmt: skip
    data = DataLoader(torch.ones(6, 1), batch_size=2)
    trainer.fit(Says(), data, data, ckpt_path=ckpt)
    trainer.validate(dataloaders=data, model=Says(), verbose=False)
    return trainer, logger.taken


def read(folder):
    with open(folder / "samples.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def rows(*steps):
    return [["step", "source", "output"]] + [
        row for s in steps for row in ([str(s), "一, 二", f'"{s}"\n'], [str(s), "x", ""])
    ]


def test_each_validation_adds_its_samples(tmp_path):
    _, taken = fit(tmp_path, 2)
    assert read(tmp_path) == rows(3, 6)
    assert [table["step"] for table in taken] == [3, 6]
    assert taken[1]["data"] == [row[1:] for row in rows(6)[1:]]
    assert taken[1]["key"] == "samples"


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    trainer, _ = fit(tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "at3.ckpt")
    fit(tmp_path, 3, tmp_path / "at3.ckpt")
    assert read(tmp_path) == rows(3, 6, 9)
    fit(tmp_path, 2, tmp_path / "at3.ckpt")
    assert read(tmp_path) == rows(3, 6)


def test_fast_dev_run_writes_nothing(tmp_path):
    fit(tmp_path, 1, fast_dev_run=True)
    assert not (tmp_path / "samples.csv").exists()
