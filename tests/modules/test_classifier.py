"""What HW2, HW3 and HW4 share; what is special to one is tested with it."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from modules.classifier import mean_log_probabilities
from modules.hw2_phoneme import PhonemeClassifier
from modules.hw3_food import FoodClassifier
from modules.hw4_speaker import SpeakerClassifier
from modules.nets.cnn import CNN
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.window_mlp import WindowMLP

SHARED = {"classes": ["a", "b", "c"], "features": 5, "held_out": ""}
MAKERS = {
    "frames": (
        functools.partial(PhonemeClassifier, net=functools.partial(WindowMLP, hidden=(2,))),
        SHARED | {"silence": 0, "window": 1, "transitions": torch.zeros(3, 3)},
    ),
    "images": (
        functools.partial(FoodClassifier, net=functools.partial(CNN, channels=(2,), hidden=(2,))),
        SHARED | {"keys": ["0", "1", "2"], "mean": torch.zeros(3), "deviation": torch.ones(3)},
    ),
    "speakers": (
        functools.partial(SpeakerClassifier, net=functools.partial(TransformerFrames, d_model=4, heads=1, d_ff=4)),
        SHARED,
    ),
}  # fmt: skip


def made(name, **options):
    torch.manual_seed(0)
    make, facts = MAKERS[name]
    module = make(**options)
    module.expect(facts)
    module.configure_model()
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    return module


@given(members=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_members_probabilities_are_averaged(members, seed):
    scores = 3 * torch.randn(members, 5, 3, generator=torch.Generator().manual_seed(seed))
    powers = np.exp(scores.double().numpy())
    expected = (powers / powers.sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(mean_log_probabilities(scores).exp(), expected, rtol=1e-5)


def test_focal_loss_is_taken_by_all():
    for name in MAKERS:
        module = made(name, focal=2.0)
        scores, y = torch.randn(1, 4, 3), torch.tensor([0, 1, 2, 0])
        p = scores[0].softmax(1)[range(4), y]
        torch.testing.assert_close(module.members_loss(scores, y), (-(1 - p).square() * p.log()).mean())


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_drawn_before_anything_was_judged(name):
    assert made(name).draw() == {}
    assert made(name).tables() == {}


@pytest.mark.parametrize("name", MAKERS)
def test_a_rank_that_judged_nothing_takes_part_and_goes_on_training(name, monkeypatch):
    """The matrix of confusions is summed over ranks: one that did not ask for it would let the others wait for ever."""
    module, asked = made(name), []
    module._trainer.world_size = 2
    monkeypatch.setattr(module.confusion, "compute", lambda: asked.append(True) or torch.zeros(3, 3))
    assert module.draw().keys() == ({"confusion", "class_accuracy"} if name == "frames" else set())
    assert asked == [True]
    assert module.training


WRONG = [
    *((kind, {"members": 0}, "model.members is 0") for kind in (PhonemeClassifier, SpeakerClassifier)),
    *((kind, {"dropout": 1.0}, "model.dropout is 1") for kind in (PhonemeClassifier, SpeakerClassifier)),
    *(
        (kind, {"label_smoothing": value}, f"model.label_smoothing is {value}")
        for kind in (PhonemeClassifier, FoodClassifier, SpeakerClassifier)
        for value in (-0.1, 1.0)
    ),
    *((kind, {"focal": -1.0}, "model.focal is -1") for kind in (PhonemeClassifier, FoodClassifier, SpeakerClassifier)),
    (PhonemeClassifier, {"smoothing": -1.0}, "model.smoothing is -1"),
    *(
        (PhonemeClassifier, {"crf": True, name: value}, f"model.{name} is {value}")
        for name, value in {"label_smoothing": 0.1, "focal": 2.0}.items()
    ),
    (FoodClassifier, {"mixup": -1.0}, "model.mixup"),
    (FoodClassifier, {"pseudo_threshold": 1.5}, "model.pseudo_threshold"),
    (FoodClassifier, {"net": nn.Linear(2, 2)}, "name the function alone"),
]


@pytest.mark.parametrize(("kind", "options", "says"), WRONG)
def test_wrong_options_are_named(kind, options, says):
    with pytest.raises(MisconfigurationException, match=says):
        kind(**options)
