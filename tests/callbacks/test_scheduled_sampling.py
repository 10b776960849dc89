"""ScheduledSampling: the shapes of the paper, by optimizer step, on any module that reads itself."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks.scheduled_sampling import ScheduledSampling


@given(st.integers(0, 300), st.integers(0, 50), st.floats(0, 1))
def test_shapes_are_those_of_the_paper(step, begin, floor):
    i = step - begin
    shapes = {
        ("constant", None): floor,
        ("exponential", 0.97): max(floor, 0.97 ** max(i, 0)),
        ("inverse_sigmoid", 20.0): max(floor, 20 / (20 + math.exp(i / 20))),
    }
    for (decay, k), expected in shapes.items():
        found = ScheduledSampling(decay, floor, k=k, begin=begin).probability(step, 0)
        assert math.isclose(found, expected if i >= 0 else 1.0, rel_tol=1e-9)


@given(st.integers(2, 200), st.integers(0, 50), st.floats(0, 1))
def test_a_line_goes_from_one_to_its_floor(total, begin, floor):
    values = [
        ScheduledSampling("linear", floor, begin=begin).probability(s, begin + total) for s in range(begin + total)
    ]
    assert values[:begin] == [1.0] * begin
    assert math.isclose(values[begin], 1.0)
    assert math.isclose(values[-1], floor, abs_tol=1e-12)
    falls = [a - b for a, b in zip(values[begin:], values[begin + 1 :], strict=False)]
    assert all(math.isclose(fall, (1 - floor) / (total - 1), abs_tol=1e-9) for fall in falls)


class Several(LightningModule):
    """Reads itself, and steps so many optimizers a batch by hand; with none it has one that Lightning steps."""

    def __init__(self, optimizers):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(2, 1) for _ in range(max(1, optimizers)))
        self.automatic_optimization = not optimizers
        self.teacher_forcing, self.seen = 1.0, []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.teacher_forcing)
        loss = sum(part(batch[0]).square().mean() for part in self.parts)
        if self.automatic_optimization:
            return loss
        for number, optimizer in enumerate(self.optimizers()):
            if number == 0 or batch_idx % 2:  # as a GAN's
                optimizer.zero_grad()
        self.manual_backward(loss)
        for number, optimizer in enumerate(self.optimizers()):
            if number == 0 or batch_idx % 2:
                optimizer.step()

    def configure_optimizers(self):
        found = [torch.optim.SGD(part.parameters(), 0.1) for part in self.parts]
        return found[0] if self.automatic_optimization else found


@pytest.mark.parametrize("optimizers", [0, 2, 3])
@pytest.mark.parametrize("callback", [ScheduledSampling("exponential", k=0.5), ScheduledSampling("linear")])
def test_it_sets_the_probability_of_the_step_however_many_optimizers_there_are(optimizers, callback):
    module = Several(optimizers)
    loader = DataLoader(TensorDataset(torch.randn(12, 2)), batch_size=3)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert module.seen == [callback.probability(step, 8) for step in range(8)]
    assert module.seen[0] == 1
    assert trainer.logged_metrics["teacher_forcing"] == module.seen[-1]
    assert module.teacher_forcing == 1.0


def test_a_module_that_does_not_read_itself_is_refused():
    with pytest.raises(MisconfigurationException, match="SimpleNamespace has no `teacher_forcing`"):
        ScheduledSampling(k=10).on_train_start(SimpleNamespace(), SimpleNamespace())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "cosine"}, "decay='cosine': expected one of constant"),
        ({"decay": "constant", "floor": 1.5}, "floor=1.5: expected a probability"),
        ({"decay": "linear", "total": 0}, "total=0: expected"),
        ({"decay": "exponential", "k": 1.5}, "k=1.5: exponential decay needs"),
        ({}, "k=None: inverse_sigmoid needs"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        ScheduledSampling(**options)
