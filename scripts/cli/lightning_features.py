"""Lightning's features beside the parts that every run has: what would replace one of them is refused in one line."""

import traceback
from typing import Any

from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.errors import DataError


def listed(value: Any) -> list[Any]:
    """What a flag that takes one or several was given."""
    return value if isinstance(value, list) else [] if value is None else [value]


def check_trainer(given: Any) -> None:
    """Refuse settings of the trainer that a run cannot have.

    Args:
        given: The trainer's arguments, with callbacks and plugins built.

    Raises:
        MisconfigurationException: says what to do instead.
    """
    if given.get("accumulate_grad_batches", 1) < 1:
        raise MisconfigurationException(
            f"trainer.accumulate_grad_batches is {given['accumulate_grad_batches']}: expected 1 or more"
        )
    if given.get("use_distributed_sampler"):
        raise MisconfigurationException(
            "trainer.use_distributed_sampler: the loaders share rows out over processes themselves; leave it out"
        )
    if given.get("barebones"):
        raise MisconfigurationException(
            "trainer.barebones: a run keeps its checkpoints, metrics and log, which this mode forbids; `leeml bench` "
            "measures speed"
        )
    if given.get("enable_checkpointing") is False:
        raise MisconfigurationException(
            "trainer.enable_checkpointing: a run always keeps last.ckpt; without best.ckpt: --checkpoint.save_top_k 0, "
            "without any file: --trainer.fast_dev_run true"
        )
    if any(isinstance(plugin, CheckpointIO) for plugin in listed(given.get("plugins"))):
        raise MisconfigurationException(
            "trainer.plugins: a run writes its checkpoints with callbacks.checkpoints.RunCheckpointIO, so that they "
            "appear whole; leave the other CheckpointIO out"
        )
    for callback in listed(given.get("callbacks")):
        name = type(callback).__name__
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            flag = "--model.optimizer.lr" if isinstance(callback, LearningRateFinder) else "--data.batch_size"
            raise MisconfigurationException(
                f"trainer.callbacks: {name} would change what config.yaml says of the run; search with "
                f"lightning.pytorch.tuner.Tuner (docs/trust.md shows how), then fit with {flag} VALUE"
            )


def explain_callback(error: Exception) -> None:
    """Say in one line what a callback of Lightning's own cannot do, such as fine-tune a backbone that is not there.

    Raises:
        DataError: the error was raised within such a callback.
    """
    if type(error) is RuntimeError:  # such as early stopping on a metric that is not there: has a line of its own
        return
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for owner in reversed(owners):
        if isinstance(owner, Callback) and type(owner).__module__.startswith("lightning."):
            what = str(error) or type(error).__name__
            raise DataError(
                f"trainer.callbacks: {type(owner).__name__} cannot work here: {what} (LEEML_DEBUG=1 shows where)"
            ) from error
