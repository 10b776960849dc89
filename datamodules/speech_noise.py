"""White noise added to log-mel features, as if it had been there in the recording."""

import numpy as np

from datamodules.audio import FLOOR, mel_bands


def add_noise(x: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Log-mel frames (T, 40) with noise at a signal-to-noise ratio in decibels, of the powers summed over all bands.

    Powers of independent signals add on average. White noise reaches a band in proportion to the area of its filter,
    and its power there varies as the sum of so many independent squares does: Gamma distributed (Hann windows make
    neighbouring frequencies alike, which is neglected).
    """
    bands = mel_bands()
    area = bands.sum(0)
    shape = area**2 / (bands**2).sum(0)  # how many frequencies share a band
    power = np.exp(x.astype(np.float64))
    level = power.sum(1).mean() / area.sum() * 10 ** (-snr / 10)
    noise = rng.gamma(shape, 1 / shape, x.shape) * area * level
    return np.log(np.maximum(power + noise, FLOOR)).astype(x.dtype)
