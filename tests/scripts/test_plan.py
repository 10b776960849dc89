"""`leeml plan` against what can be counted by hand, and over every config that ships."""

import re

import pytest
import torch
from conftest import answer, works
from torch import nn

from datamodules.files.places import PROJECT as ROOT
from scripts import plan
from scripts.estimates import cards
from scripts.estimates.counting import Operations, grown, one_step, recurrent_stand_in
from scripts.estimates.sizes import workload

CONFIGS = sorted((ROOT / "configs").glob("hw*/*.yaml"))


LARGE = 100  # GFLOP a batch: what the docs say of larger ones is not counted again here, which takes a minute


def rows_of(lines):
    """Cells of a table, by config."""
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| hw\d_\w+/", line))
    return {name: rest for name, *rest in cells if len(rest) == 6}


@pytest.fixture(scope="module")
def rows():
    """What docs/plan.md holds of `leeml plan --table`."""
    return rows_of((ROOT / "docs/plan.md").read_text("utf-8").splitlines())


def test_the_docs_say_what_the_command_counts(rows, tmp_path, monkeypatch):
    for path in CONFIGS:
        if float(rows[f"{path.parent.name}/{path.stem}"][4]) < LARGE:
            kept = tmp_path / "configs" / path.parent.name / path.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.symlink_to(path)
    monkeypatch.setattr(plan, "PROJECT", tmp_path)
    found = rows_of(works("plan", "--table").out.splitlines())
    assert {name.split("/")[0] for name in found} == {path.parent.name for path in CONFIGS}
    for name, (edition, parameters, memory, steps, flops, hours) in found.items():
        assert [name, edition, parameters, steps] == [name, *rows[name][:2], rows[name][3]]
        assert float(memory) == pytest.approx(float(rows[name][2]), abs=0.15), name  # random masks
        assert float(flops) == pytest.approx(float(rows[name][4]), rel=0.1), name
        assert float(hours) < 12, name  # with this machine's loader


def test_every_config_has_its_row_and_every_network_fits_a_t4(rows):
    assert list(rows) == [f"{path.parent.name}/{path.stem}" for path in CONFIGS]
    for name, (_, parameters, memory, steps, flops, hours) in rows.items():
        assert int(parameters.replace(",", "")) > 1000, name
        assert int(steps.replace(",", "")) > 100, name
        assert float(flops) > 0, name
        assert 0 < float(hours) < 12, name
        assert 1 <= float(memory) < 16, name


def test_parameters_and_steps_are_those_that_the_course_published(rows):
    assert rows["hw2_phoneme/simple_2022"][1] == "86,569"
    assert rows["hw3_food/simple"][1] == "12,833,803"
    assert rows["hw4_speaker/simple"][1] == "125,896"
    assert rows["hw4_speaker/simple"][3] == "70,000"


def test_arithmetic_of_a_perceptron_is_counted_exactly():
    settled = plan.read(["configs/hw2_phoneme/simple_2022.yaml"])
    found = plan.estimate("simple", settled, cards.GPUS["t4"], "2022")
    layers = [(39, 256), (256, 256), (256, 41)]
    forward = [2 * 512 * a * b for a, b in layers]
    assert found.flops == 3 * sum(forward) - forward[0]  # nobody asks for the gradient of the input
    assert found.steps == 5 * -(-round(2_644_158 * 0.8) // 512)
    assert found.memory["gradients"] == 4 * 86_569
    assert found.memory["weights"] == 4 * (86_569 + 41**2)  # and how often one class follows another


@pytest.mark.parametrize("config", ["hw4_speaker/medium", "hw5_translation/tiny", "hw3_food/simple"])
def test_two_small_batches_tell_what_a_larger_one_does(config):
    settled = plan.read([f"configs/{config}.yaml"])
    load = workload(settled.data, "2022")
    settled.model.expect(load.facts)
    settled.model.configure_model()
    two, four, seven = (one_step(settled.model, load.batch(n), mixed=True, clip=1.0) for n in (2, 4, 7))
    told = grown(two, four, (2, 4), 7)
    for part in ("forward", "backward", "update"):
        for a, b in zip(getattr(told, part), getattr(seven, part), strict=True):
            assert a.name == b.name
            assert (a.flops, a.traffic) == pytest.approx((b.flops, b.traffic))
    assert told.saved == pytest.approx(seven.saved, rel=1e-3)


def test_a_step_without_the_update_makes_no_state_of_the_optimizer():
    settled = plan.read(["configs/hw2_phoneme/simple_2022.yaml"])
    load = workload(settled.data, "2022")
    settled.model.expect(load.facts)
    settled.model.configure_model()
    without, full = (one_step(settled.model, load.batch(2), True, None, update) for update in (False, True))
    assert (without.update, without.lasting["optimizer"]) == ([], 0)
    assert full.update
    assert full.lasting["optimizer"] == pytest.approx(2 * full.lasting["gradients"], rel=1e-3)
    assert without.backward == full.backward


def test_noise_in_training_is_part_of_the_loading():
    found = [
        workload(plan.read(["configs/hw4_speaker/strong.yaml"], flags).data, "2022").loading
        for flags in ([], ["--data.train_snr", "null"])
    ]
    assert found[0] > 0 == found[1]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_recurrent_layer_is_counted_with_all_its_products(kind, gates):
    layer = kind(5, 8, 2, batch_first=True, bidirectional=True)
    x, steps = torch.randn(3, 7, 5), []
    with Operations() as seen, torch.no_grad():
        out, hidden = recurrent_stand_in(layer, steps, x)
    expected = sum(2 * 2 * 3 * 7 * gates * 8 * (width + 8) for width in (5, 16))  # two directions of two layers
    assert sum(operation.flops for operation in seen.seen) == expected
    assert steps == [7] * 4
    true_out, true_hidden = layer(x)
    assert out.shape == true_out.shape
    assert [h.shape for h in hidden] == [h.shape for h in true_hidden]


def test_flags_change_the_estimate_and_the_card_its_hours():
    def said(*more):
        out = works("plan", "--config", "configs/hw4_speaker/simple.yaml", *more).out
        return {line.split(None, 1)[0]: line.split(None, 1)[1] for line in out.splitlines()}

    usual, longer = said(), said("--data.segment", 1024, "--trainer.max_steps", 100, "--edition", "2021")
    assert longer["steps"] == "100"
    assert "1024 frames" in longer["batch"]
    assert "2021" in longer["config"]
    number = re.compile(r"[\d.,]+")
    before, after = (float(number.search(text["arithmetic"])[0].replace(",", "")) for text in (usual, longer))
    assert after > 8 * before  # attention grows faster than the frames
    assert "this CPU" in said("--card", "cpu")["hours"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--table"),
        (["--table", "--model.dropout", "0.1"], "--table"),
        (["--config", "configs/hw1_covid/bos.yaml"], "did you mean"),
        (["--config", "configs/hw1_covid/boss.yaml", "--card", "t5"], "t5"),
        (["--config", "configs/hw1_covid/boss.yaml", "--model.droput", "0.1"], "droput"),
    ],
)
def test_mistakes_are_one_line(flags, words):
    found = answer("plan", *flags)
    assert found.code == 2
    assert words in found.err
    assert found.err.count("\n") == 1
