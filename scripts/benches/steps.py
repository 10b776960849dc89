"""leeml bench steps: training steps of configs on this device; samples a second, and the share of its peak (MFU).

The data is noise of the course's sizes, on the device beforehand: what is timed is the step alone, optimizer and
Lightning's loop included. Operations are those that `leeml plan` counts.
"""

import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, Trainer
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from callbacks.compiled import Compiled
from modules.hw1_covid import CovidRegressor
from scripts import plan
from scripts.benches.tools import environment
from scripts.cli.mistakes import Parser, UsageError
from scripts.estimates.cards import product_rate
from scripts.estimates.sizes import EDITIONS, workload
from scripts.run.device import AUTOCAST, best_precision, use_tensor_cores

TYPICAL = tuple(f"configs/{name}/strong.yaml" for name in ("hw3_food", "hw4_speaker", "hw5_translation"))


class Turns(Callback):
    """Seconds of each turn of so many steps; the first one, which compiles, is left out."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note when a turn begins, once the device has done its work."""
        if batch_idx % self.steps == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.starts.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of the turns after the first."""
        return [after - before for before, after in zip(self.starts[1:], self.starts[2:], strict=False)]


class Measured(NamedTuple):
    """The steps of a config."""

    batch: str
    rows: int
    """Of a batch."""
    seconds: float
    """Of a step, the median of the turns."""
    flops: float
    """Of a step, forward and backward."""


def measure(config: str, edition: str, turns: Turns, count: int, device: torch.device, **options: Any) -> Measured:
    """Train on one batch of noise.

    Args:
        config: A file.
        edition: Of the course, whose sizes are taken.
        turns: The clock.
        count: Steps.
        device: That computes.
        options: Of the trainer: precision and callbacks.

    Raises:
        UsageError: the config trains on rewards.
    """
    settled = plan.read([config])
    if getattr(settled.model, "objective", None) is not None:
        raise UsageError(f"{config}: rewards are of real sentences, but this benchmark has noise")
    if isinstance(settled.model, CovidRegressor):
        settled.model.ridge = None  # HW1's linear path is solved from the real rows before the first step
    load = workload(settled.data, edition)
    step, _ = plan.counted(settled, load, options["precision"] in AUTOCAST)
    rows = max(1, round(load.rows))
    flops = sum(part.flops for part in (*step.forward, *step.backward)) * rows / load.rows
    batch = tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, load.batch(rows))
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_steps=count, logger=False,
        gradient_clip_val=settled.trainer.gradient_clip_val, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(settled.model, DataLoader([batch] * count, batch_size=None))  # type: ignore[arg-type]
    return Measured(load.batch_of, rows, median(turns.seconds) / turns.steps, flops)


def peak(device: torch.device, dtype: torch.dtype) -> tuple[float | None, str]:
    """Operations a second of products that a device can do at most, and in words where that is from."""
    if device.type == "cpu":
        rate = max(product_rate(dtype, 1024) for _ in range(5))  # the machine may be busy for a moment
        return rate, f"{rate / 1e9:,.0f} GFLOP/s, just measured of products of 1,024 x 1,024 matrices"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a card is not known is said below
        found = get_available_flops(device, dtype)
    return found, "no peak of this card is known" if found is None else f"{found / 1e12:.0f} TFLOP/s, the data sheet's"


def main(args: list[str]) -> int:
    """Measure the configs named, else those of three homeworks."""
    parser = Parser(prog="leeml bench steps", description=__doc__)
    parser.add_argument("config", nargs="*", help=f"files (default: {', '.join(TYPICAL)})")
    parser.add_argument("--accelerator", choices=["auto", "gpu", "cpu"], default="auto")
    parser.add_argument("--precision", choices=["auto", *AUTOCAST, "32-true"], default="auto")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--edition", choices=EDITIONS, help="of the course, whose sizes are taken")
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns; the median is reported")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    own = parser.parse_args(args)
    for name in ("steps", "repeats", "threads"):
        if getattr(own, name) < 1:
            raise UsageError(f"--{name} {getattr(own, name)}: expected at least 1")
    on_gpu = own.accelerator != "cpu" and torch.cuda.is_available()
    if own.accelerator == "gpu" and not on_gpu:
        raise UsageError("--accelerator gpu: there is no GPU that torch can use")
    torch.set_num_threads(own.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    use_tensor_cores()
    precision = best_precision(on_gpu) if own.precision == "auto" else own.precision
    most, source = peak(device, AUTOCAST.get(precision, torch.float32))
    print(environment(own.threads))
    print(
        f"\nTraining steps on one batch of noise, {precision}, {'not ' if own.eager else ''}compiled; medians of "
        f"{own.repeats} turns of {own.steps} steps\nMFU: share of {source}" + ("" if most else ", so there is none")
    )
    print(f"  {'':<26} {'ms a step':>10} {'samples/s':>10} {'GFLOP a step':>13} {'MFU':>7}")
    for config in own.config or TYPICAL:
        path = Path(plan.find_config(config))
        title, turns = f"{path.parent.name}/{path.stem}", Turns(own.steps)
        found = measure(
            config, own.edition or plan.edition_of(title), turns, own.steps * (own.repeats + 1) + 1, device,
            precision=precision, callbacks=[turns] if own.eager else [turns, Compiled()],
        )  # fmt: skip
        share = f"{found.flops / found.seconds / most:7.1%}" if most else f"{'?':>7}"
        print(
            f"  {title:<26} {found.seconds * 1e3:10.1f} {found.rows / found.seconds:10,.0f} {found.flops / 1e9:13,.1f} "
            f"{share}  {found.batch}",
            flush=True,
        )
    return 0
