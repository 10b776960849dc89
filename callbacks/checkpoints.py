"""The two checkpoints of a run: best.ckpt for its score, last.ckpt to go on from."""

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.exit_codes import TERMINATED
from callbacks.files import whole

REST = 20  # a save that takes a second is followed by at least so many seconds without one


class RunCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them.

    Lightning's own writes to the system's temporary folder first, and moves from there: between two disks that is a
    copy, and a crash leaves half a checkpoint.

    While `hold` is set, a checkpoint stays in memory until `release` writes it.
    """

    def __init__(self) -> None:
        self.hold = False
        self.seconds = 0.0
        """Spent on packing and writing, of all checkpoints so far."""
        self._held: tuple[Path, io.BytesIO] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint that appears whole or not at all."""
        start = time.perf_counter()
        memory = io.BytesIO()  # torch's own file writer turns a full disk into a RuntimeError
        torch.save(checkpoint, memory)
        self._held = (Path(path), memory)
        self.seconds += time.perf_counter() - start
        if not self.hold:
            self.release()

    def release(self) -> None:
        """Write the checkpoint that is held, if there is one."""
        if self._held is not None:
            start = time.perf_counter()
            path, memory = self._held
            self._held = None
            with whole(path) as scratch:
                scratch.write_bytes(memory.getbuffer())
                with open(scratch, "rb") as file:
                    os.fsync(file.fileno())  # a power cut must not leave the name without the content
            self.seconds += time.perf_counter() - start

    @property
    def holds(self) -> bool:
        """Whether a checkpoint waits to be written."""
        return self._held is not None

    def drop(self) -> None:
        """Forget the checkpoint that is held."""
        self._held = None


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

    Lightning logs the numbers of a step, or of an epoch, after the hooks at its end. So the state is taken in the hook,
    and written at the next one, when the loggers have saved those numbers: what a checkpoint has counted is on disk
    before it.

    SIGTERM, as schedulers and `docker stop` send it, lets the step finish, saves, and ends the process with 143.

    Args:
        path: The file.
        seconds: It is written when so much time has passed (longer where writing itself takes long): at the next
            optimizer step, or under DDP, where the first rank's clock counts, the next logged one.
    """

    def __init__(self, path: Path, seconds: float = 10.0) -> None:
        self.path, self.seconds = path, seconds
        self._next = 0.0
        self._step = -1  # that was saved last
        self._before = -1  # at the end of the batch before
        self._first = True
        self._end: BaseException | None = None  # what the run is to end with, at the next end of a step
        self._stop = False
        self._handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is lost yet."""
        self._next, self._step = time.monotonic() + self.seconds, trainer.global_step
        self._before = trainer.global_step
        self._end, self._stop = None, False
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._end is not None:  # a second signal does not wait
            self._listen_no_more()
            raise SystemExit(TERMINATED)
        self._end = SystemExit(TERMINATED)

    def end(self, error: BaseException) -> None:
        """Save at the end of this step, and raise the error then; the first of several."""
        self._end = self._end or error

    def _listen_no_more(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write what was taken at the end of the step before."""
        self._write(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was taken at the end of the epoch before."""
        self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, for a validation within an epoch."""
        if not trainer.sanity_checking:
            self._write(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A validation may take longer than a scheduler waits: the run goes on from the last checkpoint."""
        if isinstance(self._end, SystemExit) and trainer.world_size == 1 and self.path.is_file():
            raise self._end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the state if it is time, and the batch ended an optimizer step."""
        stepped = trainer.global_step != self._before  # else gradients are being accumulated, which no checkpoint holds
        self._before = trainer.global_step
        every = trainer.log_every_n_steps if trainer.world_size > 1 else 1  # type: ignore[attr-defined]
        if stepped and trainer.global_step % every == 0 and not trainer.is_last_batch:  # that epoch is not judged yet
            self._take_if(trainer, time.monotonic() > self._next)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it if it is time, the first epoch, and the final state."""
        final = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._take_if(trainer, self._first or final or time.monotonic() > self._next)
        self._first = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state if the run ended in another way (too late for averaged weights to go on from)."""
        self._listen_no_more()
        if isinstance(self._end, SystemExit):
            self._stop = False  # there is nothing to go on with
        if trainer.global_step != self._step:
            self._take_if(trainer, True)
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the last checkpoint as it is: the numbers of the step may not have been logged."""
        self._listen_no_more()
        if isinstance(io := trainer.strategy.checkpoint_io, RunCheckpointIO):
            io.drop()
        if isinstance(self._end, SystemExit) and "DataLoader worker" in str(exception):
            raise self._end from None  # the signal went to all processes, and those that load data ended at once

    def _take_if(self, trainer: Trainer, due: bool) -> None:
        end = self._end is not None
        due, stop = trainer.strategy.broadcast((due or end, end))
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._stop = stop
            return
        if not due:
            return
        start = time.monotonic()
        with self._held(trainer):
            trainer.save_checkpoint(self.path, weights_only=False)
        self._step, self._stop = trainer.global_step, stop
        self._rest(start)

    @contextmanager
    def _held(self, trainer: Trainer) -> Iterator[None]:
        io = trainer.strategy.checkpoint_io
        if not isinstance(io, RunCheckpointIO):  # a user's own
            yield
            return
        io.hold = True
        try:
            yield
        finally:
            io.hold = False

    def _rest(self, start: float) -> None:
        now = time.monotonic()
        self._next = now + max(self.seconds, REST * (now - start))

    def _write(self, trainer: Trainer) -> None:
        io = trainer.strategy.checkpoint_io
        if isinstance(io, RunCheckpointIO) and io.holds:
            start = time.monotonic()
            for logger in trainer.loggers:
                logger.save()
            io.release()
            self._rest(start)
        if self._stop:
            raise self._end or SystemExit(TERMINATED)
