"""ScheduledSampling: the shapes of the paper, by optimizer step, on any module that reads itself."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.scheduled_sampling import ScheduledSampling


@given(st.integers(0, 300), st.integers(0, 50), st.floats(0, 1))
def test_shapes_are_those_of_the_paper(step, begin, floor):
    i = step - begin
    shapes = {
        ("constant", None): floor,
        ("exponential", 0.97): max(floor, 0.97 ** max(i, 0)),
        ("inverse_sigmoid", 20.0): max(floor, 20 / (20 + math.exp(i / 20))),
    }
    for (decay, k), expected in shapes.items():
        found = ScheduledSampling(decay, floor, k=k, begin=begin).probability(step, 0)
        assert math.isclose(found, expected if i >= 0 else 1.0, rel_tol=1e-9)


@given(st.integers(2, 200), st.integers(0, 50), st.floats(0, 1))
def test_a_line_goes_from_one_to_its_floor(total, begin, floor):
    values = [
        ScheduledSampling("linear", floor, begin=begin).probability(s, begin + total) for s in range(begin + total)
    ]
    assert values[:begin] == [1.0] * begin
    assert math.isclose(values[begin], 1.0)
    assert math.isclose(values[-1], floor, abs_tol=1e-12)
    falls = [a - b for a, b in zip(values[begin:], values[begin + 1 :], strict=False)]
    assert all(math.isclose(fall, (1 - floor) / (total - 1), abs_tol=1e-9) for fall in falls)


class Reads:
    teacher_forcing = 1.0

    def log(self, name, value):
        self.logged = (name, value)


def test_it_sets_the_probability_of_the_step_and_leaves_it_at_the_end():
    module, callback = Reads(), ScheduledSampling("exponential", k=0.5)
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=10)
    callback.on_train_start(trainer, module)
    for step, expected in ((0, 1.0), (1, 0.5), (3, 0.125)):
        trainer.global_step = step
        callback.on_train_batch_start(trainer, module, None, 0)
        assert module.teacher_forcing == expected
        assert module.logged == ("teacher_forcing", expected)
    callback.on_train_end(trainer, module)
    assert module.teacher_forcing == 1.0


def test_a_module_that_does_not_read_itself_is_refused():
    with pytest.raises(MisconfigurationException, match="SimpleNamespace has no `teacher_forcing`"):
        ScheduledSampling(k=10).on_train_start(SimpleNamespace(), SimpleNamespace())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "cosine"}, "decay='cosine': expected one of constant"),
        ({"decay": "constant", "floor": 1.5}, "floor=1.5: expected a probability"),
        ({"decay": "linear", "total": 0}, "total=0: expected"),
        ({"decay": "exponential", "k": 1.5}, "k=1.5: exponential decay needs"),
        ({}, "k=None: inverse_sigmoid needs"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        ScheduledSampling(**options)
