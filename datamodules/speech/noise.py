"""White noise added to log-mel features, as if it had been there in the recording."""

from functools import cache

import numpy as np

from datamodules.speech.audio import FLOOR, mel_bands


@cache
def _white() -> tuple[np.ndarray, np.ndarray]:
    """Of white noise in each band: its share of power, and how many independent frequencies it is the sum of, (40,)."""
    bands = mel_bands().astype(np.float64)
    area = bands.sum(0)
    # a Hann window makes amplitudes one and two frequencies apart correlate by 2/3 and 1/6, powers by the squares
    variance = (bands**2).sum(0)
    for apart, correlation in ((1, 4 / 9), (2, 1 / 36)):
        variance += 2 * correlation * (bands[apart:] * bands[:-apart]).sum(0)
    return area / area.sum(), area**2 / variance


def add_noise(x: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Log-mel frames (T, 40) with noise at a signal-to-noise ratio in decibels, of the powers summed over all bands.

    Powers of independent signals add on average. White noise reaches a band in proportion to the area of its filter,
    and its power there varies as the sum of so many independent squares does: Gamma distributed. That neighbouring
    bands and frames share some of their noise is neglected.
    """
    share, shape = _white()
    power = np.exp(x.astype(np.float64))
    level = power.sum(1).mean() * 10 ** (-snr / 10)
    noise = rng.gamma(shape, 1 / shape, x.shape) * share * level
    return np.log(np.maximum(power + noise, FLOOR)).astype(x.dtype)
