"""A run that stops anywhere and goes on ends with the same bits as one that never stopped."""

import functools

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint

from callbacks.warmup import WarmupScheduler
from datamodules.hw1_covid import CovidData
from datamodules.sample import write_covid
from modules.hw1_covid import CovidRegressor


class Stop(Callback):
    """Ends the run before its next step, as a kill would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            raise KeyError("killed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "hw1_covid"
    write_covid(folder)
    return folder


def fit(folder, where, stop=None, ckpt=None):
    seed_everything(3)
    data = CovidData(
        dir=str(folder), batch_size=500, members=2, target="change"
    )  # 5 steps an epoch, the last one short
    module = CovidRegressor(
        functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        [8],
        dropout=0.3,
        batch_norm=True,
        ridge=3.0,
        state_ridge=100.0,
    )
    callbacks = [
        WarmupScheduler("cosine", warmup=4),
        EMAWeightAveraging(decay=0.9),
        ModelCheckpoint(where, filename="{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False),
        *([Stop(stop)] if stop else []),
    ]
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, callbacks=callbacks, default_root_dir=where,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    if stop:
        with pytest.raises(KeyError, match="killed"):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data, ckpt_path=ckpt)
    return module


@pytest.mark.parametrize("stop", [1, 3, 5, 7, 10, 18])  # in the first epoch, at its end, later, close to the end
def test_resumed_run_ends_with_the_same_bits(folder, tmp_path, stop):
    whole = fit(folder, tmp_path / "whole")
    fit(folder, tmp_path / "part", stop=stop)
    resumed = fit(folder, tmp_path / "rest", ckpt=tmp_path / "part" / f"{stop}.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
