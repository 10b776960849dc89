import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.schedules import constant, cosine, exponential, inverse_sigmoid, inverse_sqrt, linear, noam

STEPS = st.integers(0, 10**9)
LENGTHS = st.integers(0, 10**6) | st.integers(0, 5)  # of warm-ups and runs, the small ones often
FLOORS = st.floats(0, 1)
EPS = 1e-12
QUICK = settings(max_examples=60, deadline=None)  # a shared machine may pause anywhere
Factor = Callable[[int], float]

# Each takes (total, warmup, floor) and gives the function of the step.
WARMED: dict[str, Callable[[int, int, float], Factor]] = {
    "constant": lambda total, warmup, floor: partial(constant, warmup=warmup),
    "linear": lambda total, warmup, floor: partial(linear, total=total, warmup=warmup, floor=floor),
    "cosine": lambda total, warmup, floor: partial(cosine, total=total, warmup=warmup, floor=floor),
    "inverse_sqrt": lambda total, warmup, floor: partial(inverse_sqrt, warmup=warmup, floor=floor),
    "noam": lambda total, warmup, floor: partial(noam, d_model=256, warmup=warmup, factor=2.0),
}
DECAYS: dict[str, Callable[[float, float], Factor]] = {
    "exponential": lambda k, floor: partial(exponential, k=1 / k, floor=floor),
    "inverse_sigmoid": lambda k, floor: partial(inverse_sigmoid, k=k, floor=floor),
}

warmed = pytest.mark.parametrize("make", WARMED.values(), ids=WARMED)
ended = pytest.mark.parametrize("make", [WARMED["linear"], WARMED["cosine"]], ids=["linear", "cosine"])
decays = pytest.mark.parametrize("make", DECAYS.values(), ids=DECAYS)


def peak_step(warmup: int) -> int:
    return max(warmup, 1) - 1


@warmed
@QUICK
@given(step=STEPS, total=LENGTHS, warmup=LENGTHS, floor=FLOORS)
def test_finite_and_between_0_and_the_peak(
    make: Callable[[int, int, float], Factor], step: int, total: int, warmup: int, floor: float
) -> None:
    factor = make(total, warmup, floor)
    assert 0 <= factor(step) <= factor(peak_step(warmup)) + EPS < math.inf


@warmed
@QUICK
@given(steps=st.tuples(STEPS, STEPS) | st.tuples(LENGTHS, LENGTHS), total=LENGTHS, warmup=LENGTHS, floor=FLOORS)
def test_rises_in_the_warmup_and_never_after(
    make: Callable[[int, int, float], Factor], steps: tuple[int, int], total: int, warmup: int, floor: float
) -> None:
    factor, peak, (early, late) = make(total, warmup, floor), peak_step(warmup), sorted(steps)
    assert factor(peak + early) >= factor(peak + late) - EPS
    assert factor(min(early, peak)) <= factor(min(late, peak)) + EPS


@warmed
@QUICK
@given(total=LENGTHS, warmup=st.integers(1, 10**6), floor=FLOORS)
def test_warmup_is_a_straight_line_from_one_wth_to_the_peak(
    make: Callable[[int, int, float], Factor], total: int, warmup: int, floor: float
) -> None:
    factor = make(total, warmup, floor)
    peak = factor(warmup - 1)
    assert factor(0) == pytest.approx(peak / warmup)
    assert factor(warmup // 2) == pytest.approx(peak * min(1, (warmup // 2 + 1) / warmup), rel=1 / warmup)
    assert factor(0) > 0


@warmed
@QUICK
@given(total=LENGTHS, warmup=LENGTHS, floor=FLOORS)
def test_continuous_at_the_end_of_the_warmup(
    make: Callable[[int, int, float], Factor], total: int, warmup: int, floor: float
) -> None:
    factor, at = make(total, warmup, floor), peak_step(warmup)
    steepest = math.pi / 2 / max(1, total - at - 1)  # of all shapes with a total: the cosine's at its middle
    own = 0.5 / (at + 1)  # of the inverse square root at its peak
    assert factor(at) - factor(at + 1) <= factor(at) * max(steepest, own) + EPS


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
@QUICK
@given(total=LENGTHS, warmup=LENGTHS, floor=FLOORS)
def test_peak_is_exactly_1(name: str, total: int, warmup: int, floor: float) -> None:
    assert WARMED[name](total, warmup, floor)(peak_step(warmup)) == 1


@ended
@QUICK
@given(after=STEPS, total=LENGTHS, warmup=LENGTHS, floor=FLOORS)
def test_last_update_and_all_later_have_the_end_value(
    make: Callable[[int, int, float], Factor], after: int, total: int, warmup: int, floor: float
) -> None:
    last = max(total - 1, peak_step(warmup) + 1)  # the peak comes first where the warm-up is not shorter than the run
    assert make(total, warmup, floor)(last + after) == floor


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (1, 0, [1, 0, 0]),
        (1, 1, [1, 0, 0]),
        (2, 0, [1, 0, 0]),
        (3, 0, [1, 0.5, 0, 0]),
        (3, 1, [1, 0.5, 0, 0]),
        (4, 2, [0.5, 1, 0.5, 0, 0]),
        (4, 4, [0.25, 0.5, 0.75, 1, 0, 0]),
        (2, 4, [0.25, 0.5, 0.75, 1, 0, 0]),
    ],
)
@ended
def test_edges_by_hand(
    make: Callable[[int, int, float], Factor], total: int, warmup: int, expected: list[float]
) -> None:
    assert [make(total, warmup, 0.0)(step) for step in range(len(expected))] == pytest.approx(expected)


