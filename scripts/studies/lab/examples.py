"""Examples in memory as data for a homework's module, where a study makes its own."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class _Batches(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {"x": self.x[rows], "y": self.y[rows], "row": rows}


class Examples(LightningDataModule):
    """Batches x (B, ...), y (B,), row (B,): one epoch is `steps` of them, in which all rows come equally often.

    The module must have its facts already (`module.expect(facts)`).

    Whatever the number of rows, an epoch has as many steps, so that nets that see more or fewer examples are trained
    equally long.

    Args:
        x: Inputs (N, ...).
        y: Classes (N,).
        steps: Batches of an epoch.
        batch_size: Rows of a batch; where there are fewer, it holds some twice.
        seed: Of their order.
    """

    def __init__(self, x: Tensor, y: Tensor, steps: int, batch_size: int, seed: int) -> None:
        super().__init__()
        self.x, self.y = x, y
        self.steps, self.batch_size, self.seed = steps, batch_size, seed

    def train_dataloader(self) -> DataLoader:
        """Rounds through all rows, each in an order of its own, cut into batches."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = self.steps * self.batch_size
        rounds = [torch.randperm(len(self.y), generator=generator) for _ in range(-(-drawn // len(self.y)))]
        order = list(torch.cat(rounds)[:drawn].view(self.steps, self.batch_size))
        return DataLoader(_Batches(self.x, self.y), sampler=order, batch_size=None)
