import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, IterableDataset

from callbacks.schedules import constant, cosine, inverse_sqrt, linear, noam
from callbacks.warmup import WarmupScheduler

BATCHES = 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec",  # Lightning's own
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*resuming from a checkpoint that ended before the epoch",  # Tiny knows a batch by its index
    "ignore:.*ModelCheckpoint with manual optimization",
    "ignore:.*this fit will run with no optimizer",
)


class Recorder(SGD):
    """Momentum SGD that keeps the rates of all its groups at each of its steps."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.seen: list[list[float]] = []

    def step(self, closure: Any = None) -> Any:
        self.seen.append([float(group["lr"]) for group in self.param_groups])
        return super().step(closure)


class Tiny(LightningModule):
    """One optimizer, two groups with their own rates; a batch is known by its index, so that a run can be repeated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def loss(self, batch_idx: int) -> Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 * self.current_epoch + batch_idx))
        return (self.head(self.body(x).tanh()) - x.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return self.loss(batch_idx)

    def configure_optimizers(self) -> Any:
        return Recorder([{"params": self.body.parameters()}, {"params": self.head.parameters(), "lr": 0.01}])


class Manual(Tiny):
    """Two optimizers by hand, the second on every second batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for optimizer, every in zip(self.optimizers(), (1, 2), strict=True):
            if batch_idx % every == 0:
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch_idx))
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return Recorder(self.body.parameters(), lr=0.1), Recorder(self.head.parameters(), lr=0.02)


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class StopAfter(Callback):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.batches -= 1
        trainer.should_stop = self.batches <= 0


def fit(
    folder: Path,
    module: LightningModule,
    *callbacks: Callback,
    data: Any = range(BATCHES),
    resume: Path | None = None,
    logger: Any = False,
    **settings: Any,
) -> Trainer:
    trainer = Trainer(
        **({"max_epochs": 2} | settings),
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=None), ckpt_path=resume)
    return trainer


def seen(trainer: Trainer, optimizer: int = 0, group: int = 0) -> list[float]:
    return [rates[group] for rates in trainer.optimizers[optimizer].seen]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scheduler", "factor"),
    [
        (WarmupScheduler("constant", warmup=5), partial(constant, warmup=5)),
        (WarmupScheduler("linear", warmup=2, floor=0.1), partial(linear, total=12, warmup=2, floor=0.1)),
        (WarmupScheduler("cosine", warmup=3), partial(cosine, total=12, warmup=3)),
        (WarmupScheduler("cosine", total=8, floor=0.2), partial(cosine, total=8, floor=0.2)),
        (WarmupScheduler("inverse_sqrt", warmup=4, floor=0.6), partial(inverse_sqrt, warmup=4, floor=0.6)),
        (WarmupScheduler("noam", 4, d_model=16, factor=2.0), partial(noam, d_model=16, warmup=4, factor=2.0)),
    ],
    ids=["constant", "linear", "cosine", "cosine-total", "inverse_sqrt", "noam"],
)
def test_every_step_sees_its_rate(tmp_path: Path, scheduler: WarmupScheduler, factor: Any) -> None:
    trainer = fit(tmp_path, Tiny(), scheduler)
    for group, base in enumerate((0.1, 0.01)):
        assert seen(trainer, group=group) == [base * factor(step) for step in range(12)]


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (3, 4), (4, 4)])  # 4: the last batches make a step too
def test_optimizer_steps_count_not_batches(tmp_path: Path, accumulate: int, steps: int) -> None:
    trainer = fit(tmp_path, Tiny(), WarmupScheduler("cosine", warmup=2), accumulate_grad_batches=accumulate)
    assert trainer.global_step == steps
    assert seen(trainer) == [0.1 * cosine(step, steps, 2) for step in range(steps)]


@pytest.mark.parametrize(
    ("settings", "total"),
    [({"max_epochs": 3}, 18), ({"max_steps": 7}, 7), ({"limit_train_batches": 2}, 4), ({"fast_dev_run": 3}, 3)],
    ids=str,
)
def test_total_is_the_length_of_the_run(tmp_path: Path, settings: dict[str, Any], total: int) -> None:
    trainer = fit(tmp_path, Tiny(), WarmupScheduler("linear"), **settings)
    assert seen(trainer) == [0.1 * linear(step, total) for step in range(total)]


@pytest.mark.parametrize(("share", "warmup"), [(0.0, 0), (0.25, 3), (1.0, 12)])
def test_warmup_as_a_share_of_the_run(tmp_path: Path, share: float, warmup: int) -> None:
    trainer = fit(tmp_path, Tiny(), WarmupScheduler("cosine", warmup=share))
    assert seen(trainer) == [0.1 * cosine(step, 12, warmup) for step in range(12)]


def test_manual_optimization_counts_each_optimizer_alone(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Manual(), WarmupScheduler("linear", warmup=2))
    assert trainer.global_step == 12 + 6
    assert seen(trainer, 0) == [0.1 * linear(step, 12, 2) for step in range(12)]
    assert seen(trainer, 1) == [0.02 * linear(step, 12, 2) for step in range(6)]


def test_manual_optimization_shares_max_steps(tmp_path: Path) -> None:
    trainer = fit(
        tmp_path, Manual(), WarmupScheduler("linear"), max_steps=9, max_epochs=-1
    )  # 6 + 3 of the trainer's steps
    assert seen(trainer, 0) == [0.1 * linear(step, 5) for step in range(6)]  # 9 / 2, rounded up


def test_steps_that_call_their_closure_often_count_once(tmp_path: Path) -> None:
    class Newton(Tiny):
        def configure_optimizers(self) -> Optimizer:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    trainer = fit(tmp_path, Newton(), WarmupScheduler("linear", warmup=4), max_steps=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1  # 4/4, next after 3 steps


def test_steps_that_call_their_parents_step_count_once(tmp_path: Path) -> None:
    SGD(
        [nn.Parameter(torch.zeros(1))]
    )  # from its first object on, torch runs the hooks of SGD.step in Recorder.step too
    trainer = fit(tmp_path, Tiny(), WarmupScheduler("linear"))
    assert seen(trainer) == [0.1 * linear(step, 12) for step in range(12)]


def test_a_rate_in_a_tensor_stays_the_same_tensor(tmp_path: Path) -> None:
    rate = torch.tensor(0.1)

    class InPlace(Tiny):
        def configure_optimizers(self) -> Optimizer:
            return Recorder(self.parameters(), lr=rate)  # type: ignore[arg-type]

    trainer = fit(tmp_path, InPlace(), WarmupScheduler("constant", warmup=4), max_steps=6)
    assert trainer.optimizers[0].param_groups[0]["lr"] is rate
    assert seen(trainer) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("monitor_first", [True, False])
def test_learning_rate_monitor_logs_the_rate_of_the_step(tmp_path: Path, monitor_first: bool) -> None:
    callbacks: list[Callback] = [WarmupScheduler("cosine", warmup=3), LearningRateMonitor("step")]
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Tiny(), *callbacks[:: -1 if monitor_first else 1], logger=logger)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(12))
    for group, base in (("pg1", 0.1), ("pg2", 0.01)):
        logged = [float(row[f"lr-Recorder/{group}"]) for row in rows]
        assert logged == [base * cosine(step, 12, 3) for step in range(12)]


@pytest.mark.parametrize("at", [3, 6, 8])  # within an epoch, at its end, within the next
@pytest.mark.parametrize("kind", [Tiny, Manual])
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, kind: type[Tiny], at: int) -> None:
    every = at if kind is Tiny else at + (at + 1) // 2  # steps of all optimizers together after `at` batches
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    whole, resumed = kind(), kind()
    first = fit(tmp_path, whole, WarmupScheduler("cosine", warmup=5), keep)
    second = fit(tmp_path, resumed, WarmupScheduler("cosine", warmup=5), resume=tmp_path / f"step={every}.ckpt")

    assert second.global_step == first.global_step
    for optimizer in range(len(first.optimizers)):
        rates = seen(second, optimizer)
        assert 0 < len(rates) < len(seen(first, optimizer))
        assert rates == seen(first, optimizer)[-len(rates) :]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_resumed_run_keeps_its_base_rate(tmp_path: Path) -> None:
    first = fit(tmp_path, Tiny(), WarmupScheduler("linear", total=24))
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = fit(tmp_path, Tiny(), WarmupScheduler("linear"), resume=tmp_path / "half.ckpt", max_epochs=4)
    assert seen(first) + seen(second) == [0.1 * linear(step, 24) for step in range(24)]


def test_checkpoint_made_without_the_callback_goes_on_at_its_step(tmp_path: Path) -> None:
    fit(tmp_path, Tiny(), max_epochs=1).save_checkpoint(tmp_path / "plain.ckpt")
    trainer = fit(tmp_path, Tiny(), WarmupScheduler("linear"), resume=tmp_path / "plain.ckpt")
    assert seen(trainer) == [0.1 * linear(step, 12) for step in range(6, 12)]


def test_callback_serves_a_second_run_afresh(tmp_path: Path) -> None:
    scheduler = WarmupScheduler("linear", warmup=2)
    first, second = fit(tmp_path, Tiny(), scheduler), fit(tmp_path, Tiny(), scheduler, max_epochs=1)
    assert seen(second) == [0.1 * linear(step, 6, 2) for step in range(6)]
    left = first.optimizers[0].param_groups[0]
    before = dict(left)
    first.optimizers[0].step()  # after its run nobody touches the optimizer
    assert left == before


def test_callback_lets_go_after_a_failed_run(tmp_path: Path) -> None:
    class Fails(Tiny):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            if batch_idx == 2:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    scheduler = WarmupScheduler("linear")
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path, Fails(), scheduler)
    assert not scheduler._hooks
    assert seen(fit(tmp_path, Tiny(), scheduler)) == [0.1 * linear(step, 12) for step in range(12)]


class OwnScheduler(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class NoOptimizer(Tiny):
    def configure_optimizers(self) -> None:
        return None


@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (OwnScheduler, [WarmupScheduler()], "OwnScheduler.configure_optimizers returns a learning-rate scheduler"),
        (Tiny, [WarmupScheduler(), WarmupScheduler()], "more than one WarmupScheduler"),
        (Tiny, [WarmupScheduler(), StochasticWeightAveraging(0.05)], "and StochasticWeightAveraging, and both would"),
        (NoOptimizer, [WarmupScheduler()], "has no learning rate"),
    ],
    ids=["scheduler", "twice", "swa", "no-optimizer"],
)
def test_runs_it_cannot_serve(tmp_path: Path, module: type[Tiny], callbacks: list[Callback], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, module(), *callbacks)


@pytest.mark.parametrize(
    ("data", "epochs"), [(range(BATCHES), -1), (Endless(), -1), (Endless(), 2)], ids=["epochs", "both", "data"]
)
@pytest.mark.parametrize("settings", [{}, {"schedule": "linear"}, {"schedule": "constant", "warmup": 0.5}], ids=str)
def test_endless_run_needs_a_total(tmp_path: Path, data: Any, epochs: int, settings: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match="set `total` of WarmupScheduler"):
        fit(tmp_path, Tiny(), WarmupScheduler(**settings), data=data, max_epochs=epochs)


@pytest.mark.parametrize(
    ("scheduler", "factor"),
    [
        (WarmupScheduler(total=5), partial(cosine, total=5)),
        (WarmupScheduler("constant", 0.5, total=8), partial(constant, warmup=4)),
        (WarmupScheduler("inverse_sqrt", 2), partial(inverse_sqrt, warmup=2)),
    ],
    ids=["total", "share-of-total", "no-total-needed"],
)
def test_endless_run_that_can_do(tmp_path: Path, scheduler: WarmupScheduler, factor: Any) -> None:
    trainer = fit(tmp_path, Tiny(), scheduler, StopAfter(7), data=Endless(), max_epochs=-1)
    assert seen(trainer) == [0.1 * factor(step) for step in range(7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "sine"}, "schedule='sine': expected one of constant, linear, cosine, inverse_sqrt, noam"),
        ({"warmup": -1}, "warmup=-1"),
        ({"warmup": -0.1}, "warmup=-0.1"),
        ({"warmup": 1.5}, "from 0.0 to 1.0"),
        ({"warmup": float("nan")}, "warmup=nan"),
        ({"total": 0}, "total=0"),
        ({"floor": -0.1}, "floor=-0.1"),
        ({"floor": 1.1}, "floor=1.1"),
        ({"schedule": "noam"}, "d_model=None: noam needs"),
        ({"schedule": "noam", "d_model": 0}, "d_model=0"),
        ({"factor": 0.0}, "factor=0.0"),
        ({"factor": float("inf")}, "factor=inf"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        WarmupScheduler(**settings)


@pytest.mark.parametrize(("typed", "warmup"), [("1", 1), ("1.0", 1.0), ("0.1", 0.1), ("4000", 4000)])
def test_command_line_tells_steps_from_shares(typed: str, warmup: int | float) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(WarmupScheduler)
    parsed = parser.parse_args(["--warmup", typed]).warmup
    assert parsed == warmup
    assert type(parsed) is type(warmup)
