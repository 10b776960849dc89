"""Noise on log-mel features: its power as asked for, its colour as white noise's, and both as noise really added."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.speech.audio import FLOOR, RATE, WINDOW, log_mel
from datamodules.speech.noise import add_noise


def bands_by_definition():
    """Weights (201, 40): triangles between neighbouring corners, which lie evenly in mel from 50 to 8,000 Hz."""
    mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 8000 / 700), 42)
    corners = 700 * (10 ** (mel / 2595) - 1)
    weights = np.zeros((201, 40))
    for band, (low, middle, high) in enumerate(zip(corners[:-2], corners[1:-1], corners[2:], strict=True)):
        for k in range(201):
            f = k * 40
            if low < f <= middle:
                weights[k, band] = (f - low) / (middle - low)
            elif middle < f < high:
                weights[k, band] = (high - f) / (high - middle)
    return weights


BANDS = bands_by_definition()


def speech(seconds=6, seed=0):
    """A voice of harmonics in a slowly moving envelope, with pauses."""
    rng = np.random.default_rng(seed)
    t = np.arange(RATE * seconds) / RATE
    tune = 2 * np.pi * np.cumsum(120 + 15 * np.sin(3 * t)) / RATE
    sound = sum(np.sin(k * tune + rng.uniform(0, 6)) / k for k in range(1, 40))
    return (0.1 * sound * np.sin(2 * t).clip(0)).astype(np.float32)


def power(x):
    return np.exp(x.astype(np.float64))


@settings(max_examples=30)
@given(snr=st.floats(-10, 30), loud=st.floats(-8, 8), seed=st.integers(0, 1000))
def test_the_ratio_is_the_one_asked_for(snr, loud, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(loud, 2, (3000, 40))
    added = power(add_noise(x, snr, np.random.default_rng(seed))) - power(x)
    measured = 10 * np.log10(power(x).sum() / added.sum())
    assert measured == pytest.approx(snr, abs=0.1)


def test_bands_get_noise_by_the_area_of_their_filters():
    assert BANDS.sum(0).min() > 0.5  # every band holds some frequency, else it would get no noise
    x = np.full((20000, 40), -5.0)
    added = power(add_noise(x, 0, np.random.default_rng(0))) - power(x)
    share = added.mean(0) / added.mean(0).sum()
    np.testing.assert_allclose(share, BANDS.sum(0) / BANDS.sum(), rtol=0.03)


def test_noise_on_features_is_as_noise_in_the_recording():
    """Band by band: means of log-mel within 0.1, the power of all within 5 %."""
    sound = speech()
    clean = log_mel(sound)
    white = np.random.default_rng(0).standard_normal(len(sound))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    for snr in (0, 10):
        # a sample's variance v gives every frequency the power v sum(window^2)
        wanted = power(clean).sum(1).mean() * 10 ** (-snr / 10)
        scale = np.sqrt(wanted / (BANDS.sum() * (window**2).sum()))
        real = log_mel((sound + scale * white).astype(np.float32))
        ours = np.stack([add_noise(clean, snr, np.random.default_rng(s)) for s in range(4)])
        np.testing.assert_allclose(power(ours).mean((0, 1)).sum(), power(real).mean(0).sum(), rtol=0.05)
        np.testing.assert_allclose(ours.mean((0, 1)), real.mean(0), atol=0.1)


def test_noise_alone_spreads_as_white_noise_does():
    """Band by band: mean and deviation of the power, which Gamma is fitted to; its logarithm comes close."""
    real = log_mel(np.random.default_rng(0).standard_normal(300 * RATE).astype(np.float32))
    ours = add_noise(np.full((30000, 40), -5.0), -60, np.random.default_rng(0))
    np.testing.assert_allclose(power(ours).mean(0) / power(ours).mean(), power(real).mean(0) / power(real).mean(), 0.03)
    np.testing.assert_allclose(
        power(ours).std(0) / power(ours).mean(0), power(real).std(0) / power(real).mean(0), rtol=0.05
    )
    np.testing.assert_allclose(ours.std(0), real.std(0), rtol=0.2)
    np.testing.assert_allclose(ours.mean(0) - ours.mean(), real.mean(0) - real.mean(), atol=0.1)


def test_what_is_put_out():
    x = np.random.default_rng(0).normal(-3, 1, (50, 40)).astype(np.float16)
    before = x.copy()
    one, two = (add_noise(x, 5, np.random.default_rng(7)) for _ in range(2))
    assert one.dtype == np.float16
    assert one.shape == x.shape
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(x, before)
    assert (one >= x - 1e-2).all()  # power is only added
    silent = add_noise(np.full((5, 40), np.log(FLOOR), np.float32), 5, np.random.default_rng(0))
    assert np.isfinite(silent).all()
    assert torch.from_numpy(silent).min() >= np.log(FLOOR) - 1e-4
