"""Holds the state of a checkpoint against the flags of --resume: they are applied, or refused in one line."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from torch.optim import Optimizer

from datamodules.errors import DataError
from modules.base import HomeworkModule
from scripts.run.checkpoint import from_config

PLACES = ("root", "dir", "edition", "workers")  # flags of the data that change no batch
DERIVED = ("batch_size",)  # of the data: null stands for what the same files say
MOVING = ("params", "lr", "initial_lr", "schedule_step")  # of a param group: what training itself changes

Changes = list[dict[str, Any]]  # for each param group the settings that flags have changed


def optimizer_changes(path: Path, model: HomeworkModule, trust: bool, typed: Iterable[str]) -> Changes:
    """What the flags say of the optimizer that the run's own configuration did not.

    Args:
        path: Of the checkpoint to go on from.
        model: With the flags, and its network built.
        trust: Whether the checkpoint's configuration may name classes that are not known.
        typed: Names that the user has typed, which are free.

    Raises:
        DataError: the state of the checkpoint's optimizer is of no use to the new one, or its class is not known.
    """
    before, now = from_config(path, (), "model", trust=trust, typed=typed).model.new_optimizer, model.new_optimizer
    new = model.configure_optimizers()
    try:
        model.new_optimizer = before
        old = model.configure_optimizers()
    finally:
        model.new_optimizer = now
    if not isinstance(old, Optimizer) or not isinstance(new, Optimizer):
        return []
    otherwise = "leave that flag out, or begin a new run in another --run_dir"
    if type(old) is not type(new):
        raise DataError(
            f"{path}: holds the state of {type(old).__name__}; {type(new).__name__} (model.optimizer) cannot take it "
            f"over; {otherwise}"
        )
    sizes = [[len(group["params"]) for group in groups] for groups in (old.param_groups, new.param_groups)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{path}: its optimizer has its parameters in {len(sizes[0])} group(s), with these flags there are "
            f"{len(sizes[1])} (as weight decay leaves some out); {otherwise}"
        )
    changes: Changes = []
    for was, is_now in zip(old.param_groups, new.param_groups, strict=True):
        found = {key: is_now[key] for key in was if key not in MOVING and was[key] != is_now[key]}
        if float(was["lr"]) != float(is_now["lr"]):
            found["lr"] = float(is_now["lr"])
        changes.append(found)
    return changes


def check_averaging(path: Path, checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Averaged weights must stay averaged.

    Raises:
        DataError: the checkpoint holds a mean as its weights, and no callback that knows the weights of now.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if "averaging_state" in checkpoint and not any(isinstance(c, WeightAveraging) for c in callbacks):
        raise DataError(
            f"{path}: its weights are a mean (EMAWeightAveraging or AverageOfLast), and trainer.callbacks has no such "
            "callback to resume from; keep it in the list"
        )


def check_data(path: Path, checkpoint: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Batches must stay as they are until the end of the epoch.

    Raises:
        DataError: a flag changes them in the middle of one.
    """
    loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or []
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["is_last_batch"] or not any(loader.get("given") for loader in loaders if isinstance(loader, dict)):
        return
    before, now = (config.get("init_args") or {} for config in (checkpoint["config"]["data"], data))
    for key in sorted({*before, *now} - {*PLACES}):
        if before.get(key) != now.get(key) and not (key in DERIVED and now.get(key) is None):
            raise DataError(
                f"{path}: of the middle of an epoch, whose batches data.{key} would change (from {before.get(key)} to "
                f"{now.get(key)}); leave it out, or begin a new run in another --run_dir"
            )


def apply(checkpoint: dict[str, Any], changes: Changes, trainer: Trainer) -> None:
    """Put what flags have changed into a checkpoint that is about to be loaded.

    Args:
        checkpoint: Changed in place.
        changes: See `optimizer_changes`.
        trainer: Whose callbacks are about to take their state from it.
    """
    for state in checkpoint.get("optimizer_states", [])[:1]:
        for group, change in zip(state["param_groups"], changes, strict=False):
            group |= change
            if "lr" in change and "initial_lr" in group:  # what WarmupScheduler multiplies
                group["initial_lr"] = change["lr"]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        known = checkpoint["callbacks"].get(callback.state_key)
        if isinstance(callback, EarlyStopping) and known:
            known["patience"] = callback.patience
