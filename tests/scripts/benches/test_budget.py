"""The course's loops learn with our networks, and both sides of the comparison are judged on the same rows."""

import importlib
from itertools import count, islice
from types import SimpleNamespace

import pytest
import torch
from conftest import works

from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from scripts.benches import budget
from scripts.plan import read
from scripts.run.budget import Settled

SMALL = {
    "hw1_covid": [],
    "hw2_phoneme": ["--model.net.hidden=[32]"],
    "hw3_food": ["--model.net.channels=[4,4]", "--model.net.hidden=[8]", "--data.image_size=16"],
    "hw4_speaker": ["--model.net.d_model=16", "--model.net.d_ff=16"],
    "hw5_translation": ["--data.vocabulary=400", "--model.net.width=16", "--model.net.hidden=16"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for homework in SMALL:
        works("data", "sample", homework, root)
    return root


@pytest.mark.parametrize("homework", SMALL)
def test_the_course_s_loop_learns_with_our_network(homework, root):
    torch.manual_seed(0)
    config = PROJECT / "configs" / homework / "simple.yaml"
    module, data, _ = read([str(config)], [f"--data.root={root}", *SMALL[homework]])
    data.setup("fit")
    module.expect(data.facts)
    module.configure_model()
    sample = importlib.import_module(f"scripts.benches.{homework}").sample(data, module)
    batch = next(iter(sample.batches))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    first = sample.loss(batch).item()
    for again in islice(budget.endless([batch]), 20):
        optimizer.zero_grad()
        sample.loss(again).backward()
        optimizer.step()
    assert sample.loss(batch).item() < 0.9 * first


def test_both_are_trained_for_as_long_and_judged_on_the_same_rows(root, monkeypatch, capsys):
    clock = count(step=0.125)  # seconds between two looks at it, however fast the machine is: three steps
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
    monkeypatch.setattr("scripts.run.budget.plan", lambda speed, seconds: Settled(60, 20))
    bench = importlib.import_module("scripts.benches.hw1_covid")
    found = budget.compare(bench, {"--data.root": root, "--data.edition": None}, ["strong"], "0.5s", "32-true")
    assert list(found) == ["the course's code", "strong"]
    assert found["the course's code"].steps == 3
    assert found["strong"].steps == 60
    assert found["strong"].score < found["the course's code"].score
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:2] == ["strong", f"{found['strong'].score:.4f}"]


def test_other_rows_are_nothing_to_compare_with(root, monkeypatch):
    one = budget.Result(0.5, 10, 1.0, "these")
    monkeypatch.setattr(budget, "train_sample", lambda *args: one)
    monkeypatch.setattr(budget, "train_level", lambda *args: one._replace(held_out="those"))
    bench = importlib.import_module("scripts.benches.hw4_speaker")
    with pytest.raises(DataError, match="holds out other rows"):
        budget.compare(bench, {}, ["strong"], "1m", "32-true")
