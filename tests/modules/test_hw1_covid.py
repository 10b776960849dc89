"""CovidRegressor on generated data: it learns, judges each row by the right members, and its checkpoint is whole."""

import functools

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.linear_model import LinearRegression

from datamodules.errors import DataError
from datamodules.generated import write_covid
from datamodules.hw1_covid import CovidData
from modules.base import split_decay
from modules.hw1_covid import CovidRegressor

ADAM = functools.partial(torch.optim.AdamW, lr=0.005, weight_decay=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "hw1_covid"
    write_covid(folder)
    return folder


def fit(folder, where, model=None, epochs=10, **data):
    seed_everything(0)
    data = CovidData(dir=str(folder), **({"target": "change"} | data))
    module = CovidRegressor(ADAM, **(model or {}))
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=where, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module, data


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("run")
    return (where, *fit(folder, where, epochs=40, members=2))


def test_it_learns(run):
    _, trainer, _, data = run
    held = data.chosen_folds()[0].val
    true = data.train.target[held]
    yesterday = data.train.day(data.train.days - 2)[held, -1]
    mse = trainer.callback_metrics["val/mse"].item()
    assert mse < 0.85 * np.mean((true - yesterday) ** 2)
    assert mse < 0.1 * true.var()


def test_metrics_are_those_of_the_whole_held_out_set(run):
    _, trainer, module, data = run
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        errors = module.eval().ensemble(batch).double() - batch["y"].double()
    assert trainer.callback_metrics["val/mse"].item() == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert trainer.callback_metrics["val/rmse"].item() == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)


def test_a_checkpoint_alone_predicts_the_same(run):
    where, trainer, module, data = run
    trainer.save_checkpoint(where / "whole.ckpt")
    loaded = CovidRegressor.load_from_checkpoint(where / "whole.ckpt", weights_only=True).eval()
    x = next(iter(data.val_dataloader()))["x"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.ensemble({"x": x}), module.eval().ensemble({"x": x}), rtol=0, atol=0)


def test_each_row_is_judged_by_the_members_that_did_not_train_on_it(folder, tmp_path):
    _, module, data = fit(folder, tmp_path, epochs=1, fold=None, folds=3, members=2)
    batch = next(iter(data.val_dataloader()))
    assert sorted(batch["row"].tolist()) == list(range(2699))
    with torch.no_grad():
        each = module.eval()(batch["x"].expand(6, *batch["x"].shape))
        ensemble = module.ensemble(batch)
    for number, fold in enumerate(data.split()):
        rows = torch.isin(batch["row"], torch.from_numpy(fold.val))
        torch.testing.assert_close(ensemble[rows], each[2 * number : 2 * number + 2, rows].mean(0))


def test_the_linear_path_alone_is_regression(folder, tmp_path):
    """With nothing trained on top and hardly a penalty, predictions are those of ordinary least squares."""
    _, module, data = fit(folder, tmp_path, {"ridge": 1e-6}, epochs=1)
    for parameter in module.net.mlp.parameters():
        parameter.data.zero_()
    fold = data.chosen_folds()[0]
    reference = LinearRegression().fit(data.train.values[fold.train], data.train.target[fold.train])
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        ours = module.eval().ensemble(batch).numpy()
    np.testing.assert_allclose(ours, reference.predict(data.train.values[batch["row"].numpy()]), atol=0.02)


def test_the_perceptron_starts_from_the_finished_linear_path(folder, tmp_path):
    """A zero last layer: before the first step the sum of both is the linear model."""
    _, module, _ = fit(folder, tmp_path, {"ridge": 3.0, "state_ridge": 250.0}, epochs=1)
    fresh = CovidRegressor(ADAM, ridge=3.0)
    fresh.expect(module.facts)
    fresh.configure_model()
    assert not fresh.net.mlp[-1].weight.any()
    assert module.net.skip.by_context.any()


def test_decay_reaches_neither_biases_nor_norms():
    module = CovidRegressor(batch_norm=True, hidden=[4, 4])
    facts = {k: torch.ones(2, 3) for k in ("mean", "scale", "is_state")} | {"used": torch.arange(3).repeat(2, 1)}
    facts |= {"target_mean": torch.zeros(2), "target_scale": torch.ones(2), "anchor": None, "features": ["a", "b", "c"]}
    module.build(facts)
    decayed, free = split_decay(module)
    names = {id(p): n for n, p in module.named_parameters()}
    assert sorted(names[id(p)] for p in decayed) == [
        f"net.mlp.{i}{w}" for i, w in enumerate([".linear.weight"] * 2 + [".weight"])
    ]
    assert len(decayed) + len(free) == len(names)


@pytest.mark.parametrize("change", [{"seed": 1}, {"fold": 1}, {"split": "grouped"}, {"folds": 4}])
def test_a_run_is_not_scored_on_rows_it_trained_on(run, folder, change):
    _, trainer, module, _ = run
    same = CovidData(dir=str(folder), target="change")
    assert trainer.validate(module, same, verbose=False)
    with pytest.raises(DataError, match="other rows are held out"):
        trainer.validate(module, CovidData(**({"dir": str(folder), "target": "change"} | change)), verbose=False)


@pytest.mark.parametrize(
    "bad", [{"hidden": [0]}, {"hidden": [-3]}, {"dropout": 1.0}, {"ridge": 0.0}, {"state_ridge": -1.0}]
)
def test_settings_that_make_no_sense_are_named(bad):
    with pytest.raises(MisconfigurationException, match=f"model.{next(iter(bad))} is"):
        CovidRegressor(**bad)


def test_no_buffer_holds_numbers_of_features(run):
    """Averaged weights average buffers, too: 0.9 n + 0.1 n may be cut down to n - 1."""
    _, _, module, _ = run
    assert not [name for name, b in module.net.named_buffers() if not b.is_floating_point()]
