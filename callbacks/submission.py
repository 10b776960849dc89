"""Writes the course's submission file from what `predict` returns: a table, or lines of text."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.files import whole
from callbacks.predictions import Predictions, digest, source_of, write_predictions


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV with CRLF line ends, as csv.writer and the course's samples do; it appears whole or not at all.

    Raises:
        MisconfigurationException: a cell is a number that is not finite.
    """
    with whole(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            for name, cell in zip(header, row, strict=False):
                if isinstance(cell, float | np.floating) and not math.isfinite(cell):
                    raise MisconfigurationException(f"{path}: not written, as {name} of row {row[0]} is {cell}")
            writer.writerow(row)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a line of text each; the file appears whole or not at all."""
    with whole(path) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


@runtime_checkable
class Submits(Protocol):
    """A datamodule that says what the course's table looks like."""

    def submission(self, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the file, for predictions in the order of the test file; the first column names a row."""


def table(data: Any, predictions: np.ndarray) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the data's submission file; of data that say nothing of it, row numbers and predictions."""
    if isinstance(data, Submits):
        return data.submission(predictions)
    flat = predictions.reshape(len(predictions), -1)
    header = ["prediction"] if flat.shape[1] == 1 else [f"prediction_{k}" for k in range(flat.shape[1])]
    return ["id", *header], [[row, *values] for row, values in enumerate(flat.tolist())]


def _batches(predictions: Sequence[Any], pl_module: LightningModule, world_size: int) -> list[dict[str, Any]]:
    """Batches with rows, on the CPU; tensors alone are counted through, as one process keeps the loader's order.

    Raises:
        MisconfigurationException: `predict_step` returns nothing that could be written.
    """
    batches: list[dict[str, Any]] = []
    count = 0
    for found in predictions:
        alone = isinstance(found, torch.Tensor) and found.ndim > 0 and world_size == 1
        batch = {"row": torch.arange(count, count + len(found)), "prediction": found} if alone else found
        if not isinstance(batch, dict) or "row" not in batch or not {"prediction", "text"} & batch.keys():
            raise MisconfigurationException(
                f"{type(pl_module).__name__}.predict_step returns a {type(found).__name__}, of which no file can be "
                "written; expected {'row': numbers (B,), 'prediction': (B, ...)}, with a list 'text' instead of "
                "'prediction' for lines of text, or, in one process, a tensor (B, ...)"
            )
        count += len(batch["row"])
        batches.append({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
    return batches


def _source(trainer: Trainer) -> str:
    """Checkpoint and data folder that the predictions come from, where both are files that can be named."""
    locate = getattr(trainer.datamodule, "locate", None)  # type: ignore[attr-defined]
    if not trainer.ckpt_path or locate is None:
        return ""
    return source_of(Path(trainer.ckpt_path), locate())


class Submission(BasePredictionWriter):
    """Collects `row` and `prediction` of every batch and rank, and writes them in the order of the test file.

    The datamodule says what the table looks like (`Submits`); else it holds row numbers and predictions. The
    predictions themselves go to predictions.npz of the run folder, for `leeml ensemble`. Where batches bring `text`, a
    list of strings, in place of `prediction`, it is written as it is, a line each.

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
        mine = _batches(predictions, pl_module, trainer.world_size)
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
        header, rows = table(trainer.datamodule, values)  # type: ignore[attr-defined]
        if not dry:
            write_csv(self.path or folder / "submission.csv", header, rows)
            names = digest(row[0] for row in rows)
            kept = Predictions(np.arange(len(values)), values, names, _source(trainer))
            try:
                write_predictions(folder / "predictions.npz", kept)
            except OSError as error:  # the submission is there, and an ensemble can predict again
                rank_zero_warn(f"{folder}: predictions.npz was not kept ({error.strerror})")
