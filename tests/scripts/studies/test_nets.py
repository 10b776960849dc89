"""Studies of batch size, warm-up, batch norm and convolution: their maths, and each run with tiny settings."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import check_study
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from datamodules import generated as sample
from scripts.studies import batch_norm, batch_size, cnn, warmup
from scripts.studies.lab import machine
from scripts.studies.lab.statements import judge

pytestmark = pytest.mark.slow

seeds = st.integers(0, 10**6)

TINY = {
    "warmup": {
        "layers": 2, "d_model": 8, "rates": (1e-3, 1e-2), "warmup": 2, "epochs": 1, "sequences": 2, "first": 2,
        "deep": 3,
    },
    "batch_norm": {
        "hidden": (8,), "rates": (0.1, 1.0), "deep": (4, 4), "window": 1, "epochs": 1, "every": 2, "judged": 100,
        "examples": 2, "companies": 3,
    },
    "batch_size": {
        "small": 10, "large": 25, "used": 100, "judged": 50, "epochs": 1, "window": 1, "hidden": (4, 4),
        "timed_sizes": (1, 2, 4, 8), "timed": 3,
    },
    "cnn": {
        "side": 8, "filters": 2, "images": 32, "layer_steps": 2, "channels": (4,), "signs": (16, 32), "steps": 2,
        "judged": 20,
    },
    "attention_as_cnn": {"sizes": (16, 32), "judged": 20, "steps": 3, "d_model": 8, "heads": 2, "channels": (4,)},
}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Root of generated sets of HW2 and HW3, with fewer utterances and images than `leeml data sample` makes."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SPOKEN", {"train": 15, "test": 1})
        patch.setattr(sample, "FOOD_IMAGES", {"training": 4, "validation": 2, "test": 1, "unlabeled": 1})
        sample.write_phonemes(root / "hw2_phoneme" / "sample")
        sample.write_food(root / "hw3_food" / "sample")
    return root


@pytest.fixture
def root(made, monkeypatch, tmp_path):
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    return made


def tiny(name):
    return replace(machine.load(name).quick, **TINY[name])


# 7 batch size


@given(seed=seeds, factor=st.floats(0.1, 10))
@hypothesis_settings(max_examples=10)
def test_rescaled_layers_are_the_same_function_and_another_hessian(seed, factor):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    other, x = batch_size.rescaled(module, factor), torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(other(x), module(x))
    weights = [part.weight for part in (module[0], module[2], other[0], other[2])]
    torch.testing.assert_close(weights[2:], [weights[0] * factor, weights[1] / factor])


def test_sharpness_is_the_largest_eigenvalue_of_the_loss():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64))

        def forward(self, x):
            return (x @ self.weight)[None]

    net, x, y = One(), torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64), torch.tensor([0, 1])
    hessian = torch.func.hessian(lambda w: F.cross_entropy(x @ w.view(2, 2), y))(net.weight.detach().flatten())
    assert batch_size.sharpness(net, x, y) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


def test_a_net_after_many_updates_has_learned_its_windows(root):
    settings = replace(tiny("batch_size"), hidden=(32, 32), rate=0.01)
    windows = batch_size.Windows(settings, 0, root)
    assert (len(windows.y), len(windows.answers)) == (100, 50)
    assert not set(map(tuple, windows.x.flatten(1).tolist())) & set(map(tuple, windows.new.flatten(1).tolist()))
    few, many = (batch_size.after(settings, windows, 0, 25, updates)[1] for updates in (1, 150))
    assert many["train"] > 0.9 > few["train"]
    assert many["loss"] < few["loss"] / 3


# 10 warm-up


def test_variance_of_the_adaptive_rate_where_gradients_are_noise():
    noise = torch.randn((400, 5, 200), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, rate = warmup.variances(noise)
    assert warmup.of_pure_noise(1) == pytest.approx(math.pi**2 / 8)  # log |g| of a normal g
    assert rate == pytest.approx([warmup.of_pure_noise(step) for step in range(1, 6)], rel=0.03)


@given(seed=seeds)
def test_variance_of_updates_is_that_of_torch_s_adam(seed):
    gradients = torch.randn((4, 3, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moves = []
    for sequence in gradients:
        place = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([place], lr=1.0)
        for gradient in sequence:
            before = place.detach().clone()
            place.grad = gradient.clone()
            optimizer.step()
            moves.append((place - before).detach().numpy())
    wanted = np.var(np.reshape(moves, (4, 3, 5)), axis=0, ddof=1).mean(-1)
    np.testing.assert_allclose(warmup.variances(gradients)[0], wanted, rtol=1e-6)


def test_what_has_no_gradient_does_not_count():
    gradients = torch.randn(3, 2, 4)
    gradients[1, 0, 2] = 0
    assert warmup.variances(gradients) == warmup.variances(gradients[:, :, [0, 1, 3]])


def test_gradients_by_layer():
    module = nn.ModuleDict({name: nn.ModuleDict({"linear2": nn.Linear(2, 1)}) for name in ("a", "b")})
    found = warmup.by_layer(module, torch.tensor([[3.0, 4, 9, 0, 1, 9], [6, 8, 9, 0, 3, 9]]))
    assert found == [7.5, 2.0]


def test_gradients_at_the_start_stay_at_the_start(root):
    settings = tiny("warmup")
    (net, some), (same, more) = (warmup.gradients_at_start(settings, "pre", n, 0, root) for n in (2, 5))
    assert len(some) == 2
    assert torch.equal(some, more[:2])
    assert not torch.equal(more[0], more[1])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


# 11 batch normalisation


@given(seed=seeds, larger=st.floats(1, 5))
def test_steps_in_a_bowl_in_closed_form_and_counted(seed, larger):
    x = batch_norm.features(larger, seed)
    needed = batch_norm.steps_needed(x)
    places = batch_norm.path(x, torch.tensor([0.6, -1.1], dtype=torch.float64), needed)
    too_much = (x @ places.mT).square().mean(0)  # the least is at weights 0
    assert too_much[-1] <= 0.01 * too_much[0] * (1 + 1e-6)
    assert needed == 1 or too_much[-2] >= 0.01 * too_much[0] * (1 - 1e-6)


@given(seed=seeds, factor=st.floats(0.01, 3))
def test_no_other_rate_is_better(seed, factor):
    x = batch_norm.features(10.0, seed)
    curves = torch.linalg.eigvalsh(
        torch.autograd.functional.hessian(lambda w: (x @ w).square().mean(), torch.ones(2, dtype=torch.float64))
    )
    rate = batch_norm.best_rate(x)
    assert (1 - rate * curves).abs().max() <= (1 - factor * rate * curves).abs().max() + 1e-12


@given(seed=seeds)
def test_scaled_features_have_mean_0_and_deviation_1(seed):
    x = batch_norm.scaled(batch_norm.features(10.0, seed)).numpy()
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-12)


def test_the_formula_is_torch_s_and_a_wrong_average_is_not(monkeypatch):
    assert batch_norm.apart_from_torch(0) < 1e-12
    monkeypatch.setattr(batch_norm, "normalised", partial(batch_norm.normalised, eps=1e-3))
    assert batch_norm.apart_from_torch(0) > 1e-5


def test_accuracy_is_looked_at_in_evaluation_mode(root):
    settings = replace(tiny("batch_norm"), epochs=2, every=3)
    still = partial(torch.optim.SGD, lr=0.0)
    module, held_out = batch_norm.trained(settings, 0, root, still, hidden=(8,), dropout=0.9)
    assert module.training
    assert held_out.steps == list(range(0, held_out.steps[-1] + 1, 3))
    assert len(held_out.steps) > 2
    assert len(set(held_out.accuracy)) == 1, "no step, no dropout: the same answers"
    with torch.no_grad():
        said = module.eval()(held_out.x)[0].argmax(1)
    assert held_out.accuracy[0] == pytest.approx(float((said == held_out.y).float().mean()))
    assert held_out.common == pytest.approx(max(np.bincount(held_out.y)) / len(held_out.y))


def test_company_counts_by_batch_statistics_alone_and_leaves_the_averages(root):
    settings = tiny("batch_norm")
    made = partial(batch_norm.trained, settings, 0, root, partial(torch.optim.SGD, lr=0.1), hidden=(8,))
    for norm in (True, False):
        module, held_out = made(batch_norm=norm)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        found = batch_norm.in_company(module, held_out.x, 4, 5, torch.Generator().manual_seed(0))
        assert found["apart"] < 1e-6
        assert (np.std(found["train"], axis=1).max() > 1e-4) == norm
        with torch.no_grad():
            shares = module.eval()(held_out.x)[0].softmax(1)
        assert found["test"][-1] == pytest.approx(float(shares[-1].max()), rel=1e-4)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_first_step_with_so_much_accuracy():
    assert batch_norm.first_reaching([0.1, 0.5, 0.4, 0.6], [0, 5, 10, 15], 0.5) == 5
    assert batch_norm.first_reaching([0.1], [0], 0.5) == math.inf


# 12 CNN


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(5, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)),
    seed=seeds,
)
def test_the_matrix_is_a_convolution(shape, seed):
    channels, side, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, channels, side, side), generator=generator, dtype=torch.float64)
    filters = torch.randn((2, channels, kernel, kernel), generator=generator, dtype=torch.float64)
    matrix = cnn.as_matrix(filters.flatten(1), cnn.receptive_fields(channels, side, kernel, stride, padding))
    wanted = F.conv2d(x, filters, stride=stride, padding=padding).flatten(1)
    torch.testing.assert_close(x.flatten(1) @ matrix.T, wanted)


def test_receptive_fields_of_a_small_image():
    fields = cnn.receptive_fields(1, 3, 2, 1, 0)
    assert fields.tolist() == [
        [0, 1, -1, 2, 3, -1, -1, -1, -1],
        [-1, 0, 1, -1, 2, 3, -1, -1, -1],
        [-1, -1, -1, 0, 1, -1, 2, 3, -1],
        [-1, -1, -1, -1, 0, 1, -1, 2, 3],
    ]


def test_a_layer_of_each_kind_learns_what_it_may():
    torch.manual_seed(0)
    fields, x = cnn.receptive_fields(3, 6, 3, 2, 1), torch.randn(4, 3, 6, 6)
    layers = {kind: cnn.ImageLayer(kind, 2, fields) for kind in cnn.get_args(cnn.Kind)}
    for layer in layers.values():
        layer(x).square().sum().backward()
    assert layers["fully connected"].weight.grad.count_nonzero() == layers["fully connected"].weights
    local = layers["receptive fields"]
    assert local.weight.grad.count_nonzero() == local.weights
    assert local.weights < layers["fully connected"].weights / 3
    shared = layers["convolution"]
    conv = nn.Conv2d(3, 2, 3, 2, 1)
    conv.load_state_dict({"weight": shared.weight.view(2, 3, 3, 3), "bias": shared.bias[:, 0]})
    torch.testing.assert_close(shared(x), conv(x).flatten(1))
    conv(x).square().sum().backward()
    torch.testing.assert_close(shared.weight.grad, conv.weight.grad.flatten(1), rtol=1e-4, atol=1e-4)
    assert shared.weights == conv.weight.numel()


def test_the_lecture_s_counts():
    assert list(cnn.lecture_counts().values()) == [30_000_000, 27_000, 270]


def test_accuracy_is_a_share_of_all_images():
    batches = [{"x": torch.eye(3), "y": torch.tensor([0, 1, 0])}, {"x": torch.eye(3)[:1], "y": torch.tensor([0])}]
    assert cnn.accuracy(nn.Identity(), batches) == pytest.approx(3 / 4)


@pytest.mark.parametrize("name", ["cnn", "attention_as_cnn"])
def test_nets_take_their_accelerator(name, root):
    with pytest.raises(ValueError, match="abacus"):
        machine.load(name).run(replace(tiny(name), accelerator="abacus"), 0, root)


# all of them, end to end


@pytest.mark.parametrize("name", TINY)
def test_a_study_runs_is_judged_drawn_and_told(name, root):
    found = check_study(name, TINY[name], root, timed=name == "batch_size")
    exact = [statement for statement in machine.load(name).statements if statement.kind == "exact"]
    assert all(judge(statement, found, (2,)).result == "holds" for statement in exact), "what nothing random enters"
