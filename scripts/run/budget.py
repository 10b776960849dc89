"""leeml fit --budget 12m: a run that ends in time, with schedules that end with it.

A run that is cut by a time limit ends in the middle of its schedules; a run that is planned for the time does not, and
is better at the same cost (Li et al. 2020, "Budgeted training", arXiv 1905.04753). So the speed of steps, validation
and saving is measured first, in a short trial that is thrown away; the steps that fit are settled from it and stand in
config.yaml. From then on the run depends on its steps alone, and can be resumed to the same bits.
"""

import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.steps import steps_done
from scripts.cli.mistakes import UsageError
from scripts.cli.summary import show_summary
from scripts.train import LeemlCLI, run_cli

UNCHECKED = "--trainer.num_sanity_val_steps=0"  # the trial validates, which checks more
ENDLESS = {"max_epochs": 1_000_000, "max_steps": -1}  # of the trainer; the stopwatch ends the trial
TRIAL = (0.03, 2.0, 60.0)  # share of the budget that the trial trains for, at least and at most so many seconds
UNTIMED = 3  # first steps, in which libraries choose algorithms and code is compiled
RESERVE = (0.02, 5.0)  # share of the budget kept for pictures and the end of the run, at most so many seconds
VALIDATION = 0.05  # most of the budget that validations may take; of an untrained translator they take longer
MOST_VALIDATIONS = 40
SAVED_EVERY = 10.0  # seconds between two last.ckpt, as in callbacks/checkpoints.py
LONGEST_WARMUP = 0.1  # share of the run that a warm-up given in steps may take


class Speed(NamedTuple):
    """What the trial measured, in seconds."""

    setup: float
    """From the start of the command to the first step, and the first steps themselves."""
    step: float
    """An optimizer step, with its share of loading."""
    validation: float
    save: float
    """A checkpoint."""


class Settled(NamedTuple):
    """What is settled for the run."""

    steps: int
    """Optimizer steps of the run."""
    interval: int
    """Optimizer steps from one validation to the next; `steps` is a multiple of it."""


class Stopwatch(Callback):
    """Times the steps, validations and one save of a fit, and ends it.

    Args:
        seconds: How long to train, without validations; a validation is cut after as long, and the rest of it reckoned
            from its first batches.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun = time.perf_counter()
        self._first = 0  # steps done when the clock started
        self._since = math.inf
        self._setup = self._save = 0.0
        self._step = math.nan
        self._validations: list[float] = []
        self._spent = 0.0  # in validations, since the clock started
        self._validated_from = 0.0
        self._share = 1.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Start the clock after the first steps, and end the fit when the time is over."""
        now, steps = time.perf_counter(), steps_done(trainer)
        if self._since == math.inf and steps >= UNTIMED:
            self._first, self._since, self._setup = steps, now, now - self._begun
            self._validations.clear()
            self._spent = 0.0
        trained = now - self._since - self._spent
        if steps > self._first and trained >= self.seconds and math.isnan(self._step):
            self._step = trained / (steps - self._first)
            trainer.should_stop = True  # validates once more, then ends

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the validation begins."""
        self._validated_from, self._share = time.perf_counter(), 1.0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Cut a validation that takes longer than the training.

        Raises:
            StopIteration: ends it, as Lightning's loop takes it for the end of the loader.
        """
        done, totals = batch_idx + 1, trainer.num_val_batches
        if len(totals) == 1 and done < totals[0] < math.inf and self._validating() > self.seconds:
            self._share = done / totals[0]
            raise StopIteration

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time that this validation would have taken."""
        took = self._validating()
        self._spent += took
        self._validations.append(took / self._share)

    def _validating(self) -> float:
        return time.perf_counter() - self._validated_from

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure how long a checkpoint takes to save."""
        begun = time.perf_counter()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "timed.ckpt", weights_only=False)
        self._save = time.perf_counter() - begun

    def measured(self) -> Speed:
        """What was found; the median of the validations."""
        return Speed(self._setup, self._step, median(self._validations or [0.0]), self._save)


def parse_budget(text: str) -> float:
    """Seconds of a time such as 90s, 12m, 1h30m.

    Raises:
        UsageError: it is no such time.
    """
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip())
    try:
        hours, minutes, rest = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    except ValueError:  # such as 1.2.3
        hours, minutes, rest = 0.0, 0.0, 0.0
    seconds = hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise UsageError(f"--budget {text}: expected a time such as 90s, 12m or 1h30m")
    return seconds