def test_inverse_sqrt_by_hand() -> None:
    factor = partial(inverse_sqrt, warmup=4, floor=0.4)
    assert [factor(step) for step in (0, 1, 3, 15, 24, 99)] == pytest.approx([0.25, 0.5, 1, 0.5, 0.4, 0.4])


def test_cosine_equals_the_courses_hw4_sample() -> None:
    warmup, total = 1000, 70000

    def course(t: int) -> float:  # get_cosine_schedule_with_warmup of the sample, num_cycles 0.5
        if t < warmup:
            return t / max(1, warmup)
        progress = (t - warmup) / max(1, total - warmup)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))

    assert max(abs(cosine(t - 1, total, warmup) - course(t)) for t in range(1, total + 1)) < EPS
    assert course(0) == 0 < cosine(0, total, warmup)  # the sample wastes its first step
    assert course(2 * total) > 0.9 > cosine(2 * total, total, warmup) == 0  # and starts again after its last


@pytest.mark.parametrize(("d_model", "warmup", "factor"), [(512, 4000, 1.0), (256, 4000, 2.0), (80, 1, 1.0)])
def test_noam_equals_equation_3(d_model: int, warmup: int, factor: float) -> None:
    s = torch.arange(1, 20001, dtype=torch.float64)
    eq3 = factor / math.sqrt(d_model) * torch.minimum(1 / torch.sqrt(s), s / math.sqrt(warmup**3))
    ours = torch.tensor([noam(step, d_model, warmup, factor) for step in range(20000)], dtype=torch.float64)
    torch.testing.assert_close(ours, eq3, rtol=1e-12, atol=0)


@QUICK
@given(step=st.integers(0, 10**6), warmup=LENGTHS)
def test_inverse_sqrt_is_noam_with_its_peak_at_1(step: int, warmup: int) -> None:
    peak = noam(peak_step(warmup), 64, warmup)
    assert inverse_sqrt(step, warmup) == pytest.approx(noam(step, 64, warmup) / peak)


def torch_rates(build: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], n: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_cosine_equals_torch(floor: float) -> None:
    reference = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=49, eta_min=floor), 50)
    assert [cosine(step, 50, floor=floor) for step in range(50)] == pytest.approx(reference)


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_linear_equals_torch(floor: float) -> None:
    reference = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, floor, total_iters=49), 60)
    assert [linear(step, 50, floor=floor) for step in range(60)] == pytest.approx(reference)


def test_warmup_equals_torch() -> None:
    reference = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / 8, 1.0, total_iters=7), 20)
    assert [constant(step, warmup=8) for step in range(20)] == pytest.approx(reference)


@decays
@QUICK
@given(steps=st.tuples(STEPS, STEPS) | st.tuples(LENGTHS, LENGTHS), k=st.floats(1.0001, 1e5), floor=FLOORS)
def test_decays_fall_from_at_most_1_to_the_floor(
    make: Callable[[float, float], Factor], steps: tuple[int, int], k: float, floor: float
) -> None:
    factor, (early, late) = make(k, floor), sorted(steps)
    assert 1 >= factor(0) >= factor(early) >= factor(late) - EPS
    assert factor(late) >= floor
    assert factor(10**9) == pytest.approx(floor)


@QUICK
@given(step=st.integers(0, 500), k=st.floats(1, 1000))
def test_decays_equal_bengio_2015(step: int, k: float) -> None:
    assert exponential(step, 1 / k) == pytest.approx(math.exp(-step * math.log(k)))
    sigmoid = 0.5 * (1 + math.tanh((math.log(k) - step / k) / 2))
    assert inverse_sigmoid(step, k) == pytest.approx(sigmoid, abs=EPS)


def test_inverse_sigmoid_is_a_half_at_k_ln_k() -> None:
    k = math.e**5  # k ln k = 742.07
    assert inverse_sigmoid(742, k) == pytest.approx(0.5, abs=1e-3)
    assert inverse_sigmoid(0, k) == k / (k + 1)
