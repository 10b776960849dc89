"""callbacks/progress.py: one line that fits 80 columns, for every stage, and a clean end after a stop."""

import contextlib
import io
import os
import re
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Callback

from callbacks.progress import describe_net
from modules.hw1_covid import CovidRegressor
from scripts.leeml import main
from scripts.studies.lab.machine import remaining


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """What is drawn on stderr as on a terminal of 200 columns, at every step."""
    screen = Terminal()
    monkeypatch.setattr(
        "callbacks.progress.shutil.get_terminal_size", lambda *size, **options: os.terminal_size((200, 50))
    )
    monkeypatch.setattr("callbacks.progress.RunProgress.INTERVAL", 0.0)
    return screen


def run_on(screen, *args):
    with contextlib.redirect_stderr(screen):
        return main([*args])


def drawn(screen):
    """Every state of every line, without what moves the cursor."""
    return [state for state in re.split(r"[\r\n]", re.sub(r"\x1b\[\w+", "", screen.getvalue())) if state.strip()]


@pytest.fixture
def fit(sample, experiment, tmp_path):
    return ["fit", "--config", str(experiment), "--data.root", str(sample), "--run_dir", str(tmp_path / "run")]


@pytest.mark.parametrize(("subcommand", "says"), [("fit", True), ("translate", False), ("runs", False)])
def test_a_slow_start_is_said_where_stderr_is_a_file_too(monkeypatch, capsys, subcommand, says):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("scripts.leeml.importlib.import_module", lambda name: SimpleNamespace(main=lambda args: 0))
    assert main([subcommand]) == 0
    said = capsys.readouterr()
    assert said.err == (f"leeml {subcommand}: loading PyTorch ...\n" if says else "")
    assert said.out == ""


def test_a_fit_draws_one_line_that_fits(terminal, fit, tmp_path):
    assert run_on(terminal, *fit) == 0
    states = drawn(terminal)
    bars = [state for state in states if "%|" in state]
    assert max(map(len, bars)) <= 79
    assert {state.split()[0] for state in bars} == {"training", "validating"}
    assert re.search(r"training 100%\|[█#]+\| (\d+)/\1 \[\S+<00:00\], epoch 2 loss \S+ mse \S+", bars[-1])
    assert sum("parameters" in state for state in states) == 1
    assert not any("TPU" in state or "MetricCollection" in state for state in states)
    for stage, verb in (("testing", "test"), ("predicting", "predict")):
        terminal.truncate(0)
        assert run_on(terminal, verb, *fit[3:]) == 0
        bars = [state for state in drawn(terminal) if "%|" in state]
        assert bars[-1].startswith(f"{stage} 100%|")
        assert max(map(len, bars)) <= 79


class Stop(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_a_stopped_fit_leaves_clean_lines(terminal, fit, monkeypatch):
    monkeypatch.setattr("callbacks.samples.Samples.on_train_batch_end", Stop.on_train_batch_end, raising=False)
    assert run_on(terminal, *fit) == 130
    lines = [line for line in terminal.getvalue().split("\n") if line]
    assert lines[-1] == "leeml: stopped"
    assert lines[-2].startswith("leeml: ")
    assert "%|" in lines[-3].rsplit("\r", 1)[-1]
    assert not any("graceful" in line for line in lines)


def test_the_line_about_the_network_counts_its_parameters():
    module = CovidRegressor()
    assert describe_net(module) == "CovidRegressor: 0 parameters", "its network is built by the data's facts"


def test_the_time_that_studies_take_is_told_once_each_was_measured():
    known = {"slow": [100.0], "quick": [2.0, 4.0]}
    assert remaining(["slow", "slow", "quick"], known, 2) == "about 01:41 left"  # (100 + 100 + 3) / 2
    assert remaining(["slow"], known, 2) == "about 01:40 left", "one seed does not run on two cores"
    assert remaining(["slow", "new"], known | {"new": []}, 2) == "time left not known yet"
    assert remaining([], known, 2) == ""


def test_a_file_gets_a_line_a_tenth_with_time_and_loss_from_the_first_epoch_on(fit, monkeypatch, capsys):
    monkeypatch.setattr("callbacks.progress.RunProgress.INTERVAL", 0.0)
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r" *\d+ %  ", line)]
    assert len(lines) > 2
    assert all(re.fullmatch(r" *\d+ %  \[\S+<\S+\]  epoch [01] loss \S+.*", line) for line in lines), lines
