"""Progressive resizing: sides by epoch, what they cost, and images of that side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.images.growth import STAGES, Growth, resized


@given(st.integers(8, 200), st.integers(1, 200), st.integers(1, 300))
def test_sides_grow_by_epoch_from_the_first_to_the_last(first, more, epochs):
    growth = Growth(first, first + more, epochs)
    sides = [growth.side(epoch) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert sides[-1] == growth.side(epochs) == growth.side(epochs + 7) == first + more
    if epochs >= STAGES:
        assert sides[0] == first
        counts = [sides.count(side) for side in {*sides}]
        assert all(count >= epochs // STAGES for count in counts)


def test_the_paper_s_kind_of_stages_and_their_cost():
    growth = Growth(64, 112, 8)
    assert [growth.side(epoch) for epoch in range(8)] == [64, 64, 80, 80, 96, 96, 112, 112]
    assert growth.cost() == pytest.approx((64**2 + 80**2 + 96**2 + 112**2) / (4 * 64**2))


@given(st.integers(0, 255), st.integers(8, 40))
def test_images_keep_their_colours_and_channels_last(level, side):
    x = torch.full((2, 3, 32, 32), level, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    x[:, 1] = 255 - level
    out = resized(x, side)
    assert out.shape == (2, 3, side, side)
    assert out.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert (out[:, 0] == level).all()
    assert (out[:, 1] == 255 - level).all()


def test_resizing_is_a_mean_over_pixels():
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    x[..., 4:] = 200
    assert resized(x, 2)[0, 0].tolist() == [[pytest.approx(25, abs=15), pytest.approx(175, abs=15)]] * 2
