"""leeml plan: parameters, memory, steps, arithmetic and hours of a config on a card, without its data and the card.

An estimate. The step is counted operation by operation on batches of the course's sizes; the time is that of a card
that reaches a fixed share of what its data sheet promises.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ActionConfigFile
from lightning.pytorch import Trainer, seed_everything

from datamodules.base import HomeworkData
from datamodules.files.places import PROJECT
from modules.base import HomeworkModule
from scripts.cli.config_parser import ConfigParser, check_nulls, known_classes
from scripts.cli.mistakes import Parser, UsageError
from scripts.estimates.cards import (
    CONTEXT,
    GPUS,
    LOOP,
    REACHED,
    REACHED_CPU,
    REACHED_MEMORY,
    START,
    Card,
    card_named,
)
from scripts.estimates.counting import Step, grown, one_step
from scripts.estimates.sizes import EDITIONS, Workload, workload
from scripts.train import find_config

EDITION = "2022"  # unless the config names one


class Estimate(NamedTuple):
    """What a run needs on a card."""

    title: str
    edition: str
    card: Card
    batch: str
    step: Step
    """Of a batch of the mean size."""
    memory: dict[str, float]
    """Bytes at the largest batch, by what they are for."""
    steps: int
    """Optimizer steps of the run."""
    accumulated: int
    """Batches of an optimizer step."""
    batch_seconds: float
    """Of a batch on the card, with its share of the optimizer's update."""
    loader_seconds: float
    """Of a batch, with the processes that make them."""
    validation_seconds: float
    """Of all validations together."""

    @property
    def total_memory(self) -> float:
        """Bytes of all parts of the memory together."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the card has so much memory."""
        return not self.card.memory or self.total_memory <= self.card.memory

    @property
    def flops(self) -> float:
        """Of a batch, forward and backward."""
        return sum(operation.flops for operation in (*self.step.forward, *self.step.backward))

    @property
    def kernels(self) -> int:
        """Operations of a step of one batch that start a kernel."""
        step = self.step
        return len(step.forward) + len(step.backward) + len(step.update) + step.waiting

    @property
    def hours(self) -> float:
        """Of the whole run."""
        card = self.card
        both = self.batch_seconds, self.loader_seconds
        batch = max(both) if card.loaders else sum(both)  # further processes make batches while the card computes
        return (self.steps * self.accumulated * batch + self.validation_seconds) / 3600


class Settled(NamedTuple):
    """A config, read, with its parts made."""

    model: HomeworkModule
    data: HomeworkData
    trainer: Any
    """Settings of the trainer."""


def read(configs: Sequence[str], flags: Sequence[str] = ()) -> Settled:
    """The module, the data, and the settings of the trainer, which is not made.

    Raises:
        UsageError: as `leeml fit` says it.
    """
    known_classes()
    parser = ConfigParser(prog="leeml plan")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--seed_everything", type=int | bool, default=0)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(HomeworkModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(HomeworkData, "data", subclass_mode=True)
    line = [part for config in configs for part in ("--config", find_config(config))]
    parsed = parser.parse_args([*line, *flags])
    check_nulls(parsed)
    trainer = parsed.pop("trainer")
    for name in ("config", "seed_everything"):
        parsed.pop(name, None)
    made = ConfigParser(prog="leeml plan")
    made.add_lightning_class_args(HomeworkModule, "model", subclass_mode=True)
    made.add_lightning_class_args(HomeworkData, "data", subclass_mode=True)
    both = made.instantiate_classes(parsed)
    return Settled(both.model, both.data, trainer)


def edition_of(title: str) -> str:
    """The edition that a config's name ends in, else the usual one."""
    end = title.rpartition("_")[2]
    return end if end in EDITIONS else EDITION


def counted(settled: Settled, load: Workload, mixed: bool) -> tuple[Step, Step]:
    """A step of the mean batch, and of the largest."""
    settled.model.expect(load.facts)
    settled.model.configure_model()
    clip = settled.trainer.gradient_clip_val
    few, more = (one_step(settled.model, load.batch(rows), mixed, clip, rows == load.tried[1]) for rows in load.tried)
    return grown(few, more, load.tried, load.rows), grown(few, more, load.tried, load.most)


def averages(trainer: Any) -> int:
    """How many further copies of the weights the callbacks keep."""
    names = [str(callback.class_path) for callback in trainer.callbacks or []]
    return sum(name.endswith(("WeightAveraging", "AverageOfLast")) for name in names)


