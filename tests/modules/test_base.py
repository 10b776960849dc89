"""modules/base.py: facts are handed over once, by the datamodule or by hand; without them one line says what to do."""

import functools
import re

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from callbacks.finite import FiniteNumbers
from datamodules.generated import write_covid
from datamodules.hw1_covid import CovidData
from modules.hw1_covid import CovidRegressor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "hw1_covid"
    write_covid(folder)
    return folder


def new_trainer(**options):
    return Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip


def weights(folder, ways, **model):
    """Weights after a fit that gets its data in one of the ways."""
    seed_everything(0)
    data, module = CovidData(dir=str(folder), batch_size=700), CovidRegressor(hidden=[4], **model)
    if ways == "datamodule":
        new_trainer().fit(module, data)
    else:
        data.setup("fit")
        module.expect(data.facts)
        new_trainer().fit(module, data.train_dataloader(), data.val_dataloader())
    return module.state_dict()


@pytest.mark.parametrize("model", [{}, {"ridge": 3.0}])
def test_loaders_with_facts_train_as_the_datamodule_does(folder, model):
    one, other = (weights(folder, ways, **model) for ways in ("datamodule", "loaders"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("start", ["fit", "validate", "test", "predict"])
def test_loaders_without_facts_say_what_is_missing(folder, start):
    data = CovidData(dir=str(folder))
    data.setup("fit")
    says = "CovidRegressor has no facts of the data: give the trainer the datamodule, .* model.expect(data.facts)"
    with pytest.raises(MisconfigurationException, match=re.escape(says).replace(r"\.\*", ".*")):
        getattr(new_trainer(), start)(CovidRegressor(), data.val_dataloader())


def test_a_built_network_takes_no_other_facts(folder):
    data, module = CovidData(dir=str(folder)), CovidRegressor()
    data.setup("fit")
    module.expect(data.facts)
    module.configure_model()
    built = module.net
    module.configure_model()
    assert module.net is built
    with pytest.raises(MisconfigurationException, match="built already"):
        module.expect(data.facts)


def test_a_checkpoint_brings_the_facts_to_loaders(folder, tmp_path):
    seed_everything(0)
    data, module = CovidData(dir=str(folder)), CovidRegressor(hidden=[4])
    trainer = new_trainer()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    (expected,) = new_trainer().validate(module, data.val_dataloader(), verbose=False)
    fresh = CovidRegressor(hidden=[4])
    (found,) = new_trainer().validate(fresh, data.val_dataloader(), ckpt_path=tmp_path / "run.ckpt", verbose=False)
    assert found == expected


class Lost(CovidRegressor):
    """Whose loss is not finite."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


def test_an_accumulated_step_that_is_left_out_has_no_gradient_to_scale(folder):
    finite = FiniteNumbers("skip")
    trainer = new_trainer(accumulate_grad_batches=2, callbacks=[finite])
    with pytest.warns(UserWarning, match="left out"):
        trainer.fit(Lost(hidden=[4]), CovidData(dir=str(folder), batch_size=700))
    assert finite.skipped == trainer.global_step > 0


class Rivals(CovidRegressor):
    """Two parts with an optimizer each, as a GAN has."""

    def build(self, facts):
        self.maker = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.judge = nn.Linear(4, 1)

    def configure_optimizers(self):
        return [self.optimizer_of(self.maker), self.optimizer_of(self.judge)]


def test_weight_decay_leaves_out_biases_and_norms_in_each_of_two_optimizers():
    module = Rivals(functools.partial(torch.optim.AdamW, weight_decay=0.1))
    module.expect({})
    module.configure_model()
    for optimizer, part in zip(module.configure_optimizers(), (module.maker, module.judge), strict=True):
        decayed, free = optimizer.param_groups
        assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
        assert [id(p) for p in decayed["params"]] == [id(p) for p in part.parameters() if p.ndim == 2]
        assert {id(p) for p in free["params"]} == {id(p) for p in part.parameters() if p.ndim == 1}
