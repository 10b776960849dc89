"""Every branch of the lectures' tree, and the files by which runs know each other."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from callbacks.general_guide import ADVICE, FILE, GeneralGuide, Losses, diagnose

SMALL, LARGE = 100, 10_000


@pytest.mark.parametrize(
    ("run", "references", "goal", "branch"),
    [
        (Losses(LARGE, 2.0, 2.1), [Losses(SMALL, 1.0, 1.1)], None, "optimisation"),
        (Losses(SMALL, 2.0, 2.1), [Losses(LARGE, 1.0, 1.1)], None, "model bias"),
        (Losses(SMALL, 2.0, 2.1), [], 1.0, "model bias or optimisation"),
        (Losses(SMALL, 2.0, 2.1), [Losses(LARGE, 1.99, 2.0)], 1.0, "model bias or optimisation"),
        (Losses(SMALL, 1.0, 1.1), [], None, "no reference yet"),
        (Losses(SMALL, 1.0, 1.1), [], 1.0, "good"),
        (Losses(SMALL, 1.04, 1.1), [Losses(SMALL, 1.0, 1.1)], None, "good"),
        (Losses(SMALL, 1.0, 1.3), [], None, "overfitting"),
        (Losses(SMALL, 1.0, 1.3, 9.0), [], None, "overfitting"),
        (Losses(SMALL, 1.0, 1.1, 2.0), [], None, "mismatch"),
        (Losses(SMALL, 1.0, 1.1, 1.2), [Losses(SMALL, 1.0, 1.1)], None, "good"),
        (Losses(SMALL, math.nan, 1.0), [Losses(SMALL, 1.0, 1.0)], None, "optimisation"),
        (Losses(SMALL, 1.0, math.nan), [], None, "overfitting"),
        (Losses(SMALL, 1.0, 5.0), [Losses(LARGE, 0.1, 0.1)], 1.0, "overfitting"),
    ],
)
def test_the_branches(run, references, goal, branch):
    assert diagnose(run, references, goal) == branch


losses = st.floats(0.01, 100)


@given(st.builds(Losses, st.integers(1, 1000), losses, losses), losses)
def test_what_does_not_beat_chance_learned_nothing(run, chance):
    said = diagnose(run, [], None, chance=chance)
    assert (said == "no better than chance") == (run.train >= chance * 0.95)


@given(runs=st.lists(st.builds(Losses, st.integers(1, 1000), losses, losses, losses), min_size=2, max_size=6))
def test_only_what_another_run_of_its_size_surpasses_is_called_optimisation(runs):
    run, *references = runs
    said = diagnose(run, references, goal=None, tolerance=0)
    surpassed = [r for r in references if r.train < run.train]
    assert (said == "optimisation") == any(r.parameters <= run.parameters for r in surpassed)
    assert (said == "model bias") == (bool(surpassed) and said != "optimisation")
    assert said in ADVICE


class Line(LightningModule):
    """y = w x on y = 2 x: its losses follow from w."""

    def __init__(self, w, wide=1, names=("train/loss", "val/mse", "test/mse")):
        super().__init__()
        self.w, self.rest = torch.nn.Parameter(torch.full((wide,), w / wide)), names

    def step(self, batch, name):
        loss = (self.w.sum() * batch[0] - 2 * batch[0]).square().mean()
        if name:
            self.log(name, loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, self.rest[0])

    def validation_step(self, batch, batch_idx):
        self.step(batch, self.rest[1])

    def test_step(self, batch, batch_idx):
        self.step(batch, self.rest[2])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class OtherTask(Line):
    pass


def loader(x=1.0):
    return DataLoader(TensorDataset(torch.full((4, 1), x)), batch_size=4)


def trained(folder, module, val=1.0, **options):
    guide = GeneralGuide(**options)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[guide], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, loader(), loader(val))
    return guide, trainer, json.loads((folder / FILE).read_text()) if (folder / FILE).is_file() else None


def test_runs_of_the_same_task_are_references_wherever_they_lie(tmp_path):
    first, _, kept = trained(tmp_path / "hw" / "simple" / "1", Line(1.5))
    assert first.branch == "no reference yet"
    assert kept["losses"] == {"parameters": 1, "train": 0.25, "validation": 0.25, "test": None}
    assert kept["references"] == 0
    trained(tmp_path / "hw" / "simple" / "2", OtherTask(2.0))
    (tmp_path / "hw" / "broken").mkdir()
    (tmp_path / "hw" / "broken" / FILE).write_text("{")
    worse, _, kept = trained(tmp_path / "hw" / "boss" / "1", Line(1.0, wide=3))
    assert kept["references"] == 1, "neither the other task, nor the broken file, nor itself"
    assert worse.branch == kept["branch"] == "optimisation"
    assert kept["advice"] == ADVICE["optimisation"]


def test_a_run_that_is_repeated_is_no_reference_of_its_own(tmp_path):
    trained(tmp_path / "a" / "b" / "c", Line(1.9))
    again, _, kept = trained(tmp_path / "a" / "b" / "c", Line(1.0))
    assert (again.branch, kept["references"]) == ("no reference yet", 0)


def test_a_smaller_model_is_told_of_bias(tmp_path):
    trained(tmp_path / "one", Line(1.9, wide=5), runs=str(tmp_path))
    guide, _, _ = trained(tmp_path / "two", Line(1.0), runs=str(tmp_path))
    assert guide.branch == "model bias"


def test_held_out_rows_and_test_rows_have_their_branches(tmp_path):
    guide, trainer, _ = trained(tmp_path / "a" / "b" / "run", Line(1.5), val=2.0)
    assert guide.branch == "overfitting"
    guide, trainer, _ = trained(tmp_path / "c" / "d" / "other", Line(1.5))
    trainer.test(Line(1.5), loader(3.0), verbose=False)
    assert guide.branch == "mismatch"
    assert json.loads((tmp_path / "c" / "d" / "other" / FILE).read_text())["losses"]["test"] == pytest.approx(2.25)


def test_a_test_without_a_fit_before_says_nothing(tmp_path):
    guide, trainer, _ = trained(tmp_path / "a" / "b" / "run", Line(1.5))
    shutil.rmtree(tmp_path / "a")
    guide.branch = None
    trainer.test(Line(1.5), loader(3.0), verbose=False)
    assert guide.branch is None


def test_a_module_that_logs_no_loss_gets_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="val/loss or val/mse"):
        _, _, kept = trained(tmp_path / "a" / "b" / "run", Line(1.5, names=("train/loss", "", "")))
    assert kept is None


@pytest.mark.parametrize("wrong", [{"goal": -1.0}, {"tolerance": -0.1}, {"gap": -0.1}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(MisconfigurationException, match=next(iter(wrong))):
        GeneralGuide(**wrong)
