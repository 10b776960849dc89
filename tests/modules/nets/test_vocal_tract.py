"""modules/nets/vocal_tract.py: no factor changes nothing, and a factor does what a shorter throat does to MFCCs."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from datamodules.speech.audio import mfcc
from modules.nets.vocal_tract import DEVIATIONS, VocalTract


def vowel(stretch: float) -> np.ndarray:
    """Half a second at 120 Hz through five resonances, their frequencies multiplied by `stretch`; (8000,) float32."""
    sound = np.zeros(8000)
    sound[::133] = 1
    for frequency, width in ((650, 80), (1080, 90), (2650, 120), (3300, 150), (4200, 200)):
        radius = np.exp(-np.pi * width / 16000)
        angle = 2 * np.pi * frequency * stretch / 16000
        sound = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], sound)
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def cepstra(stretch: float) -> torch.Tensor:
    """Mean coefficients (13,) of the vowel, in deviations."""
    return torch.from_numpy(mfcc(vowel(stretch))[10:-10, :13].mean(0)) / torch.tensor(DEVIATIONS)


def test_a_factor_of_one_changes_nothing():
    matrix = VocalTract().matrices(torch.ones(2))
    torch.testing.assert_close(matrix, torch.eye(13).expand(2, 13, 13), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stretch", [0.9, 1.12])
def test_as_a_shorter_or_longer_throat(stretch):
    """Resonances that lie at f lie at f / factor after it, as spectra are read at factor x f."""
    one, other = cepstra(1.0), cepstra(stretch)
    matrix = VocalTract().matrices(torch.tensor([1 / stretch, stretch]))
    right, wrong = (m @ one - other for m in matrix)
    # without the level and tilt that no warping of frequencies can bring
    assert right[2:].norm() < 0.5 * (one - other)[2:].norm()
    assert wrong[2:].norm() > (one - other)[2:].norm()


def test_utterances_are_warped_in_training_alone_and_each_in_its_own_way():
    x = torch.randn(2, 5, 39, generator=torch.Generator().manual_seed(0))
    x = x[:1].expand(2, -1, -1)
    part = VocalTract(0.2)
    torch.manual_seed(3)
    first, second = part(x)
    torch.manual_seed(3)
    assert torch.equal(part(x)[0], first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, x[0])
    torch.manual_seed(3)
    deltas = torch.cat([x[..., 13:26], x[..., :13], x[..., 26:]], dim=2)  # the same matrix for all three parts
    torch.testing.assert_close(part(deltas)[0][:, 13:26], first[:, :13])
    assert torch.equal(part.eval()(x), x)
