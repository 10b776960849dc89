"""Where the time of a training goes, by a clock that the test moves."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks.checkpoints import RunCheckpointIO
from callbacks.time_spent import TimeSpent


class Clock:
    """Moves when it is told to."""

    now = 1.0


class Slow(Dataset):
    """Numbers that take three seconds each."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        Clock.now += 3
        return torch.ones(1)


class Module(LightningModule):
    """A step takes two seconds, a validation ten a batch, two of them decoding."""

    def __init__(self, kind: str = "cpu") -> None:
        super().__init__()
        self.decoding_seconds = 50.0  # of a fit before
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        Clock.now += 2
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, index: int) -> None:
        Clock.now += 7
        self.decoding_seconds += 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Saves(Callback):
    """Writes a checkpoint after each step, which takes four seconds."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        Clock.now += 4
        trainer.strategy.checkpoint_io.seconds += 4  # type: ignore[attr-defined]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.time_spent.time", type("T", (), {"perf_counter": staticmethod(lambda: Clock.now)}))


def test_each_second_has_its_part(clock: None, caplog: pytest.LogCaptureFixture) -> None:
    spent, saving = TimeSpent(), RunCheckpointIO()
    loader = DataLoader(Slow(), batch_size=2)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[spent, Saves()], plugins=[saving],
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        trainer.fit(Module(), loader, loader)
    assert spent.spent["step"] == 3 * 2 * 2
    assert spent.spent["validation"] == 3 * 2 * (5 + 6)
    assert spent.spent["decoding"] == 3 * 2 * 2
    assert spent.spent["checkpoints"] == 3 * 2 * 4
    assert spent.spent["loader"] + spent.spent["other"] == 3 * 4 * 3  # an epoch's first batches are not told apart
    assert "time of 150 s: loader" in caplog.text


def test_a_gpu_that_waits_for_its_batches_is_said_once(clock: None) -> None:
    spent, module = TimeSpent(), Module()
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=None))
    module.__class__ = type("OnGPU", (Module,), {"device": torch.device("cuda", 0)})
    spent.on_train_start(trainer, module)
    with pytest.warns(UserWarning, match="60% of the time the cuda waits for batches; raise data.workers") as seen:
        steps(spent, trainer, module)
    assert len(seen) == 1
    assert (spent.spent["loader"], spent.spent["step"], spent.spent["other"]) == (400 * 3, 400 * 2, 0)


def steps(spent: TimeSpent, trainer: Any, module: Module) -> None:
    """Four hundred, each three seconds of waiting and two of work."""
    for _ in range(400):
        Clock.now += 3
        spent.on_train_batch_start(trainer, module, None, 0)
        Clock.now += 2
        spent.on_train_batch_end(trainer, module, None, None, 0)
