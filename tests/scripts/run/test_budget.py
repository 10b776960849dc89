"""scripts/run/budget.py: what fits into a budget, and a run whose settled length stands in its config."""

from types import SimpleNamespace

import pytest
import yaml
from conftest import answer, assert_fails, works
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from callbacks.curves import read_metrics
from callbacks.schedules import noam
from scripts.cli.mistakes import UsageError
from scripts.run.budget import (
    MOST_VALIDATIONS,
    VALIDATION,
    Settled,
    Speed,
    Stopwatch,
    parse_budget,
    plan,
    shorten_warmup,
)

SECONDS = st.floats(1e-4, 5.0)


@given(st.builds(Speed, SECONDS, SECONDS, SECONDS, st.floats(1e-4, 1.0)), st.floats(1.0, 1e4))
def test_the_plan_fits_and_uses_what_it_has(speed, seconds):
    try:
        found = plan(speed, seconds)
    except UsageError:
        assert seconds - min(0.02 * seconds, 5) < speed.setup + speed.validation + 2 * speed.step
        return
    validations = found.steps // found.interval
    assert found.steps == validations * found.interval > 0
    assert validations <= MOST_VALIDATIONS
    assert (validations - 1) * speed.validation <= VALIDATION * seconds + 1e-9
    saving = found.steps * speed.step / 10 * speed.save
    # where there are several, one more for the pictures of the best
    last = speed.validation + (validations - (validations == 1)) * (speed.validation + speed.save)
    spent = speed.setup + found.steps * speed.step + saving + last
    assert spent <= seconds + 1e-6
    unused = validations * speed.step * (1 + speed.save / 10)  # steps are a multiple of the validations
    reserved = min(0.02 * seconds, 5)
    assert spent >= seconds - reserved - unused - speed.step * 2 - VALIDATION * seconds - speed.validation - speed.save


@given(st.integers(0, 30), st.integers(0, 59), st.integers(0, 59))
def test_times(hours, minutes, seconds):
    text = f"{hours}h{minutes}m{seconds}s"
    if total := hours * 3600 + minutes * 60 + seconds:
        assert parse_budget(text) == total
    else:
        with pytest.raises(UsageError, match="expected a time"):
            parse_budget(text)


@pytest.mark.parametrize("text", ["", "12", "1d", "m", "-3m", "1m1h", "1.2.3s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="expected a time such as"):
        parse_budget(text)


def test_a_warm_up_in_steps_is_cut_and_noam_keeps_its_peak():
    options = {"schedule": "noam", "warmup": 4000, "d_model": 64, "factor": 2.0}
    share = {"warmup": 0.05}
    shorten_warmup(Namespace(trainer=Namespace(callbacks=[{"init_args": options}, {"init_args": share}])), 1000)
    assert (options["warmup"], share["warmup"]) == (100, 0.05)
    peak = noam(99, 64, 100, options["factor"])
    assert peak == pytest.approx(noam(3999, 64, 4000, 2.0))


class Counted(BoringModel):
    judged = 0

    def validation_step(self, batch, batch_idx):
        self.judged += 1

    def val_dataloader(self):
        return DataLoader(RandomDataset(32, 5))


@pytest.mark.parametrize(("seconds", "batches"), [(0.0, 1), (60.0, 5)])
def test_a_long_validation_is_cut_and_reckoned(seconds, batches, monkeypatch, tmp_path):
    clock = iter(float(number) for number in range(1000))  # each look takes a second
    monkeypatch.setattr("scripts.run.budget.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    watch, module = Stopwatch(seconds), Counted()
    Trainer(
        callbacks=[watch], accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, max_steps=4, limit_train_batches=4, default_root_dir=tmp_path,
        enable_checkpointing=False,
    ).fit(module)  # fmt: skip
    assert module.judged == batches
    # a look at each batch but the last, and one at the end
    assert watch.measured().validation == {1: 2 * 5, 5: 5}[batches]


def test_a_run_within_a_budget_is_a_function_of_its_steps(experiment, sample, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
    monkeypatch.setattr("scripts.run.budget.plan", lambda speed, seconds: measured.append(speed) or Settled(40, 10))
    run = tmp_path / "run"
    said = works("fit", "--config", experiment, "--data.root", sample, "--run_dir", run, "--budget", "9s")
    assert "budget      9 s, used" in said.out
    assert all(part > 0 for part in measured[0])
    trainer = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert (trainer["max_steps"], trainer["val_check_interval"]) == (40, 10)
    curve = read_metrics(run / "metrics.csv")["val/mse"]
    assert [step for step, _ in curve] == [9, 19, 29, 39]
    assert curve[-1][1] < curve[0][1], "it learned"


def test_a_length_of_ones_own_and_a_budget_exclude_each_other(experiment, sample):
    said = answer("fit", "--config", experiment, "--data.root", sample, "--budget", "1m", "--trainer.max_steps=5")
    assert said.code == 2
    assert "--trainer.max_steps" in said.err


def fit(config, sample, tmp_path):
    return ["fit", "--config", config, "--data.root", sample, "--run_dir", tmp_path / "run"]


def test_a_fast_dev_run_needs_no_plan(experiment, sample, tmp_path):
    works(*fit(experiment, sample, tmp_path), "--budget", "9s", "--trainer.fast_dev_run", "1")
    assert not (tmp_path / "run").exists()


def test_a_trial_that_ends_untimed_is_one_line(experiment, sample, tmp_path):
    line = fit(experiment, sample, tmp_path)
    assert_fails(tmp_path, *line, "--budget", "9s", "--trainer.max_time", "00:00:00:00", says=["--budget", "max_time"])


@pytest.mark.parametrize("subcommand", ["fit", "kfold"])
def test_a_config_holds_no_budget(subcommand, experiment, sample, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(experiment.read_text() + "budget: 12m\n")
    assert_fails(tmp_path, subcommand, *fit(mine, sample, tmp_path)[1:], says=["budget: belongs on the command line"])


def test_folds_share_a_budget(experiment, sample, tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
    monkeypatch.setattr("scripts.run.budget.plan", lambda speed, seconds: left.append(seconds) or Settled(6, 3))
    run = tmp_path / "run"
    words = ("kfold", "--config", experiment, "--data.root", sample, "--one_by_one", "--folds", "2")
    works(*words, "--run_dir", run, "--budget", "20h")
    assert 9.9 * 3600 < left[0] < 10 * 3600
    for fold in ("fold_0", "fold_1"):
        assert yaml.safe_load((run / fold / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert_fails(tmp_path, *words, "--run_dir", run, "--budget", "20h", says=["--budget 20h", "settled already"])
