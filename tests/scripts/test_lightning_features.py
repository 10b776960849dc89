"""Every flag of Lightning's Trainer and every callback of its own, once: it works, or one line says why not."""

import csv
import importlib.util
import inspect
import json

import pytest
import torch
import yaml
from conftest import EXPERIMENT, answer, assert_fails
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.tuner import Tuner
from translation_run import train, write_data

from datamodules.hw1_covid import CovidData
from modules.hw1_covid import CovidRegressor

NO_SCHEDULE = EXPERIMENT[: EXPERIMENT.index("  callbacks:")]
NEEDS = {"DeviceStatsMonitor": "psutil", "RichProgressBar": "rich", "RichModelSummary": "rich"}  # not of leeml


def callback(name, /, **init_args):
    return [
        "--trainer.callbacks+",
        json.dumps({"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": init_args}),
    ]


def flags(text):
    return [f"--trainer.{word}" if place % 2 == 0 else word for place, word in enumerate(text.split())]


WORKS = {  # optimizer steps of two epochs of four batches, and what is asked for
    "on one device": (8, flags(
        "accelerator cpu devices 1 num_nodes 1 strategy auto deterministic warn inference_mode false min_epochs 1 "
        "detect_anomaly true num_sanity_val_steps -1 log_every_n_steps 3 enable_autolog_hparams false profiler simple "
        "min_steps 1 enable_model_summary false enable_checkpointing true logger true overfit_batches 0")),
    "with DDP and doubles": (8, flags(
        "strategy ddp precision 64-true gradient_clip_val 0.1 sync_batchnorm true "
        "reload_dataloaders_every_n_epochs 1")),
    "in half precision": (8, flags(
        "precision bf16-mixed gradient_clip_val 0.1 gradient_clip_algorithm value profiler advanced benchmark true "
        "max_time 00:01:00:00 enable_progress_bar false barebones false fast_dev_run false model_registry mine")),
    "on a part": (4, flags("limit_train_batches 2 limit_val_batches 1 limit_test_batches 1 limit_predict_batches 1")),
    "validated by steps": (8, flags("val_check_interval 3 check_val_every_n_epoch null max_epochs 2")),
    "to a number of steps": (5, flags("max_steps 5")),
    "with accumulation": (4, flags("accumulate_grad_batches 3")),
    "with plugins": (8, [*flags("plugins lightning.pytorch.plugins.MixedPrecision"),
                         *flags("plugins.precision bf16-mixed plugins.device cpu")]),
    "with callbacks": (8, [
        *callback("Timer", duration="00:01:00:00"), *callback("ModelCheckpoint", every_n_train_steps=2, save_top_k=-1),
        *callback("OnExceptionCheckpoint", dirpath="mine"), *callback("TQDMProgressBar"), *callback("LambdaCallback"),
        *callback("ModelSummary", max_depth=2), *callback("EarlyStopping", monitor="val/rmse"), *callback("Callback"),
        *callback("LearningRateMonitor"), *callback("SpikeDetection"), *callback("Checkpoint"),
        *callback("EMAWeightAveraging", decay=0.5), *callback("BasePredictionWriter")]),
    "with averaged weights": (8, callback("WeightAveraging")),
}  # fmt: skip
WITHOUT_WARMUP = {
    "accumulation by epoch": (6, callback("GradientAccumulationScheduler", scheduling={0: 1, 1: 2})),
    "stochastic weight averaging": (8, callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1)),
}
REFUSED = [
    (flags("strategy fsdp"), ["fsdp", "requires a GPU"]),
    (flags("limit_val_batches 0.5"), ["limit_val_batches"]),
    (flags("val_check_interval 100"), ["val_check_interval", "check_val_every_n_epoch"]),
    (flags("enable_checkpointing false"), ["trainer.enable_checkpointing", "--checkpoint.save_top_k 0"]),
    (flags("barebones true"), ["trainer.barebones", "leeml bench"]),
    (flags("accumulate_grad_batches 0"), ["trainer.accumulate_grad_batches is 0", "1 or more"]),
    (flags("gradient_clip_algorithm bogus"), ["gradient_clip_algorithm", "norm"]),
    (flags("use_distributed_sampler true"), ["trainer.use_distributed_sampler", "themselves"]),
    (flags("profiler bogus"), ["profiler", "simple"]),
    (flags("default_root_dir elsewhere"), ["trainer.default_root_dir", "--run_dir"]),
    (flags("plugins lightning.pytorch.plugins.AsyncCheckpointIO"), ["trainer.plugins", "RunCheckpointIO"]),
    (callback("BatchSizeFinder"), ["BatchSizeFinder", "Tuner", "--data.batch_size"]),
    (callback("LearningRateFinder"), ["LearningRateFinder", "Tuner", "--model.optimizer.lr"]),
    (callback("BackboneFinetuning"), ["BackboneFinetuning", "backbone"]),
    (callback("BaseFinetuning"), ["BaseFinetuning"]),
    (callback("ModelPruning", pruning_fn="l1_unstructured"), ["ModelPruning"]),  # no layer of torch.nn in this network
    (
        callback("StochasticWeightAveraging", swa_lrs=0.01),
        ["WarmupScheduler and StochasticWeightAveraging", "Drop one"],
    ),
    (callback("GradientAccumulationScheduler", scheduling={1: 2}), ["GradientAccumulationScheduler", "`total`"]),
    (callback("EarlyStopping", monitor="nope"), ["nope", "val/rmse"]),
    (["--trainer.callbacks+", "WarmupScheduler"], ["more than one WarmupScheduler"]),
    *(
        (callback(name), [name.replace("DeviceStats", "DeviceStats"), package])
        for name, package in (
            ("DeviceStatsMonitor", "psutil"),
            ("RichProgressBar", "rich"),
            ("RichModelSummary", "rich"),
        )
        if importlib.util.find_spec(package) is None
    ),
]
ELSEWHERE = {"callbacks", "ProgressBar", "ThroughputMonitor"}  # a list; two that a user completes with code


