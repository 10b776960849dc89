"""What a run takes of the devices at hand, and the one folder of several processes."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import base
from datamodules.hw3_food import FoodData
from datamodules.hw4_speaker import SpeakerData
from datamodules.hw5_translation import TranslationData
from scripts.run import device
from scripts.run.device import settle_device
from scripts.run.folder import RunFolder, agreed
from scripts.train import LeemlCLI


def settings(**changes: Any) -> Namespace:
    """Of a trainer, as the parser gives them."""
    given = {"accelerator": "auto", "precision": "auto", "strategy": "auto", "gradient_clip_val": None}
    return Namespace(**given | {"gradient_clip_algorithm": None, "sync_batchnorm": False} | changes)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of capability 7.5, a T4, as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (7, 5))


@pytest.mark.parametrize(
    ("capability", "precision"), [((6, 0), "16-mixed"), ((7, 5), "16-mixed"), ((8, 0), "bf16-mixed")]
)
def test_precision_auto_is_what_the_card_has(
    card: None, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: capability)
    before = torch.get_float32_matmul_precision()
    try:
        trainer = settings()
        settle_device(trainer)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert (trainer.precision, trainer.sync_batchnorm) == (precision, True)


def test_a_cpu_beside_a_card_stays_exact(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.run.device._faster_in_bf16", lambda: False)
    trainer = settings(accelerator="cpu")
    settle_device(trainer)
    assert (trainer.precision, trainer.sync_batchnorm) == ("32-true", False)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("faster", [False, True])
def test_a_cpu_takes_bf16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    monkeypatch.setattr("scripts.run.device._faster_in_bf16", lambda: faster)
    trainer = settings(accelerator="cpu")
    settle_device(trainer)
    assert trainer.precision == ("bf16-mixed" if faster else "32-true")


@pytest.mark.parametrize(("plain", "faster"), [(0.5, False), (1.0, False), (1.2, False), (1.4, True)])
def test_bf16_is_taken_where_the_trial_gains_enough(
    monkeypatch: pytest.MonkeyPatch, plain: float, faster: bool
) -> None:
    """By a clock on which a step takes 1 in bf16 and `plain` otherwise, and a moment of both is slow."""
    now = [0.0]

    @contextmanager
    def autocast(kind: str, dtype: torch.dtype, enabled: bool) -> Iterator[None]:
        now[0] += (1.0 if enabled else plain) + 50 * (now[0] < 1)
        yield

    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(torch, "autocast", autocast)
    assert device._faster_in_bf16(60) == faster


def test_measuring_bf16_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    assert isinstance(device._faster_in_bf16(0.01), bool)
    assert torch.initial_seed() == 0
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(0))


def test_clipping_that_fsdp_cannot_do_is_refused_before_training() -> None:
    settle_device(settings(precision=None, strategy="fsdp"))
    settle_device(settings(precision=None, strategy="fsdp", gradient_clip_val=1.0, gradient_clip_algorithm="value"))
    with pytest.raises(MisconfigurationException, match="fsdp cannot clip gradients by their norm; use ddp"):
        settle_device(settings(precision=None, strategy="fsdp", gradient_clip_val=1.0))


@pytest.mark.parametrize("subcommand", ["fit", "test", "predict"])
def test_every_subcommand_takes_precision_auto_and_one_device(monkeypatch: pytest.MonkeyPatch, subcommand: str) -> None:
    monkeypatch.setattr("scripts.run.device._faster_in_bf16", lambda: False)
    seen = []

    class Stops(LeemlCLI):
        def instantiate_classes(self) -> None:
            seen.append(self.config[self.subcommand].trainer)

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    model, data = "--model=CovidRegressor", "--data=CovidData"
    Stops(
        [subcommand, model, data, "--trainer.precision=auto", "--trainer.accelerator=cpu"], RunFolder(Path("nowhere"))
    )
    assert seen[0].devices == 1
    assert seen[0].precision == "32-true"


@pytest.mark.parametrize(("cores", "cards", "workers"), [(1, 1, 0), (2, 1, 1), (16, 1, 8), (16, 4, 3), (12, 2, 5)])
def test_workers_are_the_cores_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, cores: int, cards: int, workers: int
) -> None:
    monkeypatch.setattr(base, "cores", lambda: cores)
    for kind in (FoodData, SpeakerData, TranslationData):
        data = kind()
        assert data.loading(data.workers) == {"num_workers": 0, "pin_memory": False}
        strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
        data.trainer = SimpleNamespace(strategy=strategy, num_devices=cards)  # type: ignore[assignment]
        found = data.loading(data.workers)
        assert (found["num_workers"], found["pin_memory"]) == (workers, True)
        assert found.get("persistent_workers", False) == (workers > 0)
        assert data.loading(3)["num_workers"] == 3


def test_processes_of_torchrun_take_the_folder_of_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda rank: agreed(RunFolder(tmp_path / str(rank)), rank, 3).path, range(3)))
    assert found == [tmp_path / "0"] * 3
    assert agreed(RunFolder(tmp_path / "7"), 0, 1).path == tmp_path / "7"
