"""Schedules: how a factor (of the learning rate) or a probability (of teacher forcing) changes with the step.

Pure functions of `step`, the number of optimizer steps already done, for every integer step >= 0. Papers count
updates from one, so the update that follows uses s = step + 1: a warm-up of w steps gives 1/w, 2/w ... 1 and the
first update is never wasted on a rate of 0. A warm-up of 0 and one of 1 are the same: start at the peak.

Where there is a `total`, the last update (step = total - 1) has the end value `floor`, and so has every later one.
A warm-up longer than the run is not squeezed: it is walked as asked, and `floor` follows its peak.
No schedule is ever negative, and none rises again after its warm-up.
"""

import math


def _ramp(step: int, warmup: int) -> float:
    """1/warmup ... 1, then 1."""
    return min(1.0, (step + 1) / max(warmup, 1))


def _progress(step: int, total: int, warmup: int) -> float:
    """Share of the way from the peak (0, also during the warm-up) to the end of the run (1, also after it)."""
    peak = max(warmup, 1)
    return min(1.0, max(0, step + 1 - peak) / max(1, total - peak))


def constant(step: int, warmup: int = 0) -> float:
    """Linear warm-up, then 1."""
    return _ramp(step, warmup)


def linear(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Linear warm-up to 1, then a straight line down to `floor`."""
    return _ramp(step, warmup) * (floor + (1 - floor) * (1 - _progress(step, total, warmup)))


def cosine(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Linear warm-up to 1, then half a cosine wave down to `floor` (Loshchilov & Hutter 2017, eq. 5, no restart)."""
    return _ramp(step, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, total, warmup))))


def inverse_sqrt(step: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Linear warm-up to 1, then sqrt(warmup / s), at least `floor`: the shape of Noam with its peak at 1."""
    peak = max(warmup, 1)
    return _ramp(step, warmup) * max(floor, math.sqrt(peak / max(step + 1, peak)))


def noam(step: int, d_model: int, warmup: int = 4000, factor: float = 1.0) -> float:
    """factor * d_model^-0.5 * min(s^-0.5, s * warmup^-1.5) (Vaswani et al. 2017, eq. 3; the course: factor 2)."""
    s = step + 1
    return factor * d_model**-0.5 * min(s**-0.5, s * max(warmup, 1) ** -1.5)


def exponential(step: int, k: float, floor: float = 0.0) -> float:
    """k^i, at least `floor`, with 0 < k < 1 and i = step (scheduled sampling, Bengio et al. 2015, section 2.4)."""
    return max(floor, k**step)


def inverse_sigmoid(step: int, k: float, floor: float = 0.0) -> float:
    """k / (k + exp(i / k)), at least `floor`, with k >= 1 and i = step (Bengio et al. 2015, section 2.4).

    It starts at k / (k + 1) and falls to a half at i = k ln k.
    """
    return max(floor, k / (k + math.exp(min(step / k, 700.0))))  # exp overflows beyond 709
