"""leeml bench steps: what it prints follows from what it timed and counted."""

import re
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from scripts.benches import steps
from scripts.cli.mistakes import UsageError

CONFIG = "configs/hw2_phoneme/simple_2022.yaml"
FLAGS = "--accelerator cpu --precision 32-true --eager --threads 1 --repeats 2 --steps 10"
PRODUCTS = [(39, 256), (256, 256), (256, 41)]
FLOPS = 2 * 512 * (3 * sum(a * b for a, b in PRODUCTS) - 39 * 256)  # nobody asks for the gradient of the input


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[float | None], str]:
    """What the benchmark prints on a device of such a peak, where a turn of ten steps takes one second."""
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=count().__next__))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def text(peak: float | None) -> str:
        monkeypatch.setattr(steps, "peak", lambda device, dtype: (peak, "a peak"))
        assert steps.main([CONFIG, *FLAGS.split()]) == 0
        return capsys.readouterr().out

    return text


def test_samples_and_share_of_the_peak_follow_from_time_and_operations(printed: Callable[[float | None], str]) -> None:
    text = printed(1e10)
    cells = re.search(r"hw2_phoneme/simple_2022 +([\d.]+) +([\d,]+) +([\d.]+) +([\d.]+)%", text)
    assert cells, text
    assert cells.groups() == ("100.0", "5,120", f"{FLOPS / 1e9:.1f}", f"{FLOPS * 10 / 1e10:.1%}"[:-1])


def test_a_card_of_unknown_peak_has_no_share(printed: Callable[[float | None], str]) -> None:
    text = printed(None)
    assert "a peak, so there is none" in text
    assert re.search(r"simple_2022 .* \? +512 windows", text), text


def test_what_it_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for line, says in {
        "--accelerator gpu": "no GPU that torch can use",
        "--steps 0": "--steps 0: expected at least 1",
    }.items():
        with pytest.raises(UsageError, match=says):
            steps.main(line.split())
    with pytest.raises(UsageError, match=r"self_critical.yaml: rewards are of real sentences"):
        steps.main(["configs/hw5_translation/self_critical.yaml", *FLAGS.split()])


def test_the_peak_of_a_cpu_is_measured() -> None:
    rate, words = steps.peak(torch.device("cpu"), torch.float32)
    assert rate is not None
    assert rate > 1e8
    assert "just measured" in words
