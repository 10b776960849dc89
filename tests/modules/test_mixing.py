"""Mixup and CutMix: every image is what its target says it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from modules.mixing import cutmix, mixup

SIZES = {"count": st.integers(1, 6), "alpha": st.floats(0.1, 5), "seed": st.integers(0, 2**30)}


def batch(count, height=5, width=7):
    """Image i is i + 1 everywhere, its class is i."""
    x = (1.0 + torch.arange(count, dtype=torch.float64)).view(-1, 1, 1, 1).expand(count, 3, height, width)
    return x.contiguous(), F.one_hot(torch.arange(count)).double()


@given(**SIZES)
def test_mixup_mixes_pixels_and_targets_alike(count, alpha, seed):
    torch.manual_seed(seed)
    x, target = batch(count)
    mixed, shares = mixup(x, target, alpha)
    torch.testing.assert_close(shares.sum(1), torch.ones(count, dtype=torch.float64))
    assert bool((shares >= 0).all())
    assert bool(((shares > 0).sum(1) <= 2).all())
    numbers = 1.0 + torch.arange(count, dtype=torch.float64)
    torch.testing.assert_close(mixed, (shares @ numbers).view(-1, 1, 1, 1).expand_as(x))


@given(**SIZES)
def test_cutmix_pastes_one_box_and_counts_its_pixels(count, alpha, seed):
    torch.manual_seed(seed)
    x, target = batch(count)
    mixed, shares = cutmix(x, target, alpha)
    for i in range(count):
        image = mixed[i, 0]
        assert torch.equal(mixed[i], image.expand(3, -1, -1))
        pasted = image != i + 1
        if pasted.any():
            (other,) = image[pasted].unique().tolist()
            rows, columns = pasted.any(1), pasted.any(0)
            assert torch.equal(pasted, rows[:, None] & columns[None, :])
            for side in (rows, columns):  # one run: a box has no gaps
                assert int(side.int().diff().abs().sum()) <= 2
            assert shares[i, int(other) - 1].item() == pytest.approx(pasted.double().mean().item())
        assert shares[i, i].item() >= (~pasted).double().mean().item() - 1e-9
    torch.testing.assert_close(shares.sum(1), torch.ones(count, dtype=torch.float64))


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_every_sample_has_its_own_share(mix):
    torch.manual_seed(0)
    x, target = torch.rand(600, 1, 128, 128), torch.eye(600)
    _, shares = mix(x, target, 1.0)
    own = shares.diagonal()
    assert len(own.unique()) > 300
    # Beta(1, 1) is uniform. A box of side w with its centre anywhere covers w - w^2 / 4 of an axis in the mean, as the
    # border cuts it; with w^2 = 1 - lambda uniform, too, E (w - w^2 / 4)^2 = 1/2 - 1/5 + 1/48
    expected = 0.5 if mix is mixup else 1 - (1 / 2 - 1 / 5 + 1 / 48)
    assert own.mean().item() == pytest.approx(expected, abs=0.04)
