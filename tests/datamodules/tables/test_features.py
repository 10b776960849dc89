"""What becomes of a table's columns; choices and statistics on training rows alone are in test_hw1_covid.py."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.tables.covid import CovidTable
from datamodules.tables.features import feature_matrix, scaler_statistics


@settings(max_examples=30)
@given(states=st.integers(0, 5), columns=st.integers(2, 6), days=st.integers(2, 6))
def test_differences_carry_the_same_information(states: int, columns: int, days: int) -> None:
    """They are a linear map of the raw features: its matrix (the image of the unit vectors) can be inverted."""
    size = states + days * columns - 1
    names = [f"s{i}" for i in range(states)], [*(f"a{i}" for i in range(columns - 1)), "tested_positive"]

    def table(values: np.ndarray) -> CovidTable:
        return CovidTable(Path("t.csv"), *names, days, list(range(len(values))), values, None)

    matrix, features = feature_matrix(table(np.eye(size)), "differences")
    assert matrix.shape == (size, size) == (size, len(set(features)))
    assert abs(np.linalg.det(matrix)) == pytest.approx(1)
    x = np.random.default_rng(0).normal(size=(2 * size, size))
    out = feature_matrix(table(x), "differences")[0]
    np.testing.assert_allclose(out, x @ matrix, atol=1e-12)
    for a, b in ((x, out), (out, x)):
        back, _, rank, _ = np.linalg.lstsq(a, b, rcond=None)
        assert rank == size
        np.testing.assert_allclose(a @ back, b, atol=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), rows=st.integers(2, 9), columns=st.integers(1, 5))
def test_scaled_columns_have_mean_0_and_deviation_1_but_for_those_that_stay(seed: int, rows: int, columns: int) -> None:
    noise = np.random.default_rng(seed)
    x = noise.normal(noise.normal(size=columns), noise.uniform(0.1, 3, columns), (rows, columns))
    x[:, -1] = 7.0  # never varies
    plain = noise.random(columns) < 0.3
    mean, scale = scaler_statistics(x, plain)
    out = (x - mean) / scale
    kept, scaled = np.flatnonzero(plain[:-1]), np.flatnonzero(~plain[:-1])
    np.testing.assert_array_equal(out[:, kept], x[:, kept])
    np.testing.assert_allclose(out[:, scaled].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(out[:, scaled].std(0), 1)
    np.testing.assert_array_equal(out[:, -1], 0)
