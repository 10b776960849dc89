"""The memory of a step, against what can be counted by hand."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.memory import MemoryNeeded

ROWS, WIDTH = 32, 16


class Module(LightningModule):
    """A layer, a sigmoid (which saves its output), and the mean of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.layer(batch).sigmoid().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def test_weights_gradients_state_and_activations_are_counted() -> None:
    look = MemoryNeeded()
    trainer = Trainer(fast_dev_run=2, accelerator="cpu", enable_progress_bar=False, callbacks=[look])
    trainer.fit(Module(), DataLoader(torch.randn(2 * ROWS, WIDTH), batch_size=ROWS))
    weights = 4 * (WIDTH * WIDTH + WIDTH)
    assert look.needed["weights"] == look.needed["gradients"] == weights
    assert look.needed["optimizer"] == pytest.approx(2 * weights, abs=16)  # two means, and a count of steps each
    assert look.needed["saved for backward"] == 2 * 4 * ROWS * WIDTH  # the batch, and the sigmoid's output
