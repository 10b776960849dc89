"""Writes the course's submission file from what `predict` returns: a table, or lines of text."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.files import whole
from callbacks.predictions import Predictions, digest, write_predictions


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV with CRLF line ends, as csv.writer and the course's samples do; it appears whole or not at all."""
    with whole(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a line of text each; the file appears whole or not at all."""
    with whole(path) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


class Submission(BasePredictionWriter):
    """Collects `row` and `prediction` of every batch and rank, and writes them in the order of the test file.

    The datamodule says what the table looks like: `submission(predictions) -> (header, rows)`; the rows' first column
    names them. The predictions themselves go to predictions.npz of the run folder, for `leeml ensemble`. Where batches
    bring `text`, a list of strings, in place of `prediction`, it is written as it is, a line each.

    Args:
        path: Where to; null means submission.csv, or submission.txt, in the run folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path) if path else None

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Gather over ranks, sort by row, write."""
        shares: list[Any] = [None] * trainer.world_size
        mine = [{k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in b.items()} for b in predictions]
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(shares, mine)
        else:
            shares = [mine]
        if not trainer.is_global_zero:
            return
        batches = [batch for share in shares for batch in share]
        order = torch.cat([b["row"] for b in batches]).argsort()
        folder, dry = Path(trainer.default_root_dir), trainer.fast_dev_run  # type: ignore[attr-defined]
        if "text" in batches[0]:
            texts = [line for b in batches for line in b["text"]]
            if not dry:
                write_lines(self.path or folder / "submission.txt", (texts[place] for place in order.tolist()))
            return
        values = torch.cat([b["prediction"] for b in batches])[order].float().numpy()
        if len(bad := np.argwhere(~np.isfinite(values))):
            raise MisconfigurationException(
                f"the prediction of row {bad[0][0]} of the test file is {values[tuple(bad[0])]}, and nothing was "
                "written; the weights or that row are not finite: look at the run's log, choose another --ckpt_path"
            )
        header, rows = trainer.datamodule.submission(values)  # type: ignore[attr-defined]
        if not dry:
            kept = Predictions(np.arange(len(values)), values, digest(row[0] for row in rows))
            write_predictions(folder / "predictions.npz", kept)
            write_csv(self.path or folder / "submission.csv", header, rows)