def trained_for(folder):
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    with open(folder / "metrics.csv", newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return last["global_step"], losses


@pytest.mark.parametrize("name", [*WORKS, *WITHOUT_WARMUP])
def test_it_works(name, experiment, sample, tmp_path):
    steps, asked = (WORKS | WITHOUT_WARMUP)[name]
    if name in WITHOUT_WARMUP:
        experiment = tmp_path / "mine.yaml"
        experiment.write_text(NO_SCHEDULE)
    run = tmp_path / "run"
    said = answer("fit", "--config", experiment, "--data.root", sample, "--run_dir", run, *asked)
    assert said.code == 0, said.err
    done, losses = trained_for(run)
    assert done == steps
    assert losses[-1] < losses[0] or steps < 8
    assert [name for name in json.loads((run / "scores.json").read_text()) if name.startswith("best val/")]
    said = answer("validate", "--run_dir", run)
    assert said.code == 0, said.err


@pytest.mark.parametrize(("asked", "says"), REFUSED, ids=lambda value: str(value)[:70])
def test_one_line(experiment, sample, tmp_path, asked, says):
    fit = ["fit", "--config", experiment, "--data.root", sample, "--run_dir", tmp_path / "run"]
    assert_fails(tmp_path, *fit, *asked, says=says)


def test_nothing_of_lightning_is_missing():
    """A flag or callback that a newer Lightning adds fails here until it is tried."""
    tried = json.dumps([*WORKS.values(), *WITHOUT_WARMUP.values(), *REFUSED]) + json.dumps([*ELSEWHERE])
    known = [*list(inspect.signature(Trainer.__init__).parameters)[1:], *callbacks.__all__]
    assert [name for name in known if name not in tried and name not in NEEDS] == []


class Rows(callbacks.Callback):
    """The rows of every training batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch["x"].clone()))


@pytest.mark.parametrize("share", [2, 0.5], ids=["batches", "share"])
def test_overfit_batches_has_the_first_batches_of_our_own_order_again_and_again(sample, tmp_path, share):
    data = CovidData(root=str(sample), batch_size=64)
    rows = Rows()
    trainer = Trainer(
        overfit_batches=share, max_epochs=3, logger=False, enable_checkpointing=False, callbacks=[rows],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(CovidRegressor(hidden=[16]), datamodule=data)
    first = [batch["x"] for batch in data.train_dataloader()][:2]
    assert len(rows.seen) == 6
    for place, (_, x) in enumerate(rows.seen):
        assert torch.equal(x, first[place % 2])


def test_overfit_batches_from_the_command_line(experiment, sample, tmp_path):
    run = tmp_path / "run"
    asked = ["--trainer.overfit_batches", "1", "--trainer.max_epochs", "60", "--model.dropout", "0"]
    said = answer("fit", "--config", experiment, "--data.root", sample, "--run_dir", run, *asked)
    assert said.code == 0, said.err
    steps, losses = trained_for(run)
    assert steps == 60
    assert losses[-1] < 0.5 * losses[0], "one batch is learned by heart"
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["overfit_batches"] == 1
    said = answer("validate", "--run_dir", run)
    assert said.code == 0, said.err


def test_overfit_batches_of_a_translator(tmp_path):
    run = train(write_data(tmp_path / "data"), tmp_path / "run", "--trainer.overfit_batches", "1")
    assert trained_for(run)[0] == 30


def tuned(tmp_path, sample, **arguments):
    data, model = CovidData(root=str(sample), batch_size=16), CovidRegressor(hidden=[16])
    trainer = Trainer(
        max_epochs=20, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, use_distributed_sampler=False,
    )  # fmt: skip
    return model, data, Tuner(trainer)


def test_the_tuner_finds_a_learning_rate(tmp_path, sample):
    model, data, tuner = tuned(tmp_path, sample)
    found = tuner.lr_find(model, datamodule=data, num_training=30)
    assert 1e-8 < found.suggestion() < 1
    assert model.learning_rate == found.suggestion()
    assert {group["lr"] for group in model.configure_optimizers().param_groups} == {found.suggestion()}


def test_the_tuner_finds_a_batch_size(tmp_path, sample):
    model, data, tuner = tuned(tmp_path, sample)
    found = tuner.scale_batch_size(model, datamodule=data, max_trials=3, steps_per_trial=1)
    assert data.batch_size == found > 2
