"""scripts/bench.py: flags of a homework come from its benchmark, and reach the function that is named after them."""

import pytest

from scripts import bench
from scripts.benches import hw1_covid, hw4_speaker, hw5_translation
from scripts.cli.mistakes import UsageError


@pytest.fixture
def called(monkeypatch):
    """Names of the parts that ran, with what they got."""
    found = {}
    for module in (hw1_covid, hw4_speaker):
        monkeypatch.setattr(module, "speed", lambda root, repeats: found.update(speed=(root, repeats)))
    monkeypatch.setattr(hw1_covid, "accuracy", lambda root, levels: found.update(accuracy=(levels,)))
    monkeypatch.setattr(hw4_speaker, "accuracy", lambda root, levels, steps: found.update(accuracy=(levels, steps)))
    monkeypatch.setattr(hw5_translation, "decoding", lambda runs, trust: found.update(decoding=(runs, trust)))
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hw1_covid --repeats 3", {"speed": (None, 3), "accuracy": (["boss"],)}),
        ("hw4_speaker --only accuracy --levels simple strong", {"accuracy": (["simple", "strong"], hw4_speaker.STEPS)}),
        ("hw4_speaker --steps 7 --only accuracy", {"accuracy": (["boss"], 7)}),
        ("--only speed hw1_covid", {"speed": (None, 5)}),
    ],
)
def test_each_part_gets_the_flags_that_it_names(line, expected, called):
    assert bench.main(["bench", *line.split()]) == 0
    assert called == expected


def test_decoding_is_a_part_of_hw5_alone(called):
    assert bench.main(["bench", "hw5_translation", "--decoding", "a", "b", "--trust"]) == 0
    assert {part: ([str(run) for run in runs], trust) for part, (runs, trust) in called.items()} == {
        "decoding": (["a", "b"], True)
    }


def test_a_budget_gets_its_precision(called, monkeypatch):
    monkeypatch.setattr(bench, "compare", lambda module, data, *rest: called.update(rest=rest, data=data))
    line = "hw1_covid --budget 5m --data.edition 2022 --precision auto --levels strong"
    assert bench.main(["bench", *line.split()]) == 0
    assert called == {"rest": (["strong"], "5m", "auto"), "data": {"--data.root": None, "--data.edition": "2022"}}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hw1_covid --steps 5", "unrecognized arguments: --steps 5"),
        ("hw1_covid --decoding runs", "unrecognized arguments: --decoding"),
        ("hw1_covd", r"no benchmark of 'hw1_covd' \(did you mean hw1_covid\?\)"),
        ("hw1_covid --threads 0", "--threads 0: expected at least 1"),
        ("hw1_covid --budget 5m --precision half", "--precision: invalid choice: 'half'"),
    ],
)
def test_mistakes_are_said_in_one_line(line, says, called):
    with pytest.raises(UsageError, match=says) as error:
        bench.main(["bench", *line.split()])
    assert "\n" not in str(error.value)
    assert not called