def plan(speed: Speed, seconds: float) -> Settled:
    """The steps that fit into the time that is left.

    Args:
        speed: What was measured.
        seconds: From now on.

    Raises:
        UsageError: not a single step fits, or none was timed.
    """
    if math.isnan(speed.step):
        raise UsageError(
            "--budget: the trial ended before its steps could be timed; leave out what ends it, such as "
            "--trainer.max_time"
        )
    left = seconds - min(RESERVE[0] * seconds, RESERVE[1]) - speed.setup - speed.validation
    step = speed.step * (1 + speed.save / SAVED_EVERY)
    each = speed.validation + speed.save
    # where there are several, the best may not be the last: it is then judged once more, for the pictures
    further = int(min(MOST_VALIDATIONS, VALIDATION * left / each)) - 1 if each > 0 else MOST_VALIDATIONS - 1
    steps = int((left - (further + 1) * each * (further > 0)) / step) if left > 0 else 0
    if steps < 1:
        need = speed.setup + speed.validation + step
        raise UsageError(f"--budget: the run needs {need:.0f} s before its first step is judged; give it more time")
    validations = max(1, min(max(0, further) + 1, steps))
    return Settled(steps - steps % validations, (steps - steps % validations) // validations)


def flags_of(found: Settled, accumulated: int, optimizers: int = 1) -> list[str]:
    """The trainer's flags for a plan.

    Args:
        found: The plan.
        accumulated: Batches behind an optimizer step.
        optimizers: Number of optimizers; the trainer's max_steps counts the steps of all of them.
    """
    return [
        f"--trainer.max_steps={found.steps * optimizers}", "--trainer.max_epochs=-1", UNCHECKED,
        "--trainer.check_val_every_n_epoch=null", f"--trainer.val_check_interval={found.interval * accumulated}",
    ]  # fmt: skip


def shorten_warmup(config: Any, steps: int) -> None:
    """Cut warm-ups that are given in steps to a tenth of the run; Noam's peak stays what it was.

    Args:
        config: Configuration of fit; changed in place.
        steps: Of the run.
    """
    most = max(1, round(LONGEST_WARMUP * steps))
    for callback in config.trainer.callbacks or []:
        options = callback.get("init_args") or {}
        warmup = options.get("warmup")
        if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup <= most:
            continue
        options["warmup"] = most
        if options.get("schedule") == "noam":  # its peak is factor * (d_model * warmup) ** -0.5
            options["factor"] *= math.sqrt(most / warmup)
        print(f"leeml: warm-up shortened from {warmup} to {most} of {steps} steps", file=sys.stderr)


def try_out(args: Sequence[str], seconds: float, note: Callable[[Any], None] | None = None) -> tuple[Speed, LeemlCLI]:
    """Measure the speed of a fit in a folder that is thrown away.

    Args:
        args: Flags of fit, without --run_dir.
        seconds: The budget.
        note: Is shown the configuration, whose length the trial does not keep to.
    """
    share, least, most = TRIAL
    watch = Stopwatch(min(most, max(least, share * seconds)))
    scratch = tempfile.mkdtemp(prefix="leeml-trial-")

    def endless(config: Any) -> None:
        if note is not None:
            note(config)
        config.trainer.update(Namespace(ENDLESS))

    try:
        trial = ["fit", *args, UNCHECKED, "--trainer.logger=true", "--run_dir", f"{scratch}/run"]
        cli = run_cli(trial, early_stopping=False, watch=watch, settle=endless)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if cli.trainer.world_size > 1:
        raise UsageError("--budget plans for one process; say --trainer.max_steps where there are several")
    return watch.measured(), cli


def settle(args: Sequence[str], budget: float, begun: float, parts: int = 1) -> tuple[list[str], int | None]:
    """Flags that make a fit end in time, and its steps; prints what they rest on. With fast_dev_run: none.

    Args:
        args: Flags of fit, without --run_dir.
        budget: Seconds for all parts together.
        begun: When the command began, by time.perf_counter.
        parts: How many such fits follow each other.
    """
    print(f"leeml: measuring the speed for a budget of {budget:.0f} s ...", file=sys.stderr, flush=True)
    speed, cli = try_out(args, budget)
    if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return [], None
    found = plan(speed, (budget - (time.perf_counter() - begun)) / parts)
    print(
        f"leeml: a step takes {speed.step * 1000:.3g} ms, a validation {speed.validation:.2g} s, a checkpoint "
        f"{speed.save:.2g} s: {found.steps} steps, a validation every {found.interval}",
        file=sys.stderr,
    )
    flags = flags_of(found, cli.trainer.accumulate_grad_batches, max(1, len(cli.trainer.optimizers)))
    return flags, found.steps


def take_flag(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of --name, in either form, and the other arguments."""
    rest, value, words = [], None, iter(args)
    for word in words:
        if word == name:
            value = next(words, "")
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def main(args: list[str]) -> int:
    """Fit within the budget."""
    begun = time.perf_counter()
    text, rest = take_flag(args[1:], "--budget")
    assert text is not None
    budget = parse_budget(text)
    ends = [flag for flag in rest if flag.split("=")[0] in ("--trainer.max_steps", "--trainer.max_epochs", "--resume")]
    if ends:
        raise UsageError(
            f"--budget and {ends[0].split('=')[0]}: the budget settles the length of a new run; leave one of them out"
        )
    run_dir, others = take_flag(rest, "--run_dir")
    flags, steps = settle(others, budget, begun)
    where = ["--run_dir", run_dir] if run_dir is not None else []
    shorten = None if steps is None else partial(shorten_warmup, steps=steps)
    cli = run_cli(["fit", *others, *flags, *where], settle=shorten)
    if cli.trainer.is_global_zero and not cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        show_summary("fit", cli.trainer, cli.datamodule, cli.run, None)
        print(f"  budget      {budget:.0f} s, used {time.perf_counter() - begun:.0f} s")
    return 0
