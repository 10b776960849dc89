"""Writes the course's submission file from what `predict` returns."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.files import whole


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV with CRLF line ends, as csv.writer and the course's samples do; it appears whole or not at all."""
    with whole(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


class Submission(BasePredictionWriter):
    """Collects `row` and `prediction` of every batch and rank, and writes them in the order of the test file.

    The datamodule says what the file looks like: `submission(predictions) -> (header, rows)`.

    Args:
        path: Where to; null means submission.csv in the run folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path) if path else None

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Gather over ranks, sort by row, write."""
        shares: list[Any] = [None] * trainer.world_size
        mine = [{k: v.cpu() for k, v in batch.items()} for batch in predictions]
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(shares, mine)
        else:
            shares = [mine]
        if not trainer.is_global_zero:
            return
        batches = [batch for share in shares for batch in share]
        order = torch.cat([b["row"] for b in batches]).argsort()
        values = torch.cat([b["prediction"] for b in batches])[order].float().numpy()
        header, rows = trainer.datamodule.submission(values)  # type: ignore[attr-defined]
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.path or Path(trainer.default_root_dir) / "submission.csv"
        write_csv(path, header, rows)
