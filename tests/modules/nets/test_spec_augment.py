"""SpecAugment: what is hidden, how much of it at most and where, and that it can be repeated."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.nets.spec_augment import SpecAugment


def runs(hidden):
    """Lengths of the stretches of True in a row."""
    values, counts = hidden.unique_consecutive(return_counts=True)
    return counts[values].tolist()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    times=st.integers(0, 3),
    time_width=st.integers(0, 12),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
    bands=st.integers(0, 3),
    band_width=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_what_is_hidden(lengths, extra, times, time_width, share, bands, band_width, seed):
    net = SpecAugment(times, time_width, share, bands, band_width)
    width, length = 6, max(lengths) + extra
    x = torch.rand(len(lengths), length, width) + 1
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    torch.manual_seed(seed)
    out = net(x, mask)
    assert ((out == x) | (out == 0)).all()
    for row, n in zip(out, lengths, strict=True):
        gone = row == 0
        frames, features = gone.all(1), gone.all(0)  # if all is hidden, both hold
        assert torch.equal(gone, frames[:, None] | features)
        if not features.all():
            assert not frames[n:].any()  # padding is no frame that could be hidden
            assert frames.sum() <= times * min(time_width, share * n + 1e-4)
            assert len(runs(frames)) <= times
        if not frames.all():
            assert features.sum() <= bands * min(band_width, width)
            assert len(runs(features)) <= bands
    torch.manual_seed(seed)
    assert torch.equal(net(x, mask), out)
    assert net.eval()(x, mask) is x


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3), extra=st.integers(1, 9), seed=st.integers(0, 2**31)
)
def test_more_padding_changes_nothing(lengths, extra, seed):
    net, longest = SpecAugment(), max(lengths)
    x = torch.rand(len(lengths), longest + extra, 12) + 1
    mask = torch.arange(longest + extra) < torch.tensor(lengths)[:, None]
    torch.manual_seed(seed)
    padded = net(x, mask)
    torch.manual_seed(seed)
    assert torch.equal(net(x[:, :longest], mask[:, :longest]), padded[:, :longest])


def test_widths_and_places_are_drawn_evenly():
    torch.manual_seed(0)
    count = 20_000
    frames = SpecAugment(1, 4, 1.0, 0)(torch.ones(count, 8, 1)).squeeze(2) == 0
    widths = frames.sum(1)
    shares = widths.bincount(minlength=5) / count
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.015)  # 0 to 4, five standard deviations
    starts = frames[widths == 3].int().argmax(1)
    shares = starts.bincount(minlength=6) / len(starts)
    torch.testing.assert_close(shares, torch.full((6,), 1 / 6), rtol=0, atol=0.03)
    bands = SpecAugment(0, bands=1, band_width=2)(torch.ones(count, 1, 3)).squeeze(1) == 0
    shares = bands.sum(1).bincount(minlength=3) / count
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    assert not torch.equal(frames[0], frames[1:5].any(0))  # each sequence has its own


def test_bfloat16_counts_every_frame():
    torch.manual_seed(0)
    x = torch.ones(4000, 301, 1, dtype=torch.bfloat16)
    mask = (torch.arange(301) < 299).expand(4000, -1)
    hidden = SpecAugment(1, 4, 1.0, 0)(x, mask).squeeze(2) == 0
    assert not hidden[:, 299:].any()
    assert hidden[:, 298].any()
