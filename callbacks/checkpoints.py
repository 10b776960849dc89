"""The two checkpoints of a run: best.ckpt for its score, last.ckpt to go on from."""

import io
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.files import whole

REST = 20  # a save that takes a second is followed by at least so many seconds without one


class RunCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them.

    Lightning's own writes to the system's temporary folder first, and moves from there: between two disks that is a
    copy, and a crash leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint that appears whole or not at all."""
        memory = io.BytesIO()  # torch's own file writer turns a full disk into a RuntimeError
        torch.save(checkpoint, memory)
        with whole(Path(path)) as scratch:
            scratch.write_bytes(memory.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that still knows the best score when the run's folder has been moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over, with the paths of this folder, if the best checkpoint lies in it."""
        folder, best = Path(self.dirpath or ""), state_dict["best_model_path"]
        if best and (folder / Path(best).name).is_file():
            here = {k: v and str(folder / Path(v).name) for k, v in state_dict.items() if k.endswith("_path")}
            models = {str(folder / Path(k).name): v for k, v in state_dict["best_k_models"].items()}
            state_dict = state_dict | here | {"best_k_models": models, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, where --resume goes on: after the first epoch, every few seconds, and at the end.

    It comes after all other callbacks, so that it holds what they know of the epoch, such as the best score.
    (ModelCheckpoint's `save_last` writes it only when the score has improved.)

    Args:
        path: The file.
        seconds: It is written when so much time has passed (longer where writing itself takes long): at the next
            optimizer step, or under DDP, where the first rank's clock counts, the next logged one.
    """

    def __init__(self, path: Path, seconds: float = 10.0) -> None:
        self.path, self.seconds = path, seconds
        self._next = 0.0
        self._step = -1
        self._first = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is lost yet."""
        self._next, self._step = time.monotonic() + self.seconds, trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, and the batch ended an optimizer step."""
        stepped = trainer.global_step != self._step
        every = trainer.log_every_n_steps if trainer.world_size > 1 else 1  # type: ignore[attr-defined]
        if stepped and trainer.global_step % every == 0 and not trainer.is_last_batch:  # that epoch is not judged yet
            self._save_if(trainer, time.monotonic() > self._next)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time, the first epoch, and the final state."""
        final = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._save_if(trainer, self._first or final or time.monotonic() > self._next)
        self._first = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state if the run ended in another way (too late for averaged weights to go on from)."""
        self._save_if(trainer, trainer.global_step != self._step)

    def _save_if(self, trainer: Trainer, due: bool) -> None:
        if trainer.fast_dev_run or not trainer.strategy.broadcast(due):  # type: ignore[attr-defined]
            return
        start = time.monotonic()
        trainer.save_checkpoint(self.path, weights_only=False)
        now = time.monotonic()
        self._next, self._step = now + max(self.seconds, REST * (now - start)), trainer.global_step
