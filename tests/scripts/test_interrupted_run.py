"""A run that is ended from outside says so by its exit code, keeps its state, and goes on exactly."""

import signal

import pytest
import torch
from conftest import answer, works

from modules.hw1_covid import CovidRegressor


@pytest.fixture
def at_step(monkeypatch):
    """Lets a function run within one training step, counted over the whole run from 0."""

    def arrange(number, action):
        step = CovidRegressor.training_step

        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == number:
                action()
            return step(self, batch, batch_idx)

        monkeypatch.setattr(CovidRegressor, "training_step", training_step)

    return arrange


def fit(experiment, sample, path, *more):
    return answer("fit", "--config", experiment, "--data.root", sample, "--run_dir", path, *more)


def weights(path):
    return torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(path, other):
    for (name, a), b in zip(weights(path).items(), weights(other).values(), strict=True):
        assert torch.equal(a, b), name
    assert (path / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


# of 8 steps, 4 an epoch: in the first epoch, its last step, in the last epoch
@pytest.mark.parametrize("step", [1, 3, 6])
def test_sigterm_saves_and_the_run_goes_on_exactly(at_step, experiment, sample, trained, tmp_path, step):
    path = tmp_path / "run"
    at_step(step, lambda: signal.raise_signal(signal.SIGTERM))
    said = fit(experiment, sample, path)
    assert said.code == 143
    assert f"go on with: leeml fit --run_dir {path} --resume" in said.err
    assert torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step + 1
    works("fit", "--run_dir", path, "--resume")
    assert_same_run(path, trained)