def estimate(title: str, settled: Settled, card: Card, edition: str) -> Estimate:
    """What the run of a config needs.

    Args:
        title: Of the config.
        settled: What it holds; its model is built.
        card: Where it would run.
        edition: Of the course, whose sizes are taken.
    """
    trainer = settled.trainer
    load = workload(settled.data, edition)
    mean, largest = counted(settled, load, mixed=card.loaders > 0)
    accumulated = trainer.accumulate_grad_batches
    epoch_steps = -(-load.batches // accumulated)
    steps = (trainer.max_epochs or 1000) * epoch_steps if trainer.max_steps in (-1, None) else trainer.max_steps
    if trainer.max_epochs not in (None, -1):
        steps = min(steps, trainer.max_epochs * epoch_steps)
    interval = trainer.val_check_interval or 1.0
    validated = steps / epoch_steps / (interval if isinstance(interval, float) else interval / load.batches)
    validations = int(validated / (trainer.check_val_every_n_epoch or 1) + 1e-6)
    memory = largest.lasting | {"saved for backward": largest.saved}
    if copies := averages(trainer):
        memory["averaged weights"] = copies * largest.lasting["weights"]
    if card.memory:
        memory["CUDA"] = CONTEXT
    update = [part._replace(traffic=part.traffic / accumulated) for part in mean.update]
    batch = card.seconds([*mean.forward, *mean.backward, *update], mean.waiting)
    judging = card.seconds(mean.forward, mean.waiting // 3) * load.judged / load.rows
    loading = load.loading * load.rows / max(1, card.loaders)
    return Estimate(
        title, edition, card, load.batch_of, mean, memory, steps, accumulated, batch, loading, validations * judging
    )


def report(found: Estimate) -> list[tuple[str, str]]:
    """What is printed of one config."""
    card, step = found.card, found.step
    parts = ", ".join(f"{name} {count / 1e6:,.0f}" for name, count in found.memory.items())
    limit = "" if not card.memory else f" of {card.memory / 1e9:.0f} GB: {'fits' if found.fits else 'DOES NOT FIT'}"
    accumulated = f" of {found.accumulated} batches each" if found.accumulated > 1 else ""
    loader = f", its loading {found.loader_seconds * 1e3:.1f} ms" if found.loader_seconds else ""
    validations = found.validation_seconds / 3600
    return [
        ("config", f"{found.title}, sizes of the course's edition {found.edition}"),
        ("parameters", f"{step.parameters:,}"),
        ("batch", found.batch),
        ("memory", f"{found.total_memory / 1e9:.2f} GB{limit} (MB: {parts})"),
        ("steps", f"{found.steps:,}{accumulated}"),
        ("arithmetic", f"{found.flops / 1e9:,.1f} GFLOP a batch, {found.kernels:,} operations that start a kernel"),
        ("time", f"{found.batch_seconds * 1e3:.1f} ms a batch{loader}; validations {validations:.2f} h"),
        ("hours", f"{found.hours:.2f} on {card.title} (an estimate)"),
    ]  # fmt: skip


def assumptions(card: Card) -> str:
    """What the time rests on, in one line."""
    common = (
        f"{LOOP * 1e3:.0f} ms of the host a batch; early stopping never stops; what HW5 translates in validation is "
        "not counted"
    )
    if not card.loaders:
        return (
            f"assumed: {card.single / 1e9:.0f} GFLOP/s ({REACHED_CPU:.0%} of a large product's), "
            f"{card.bandwidth / 1e9:.1f} GB/s and {card.start * 1e6:.1f} us to start an operation, as just measured; "
            f"{common}"
        )
    return (
        f"assumed: {REACHED:.0%} of the data sheet's arithmetic ({card.half / 1e12:.1f} TFLOP/s in 16 bits, "
        f"{card.single / 1e12:.1f} in 32) and {REACHED_MEMORY:.0%} of its bandwidth ({card.bandwidth / 1e9:.0f} GB/s); "
        f"{START * 1e6:.0f} us to start a kernel; mixed precision as configs/presets/gpu.yaml has it, without "
        f"torch.compile; {card.loaders} loader process{'es' if card.loaders > 1 else ''} as fast as a core of this "
        f"machine; {common}"
    )


def table(configs: Sequence[Path], card: Card, edition: str | None = None) -> list[str]:
    """Configs as a table for docs/."""
    lines = [
        f"| config | edition | parameters | memory (GB) | steps | GFLOP a batch | hours on {card.title} |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in configs:
        title = f"{path.parent.name}/{path.stem}"
        found = estimate(title, read([str(path)]), card, edition or edition_of(title))
        lines.append(
            f"| {title} | {found.edition} | {found.step.parameters:,} | {found.total_memory / 1e9:.1f} | "
            f"{found.steps:,} | {found.flops / 1e9:,.3g} | {found.hours:.2g} |"
        )
    return lines


def main(args: list[str]) -> int:
    """Print the estimate of a config, or the table of all.

    Raises:
        UsageError: neither a config nor --table.
    """
    parser = Parser(prog="leeml plan", description=__doc__)
    parser.add_argument("--config", "-c", action="append", default=[], help="as of leeml fit; flags change it")
    parser.add_argument("--edition", choices=EDITIONS, help=f"whose sizes (default: the config's, else {EDITION})")
    parser.add_argument("--card", choices=[*GPUS, "cpu"], default="t4", help="where it would run (default: t4)")
    parser.add_argument("--table", action="store_true", help="all configs, as a table in Markdown")
    own, flags = parser.parse_known_args(args[1:])
    if bool(own.config) == own.table or (own.table and flags):
        raise UsageError("plan needs --config configs/..., or --table alone for all configs")
    card = card_named(own.card)
    seed_everything(0, verbose=False)
    with torch.random.fork_rng(devices=[]):
        if own.table:
            configs = sorted((PROJECT / "configs").glob("hw*/*.yaml"))
            print("\n".join([*table(configs, card, own.edition), "", assumptions(card)]))
            return 0
        first = Path(own.config[0])
        title = f"{first.parent.name}/{first.stem}"
        found = estimate(title, read(own.config, flags), card, own.edition or edition_of(title))
    for name, text in report(found):
        print(f"{name:<11} {text}")
    print(assumptions(card))
    return 0
