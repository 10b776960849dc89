"""leeml bench HW --budget 5m: the course's network in a plain loop, and our levels, for as long, on the same rows.

The network of the course's code is trained as its code does it: a DataLoader, a step, the loss asked for after every
step. Ours are `leeml fit --budget`. One after the other, each from reading the data to the last step. All are judged by
the weights that they end with on rows that neither trained on and that chose nothing.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from scripts.plan import read
from scripts.run import budget
from scripts.train import run_cli


class Sample(NamedTuple):
    """How the course's code trains a network of ours that is built as its own."""

    batches: Iterable[Any]
    """Of an epoch, by its loader."""
    loss: Callable[[Any], Tensor]
    """Of a batch, ()."""
    rate: Callable[[int], float] | None = None
    """Share of the learning rate at each step; None: all of it."""


class Result(NamedTuple):
    """What a training came to."""

    score: float
    """Of the rows left out, by the metric that chooses checkpoints."""
    steps: int
    seconds: float
    held_out: Any
    """The fact that tells which rows were left out."""

    def same_rows(self, other: "Result") -> bool:
        """Whether both were judged on the same rows."""
        if isinstance(self.held_out, Tensor):
            return torch.equal(self.held_out, other.held_out)
        return bool(self.held_out == other.held_out)


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches, epoch after epoch without an end."""
    while True:
        yield from batches


def train_sample(bench: ModuleType, config: str, flags: list[str], seconds: float) -> Result:
    """The course's code for so many seconds.

    Args:
        bench: With `sample(data, module)`, which gives the loop's parts.
        config: Of the course's network.
        flags: Of the data.
        seconds: From reading the data to the last step.
    """
    begun, steps = time.perf_counter(), 0
    seed_everything(0, verbose=False)
    module, data, settings = read([config], flags)
    data.setup("fit")
    assert data.facts is not None
    module.expect(data.facts)
    module.configure_model()
    sample, optimizer = bench.sample(data, module), module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    schedule = sample.rate and torch.optim.lr_scheduler.LambdaLR(optimizer, sample.rate)
    module.train()
    batches = endless(sample.batches)
    while time.perf_counter() - begun < seconds:
        for _ in range(settings.accumulate_grad_batches):
            loss = sample.loss(next(batches)) / settings.accumulate_grad_batches
            loss.backward()
            loss.item()
        if settings.gradient_clip_val:
            nn.utils.clip_grad_norm_(module.parameters(), settings.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()
        steps += 1
    used = time.perf_counter() - begun
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    (scores,) = trainer.validate(module, data, verbose=False)
    return Result(scores[module.monitor], steps, used, data.facts["held_out"])


def train_level(config: str, flags: list[str], text: str, precision: str) -> Result:
    """A level of ours by `leeml fit --budget`."""
    with tempfile.TemporaryDirectory() as name:
        run = ["--run_dir", f"{name}/run"]
        begun = time.perf_counter()
        device = ["--trainer.accelerator", "cpu", "--trainer.precision", precision]
        budget.main(["fit", "--config", config, *flags, *run, "--budget", text, *device])
        used = time.perf_counter() - begun
        cli = run_cli(["validate", *run, "--ckpt_path", "last"])
        step = torch.load(f"{name}/run/checkpoints/last.ckpt", weights_only=True)["global_step"]
        score = float(cli.trainer.callback_metrics[cli.model.monitor])
        return Result(score, step, used, cli.model.facts["held_out"])


def compare(bench: ModuleType, data: dict[str, Any], levels: list[str], text: str, precision: str) -> dict[str, Result]:
    """Train and judge the course's network and the levels, and print it.

    Args:
        bench: Of the homework.
        data: Flags, None: not given.
        levels: Names of configs.
        text: The budget, such as 5m.
        precision: Of the levels; the course's code computes in float32.

    Raises:
        DataError: a level holds out other rows.
    """
    homework, seconds = bench.__name__.rpartition(".")[2], budget.parse_budget(text)
    flags = [f"{key}={value}" for key, value in data.items() if value is not None] + ["--data.seed=0"]
    found: dict[str, Result] = {}
    print(f"\n{homework}: {text} each, one after the other; ours in {precision}; rows left out, last weights, seed 0")
    print(f"  {'':<22} {'score':>8} {'steps':>8} {'seconds':>8}")
    for name in ("the course's code", *levels):
        config = str(PROJECT / "configs" / homework / f"{'simple' if name not in levels else name}.yaml")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found[name] = (
                train_level(config, flags, text, precision)
                if name in levels
                else train_sample(bench, config, flags, seconds)
            )
        if not found[name].same_rows(found["the course's code"]):
            raise DataError(
                f"{config}: holds out other rows than simple.yaml (data.folds, data.split); nothing to compare"
            )
        print(f"  {name:<22} {found[name].score:8.4f} {found[name].steps:8,} {found[name].seconds:8.0f}", flush=True)
    return found
