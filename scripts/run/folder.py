"""The one folder of a run: where it is, what lies in it, and which process writes to it."""

import json
import os
import shutil
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from callbacks.files import clear_parts, write_text
from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from scripts.run.lock import lock

WRITTEN = ("log.txt", "metrics.csv", "samples.csv", "checkpoints", "figures", ".lock")  # in the folder of a run


class RunFolder:
    """A run's folder: config.yaml, metrics.csv, checkpoints/, figures/, scores.json, log.txt, what else it wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.scores = path / "scores.json"
        self.log = path / "log.txt"
        self.notes: dict[Path, str] = {}
        """Texts of files to write when the folder is made."""
        self.trained = False
        """Whether this process has trained a step that the folder records."""
        self._lock: int | None = None  # a file descriptor

    @classmethod
    def new(cls, homework: str, level: str) -> "RunFolder":
        """runs/<homework>/<level>/<time> in the project; a second run in the same second gets a number."""
        base = PROJECT / "runs" / homework / level / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        path, number = base, 1
        while path.exists():
            number += 1
            path = base.with_name(f"{base.name}_{number}")
        return cls(path)

    def checkpoint(self, name: str) -> Path:
        """checkpoints/<name>.ckpt, which must be there."""
        path = self.checkpoints / f"{name}.ckpt"
        if not path.is_file():
            have = ", ".join(sorted(p.name for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise DataError(
                f"{path}: no such checkpoint in this run (found: {have}); choose one with --ckpt_path, or train again"
            )
        return path

    def kept(self) -> Path:
        """The checkpoint that stands for the run: best.ckpt, or last.ckpt where no validation chose a best one."""
        best = (self.checkpoints / "best.ckpt").is_file() or not self.resumable()
        return self.checkpoint("best" if best else "last")

    def resumable(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.checkpoints / "last.ckpt").is_file()

    def taken(self) -> bool:
        """Whether there is something to lose: a checkpoint, or metrics of a run that ended."""
        ended = (self.path / "metrics.csv").is_file() and self.scores.is_file()
        return ended or any(self.checkpoints.glob("*.ckpt"))

    def own(self) -> None:
        """Claim the folder, where it is there, for this process until it ends or calls `free`.

        Raises:
            DataError: another process has it.
        """
        if self._lock is not None or not self.path.is_dir():
            return
        path = self.path / ".lock"
        while self._lock is None:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            except OSError:  # `create` says why nothing can be written here
                return
            if not lock(file):
                owner = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise DataError(
                    f"{self.path}: this run is in progress in {owner}; wait for it, or choose another --run_dir"
                )
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                self._lock = file
            else:  # its last owner deleted it meanwhile
                os.close(file)
        os.truncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def in_progress(self) -> bool:
        """Whether another process has claimed the folder."""
        if self._lock is not None:
            return False
        with suppress(OSError), open(self.path / ".lock", "r+b") as probe:
            return not lock(probe.fileno())
        return False

    def free(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Delete the folder with all that is in it, unless it is another process's."""
        with suppress(DataError):
            self.own()
            shutil.rmtree(self.path, ignore_errors=True)

    def clear(self, rest: bool) -> None:
        """Delete what an interrupted process left half-written.

        Args:
            rest: Also what it recorded, as there is no checkpoint to go on from.
        """
        clear_parts(self.path)
        if rest:
            for name in ("metrics.csv", "samples.csv", "log.txt"):
                (self.path / name).unlink(missing_ok=True)

    def create(self) -> None:
        """Make the folder and claim it.

        Raises:
            DataError: it cannot be written to, or a link in it leads out of it: the run may be somebody else's.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError("no right to write")
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else error
            raise DataError(
                f"{self.path}: cannot write a run here ({reason}); choose another folder with --run_dir"
            ) from None
        for name in WRITTEN:
            link = self.path / name
            if link.is_symlink() and not link.resolve().is_relative_to(self.path.resolve()):
                raise DataError(
                    f"{link}: a link to {link.resolve()}, outside of the run's folder, where the run would write; put "
                    "a copy in its place (cp -rL), or choose another --run_dir"
                )
        self.own()
        for path, text in self.notes.items():
            write_text(path, text)

    def read_scores(self) -> dict[str, Any]:
        """What was scored so far."""
        return json.loads(self.scores.read_text()) if self.scores.is_file() else {}

    def add_scores(self, new: dict[str, Any]) -> None:
        """Put scores beside the earlier ones."""
        write_text(self.scores, json.dumps(self.read_scores() | new, indent=2) + "\n")


_STORES: list[Any] = []  # of the meeting point below, which the process group uses later


def agreed(run: RunFolder, rank: int, world: int) -> RunFolder:
    """The folder that rank 0 chose, where torchrun started several processes: each would name its own by the time.

    Of one process, or where the processes are started later by Lightning, it is the folder itself.
    """
    if world < 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return run
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(iter(rendezvous("env://", rank, world)))
    _STORES.append(store)
    key = f"leeml_run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank == 0:
        store.set(key, str(run.path))
    return RunFolder(Path(store.get(key).decode()))
