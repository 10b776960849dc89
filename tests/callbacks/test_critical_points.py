"""Against closed forms, torch.func and torch.linalg; the callback on losses whose Hessian is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from callbacks.critical_points import CriticalPoint
from callbacks.curvature import (
    curvature,
    escape_direction,
    full_matrix,
    hessian_product,
    kind_of_point,
    lanczos,
    minimum_ratio,
    taylor_change,
)
from modules.nets.mlp import MLP


def symmetric(size, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, rank or size, generator=generator, dtype=torch.float64)
    signs = torch.randn(rank or size, generator=generator, dtype=torch.float64)
    return half @ torch.diag(signs) @ half.T


@given(size=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_of_a_quadratic_form_the_hessian_is_its_matrix(size, seed):
    matrix = symmetric(size, seed)
    w = torch.randn(size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64, requires_grad=True)
    gradient, product = hessian_product(w @ matrix @ w / 2, [w])
    torch.testing.assert_close(gradient, matrix @ w.detach())
    torch.testing.assert_close(full_matrix(product, gradient), matrix)


def test_of_a_net_it_equals_torch_func_and_the_loss_can_still_be_differentiated():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    parameters = dict(net.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss_at(flat):
        parts = {k: v.view_as(p) for v, (k, p) in zip(flat.split(sizes), parameters.items(), strict=True)}
        return (torch.func.functional_call(net, parts, (x,)) - y).square().mean()

    flat = torch.cat([p.detach().view(-1) for p in parameters.values()])
    loss = (net(x) - y).square().mean()
    gradient, product = hessian_product(loss, list(parameters.values()))
    torch.testing.assert_close(gradient, torch.func.grad(loss_at)(flat))
    torch.testing.assert_close(full_matrix(product, gradient), torch.func.hessian(loss_at)(flat))
    loss.backward()
    torch.testing.assert_close(torch.cat([p.grad.view(-1) for p in parameters.values()]), gradient)


def test_parameters_that_the_loss_does_not_see_are_flat():
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    gradient, product = hessian_product((a**2).sum(), [a, b])
    assert gradient.tolist() == [2, 2, 0, 0, 0]
    assert full_matrix(product, gradient).tolist() == torch.diag(torch.tensor([2.0, 2, 0, 0, 0])).tolist()
    gradient, product = hessian_product(a.sum(), [a])
    assert not full_matrix(product, gradient).any(), "a linear loss has no curvature"


@given(size=st.integers(1, 30), rank=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_lanczos_finds_both_ends_of_the_spectrum(size, rank, seed):
    matrix = symmetric(size, seed, min(rank, size))
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    found = lanczos(matrix.mv, start, size)
    values = torch.linalg.eigvalsh(matrix)
    scale = float(values.abs().max())
    assert found.lowest == pytest.approx(float(values[0]), abs=1e-8 * scale)
    assert found.highest == pytest.approx(float(values[-1]), abs=1e-8 * scale)
    assert float((matrix @ found.vector - found.lowest * found.vector).norm()) < 1e-6 * scale
    assert float(found.vector.norm()) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_lanczos_on_a_multiple_of_the_identity(value):
    found = lanczos(lambda v: value * v, torch.ones(5), 40)
    assert (found.lowest, found.highest) == pytest.approx((value, value), abs=1e-5)


def test_few_iterations_suffice_in_a_large_matrix():
    values = torch.cat([torch.linspace(0, 1, 2000, dtype=torch.float64), torch.tensor([-3.0, 25.0]).double()])
    found = curvature(torch.zeros(2002, dtype=torch.float64), lambda v: values * v, 30)
    assert (found.lowest, found.highest) == pytest.approx((-3, 25), rel=1e-9)


def test_minimum_ratio_counts_what_is_more_than_rounding():
    assert minimum_ratio(torch.tensor([1.0, 2, 3, -1])) == 0.75
    assert minimum_ratio(torch.tensor([1.0, 1e-9, -1e-9, 0])) == 0.25
    assert minimum_ratio(torch.zeros(4)) == 0


@pytest.mark.parametrize(
    ("norm", "ratio", "kind"),
    [(9e-4, 0.51, "minimum"), (9e-4, 0.5, "saddle"), (0, 0, "saddle"), (1e-3, 0.9, "none"), (float("nan"), 1, "none")],
)
def test_the_rule_of_hw2_2(norm, ratio, kind):
    assert kind_of_point(norm, ratio) == kind


@given(slope=st.floats(-1, 1), step=st.floats(0.01, 0.5), seed=st.integers(0, 1000))
def test_on_a_quadratic_form_taylor_is_exact_and_the_way_out_goes_down(slope, step, seed):
    matrix = symmetric(4, seed) - 2 * torch.eye(4, dtype=torch.float64)
    w = slope * torch.ones(4, dtype=torch.float64)
    loss = lambda w: w @ matrix @ w / 2  # noqa: E731
    w.requires_grad_()
    gradient, product = hessian_product(loss(w), [w])
    extremes = lanczos(product, torch.randn(4, generator=torch.Generator().manual_seed(seed)).double(), 4)
    change = float(loss(w.detach() + step * escape_direction(gradient, extremes)) - loss(w.detach()))
    assert change == pytest.approx(taylor_change(gradient, extremes, step), abs=1e-8)
    if extremes.lowest < 0:
        assert change < 0


class Bowl(LightningModule):
    """L = (1 - w1 w2)^2, from a given place."""

    def __init__(self, place, lr=0.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(place))
        self.lr = lr
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = (1 - self.w[0] * self.w[1]) ** 2
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(module, callback, epochs=1, batches=2):
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(batches, 1)), batch_size=1))
    return trainer


def test_the_callback_tells_a_saddle_from_a_minimum_and_from_neither():
    look = CriticalPoint()
    seen = fit(Bowl([0.0, 0.0]), look).callback_metrics
    assert look.kind == "saddle"
    assert [float(seen[f"critical/{n}"]) for n in ("lowest", "highest", "gradient_norm", "minimum_ratio")] == [
        -2,
        2,
        0,
        0.5,
    ]
    fit(Bowl([2.0, 2.0]), look)
    assert look.kind == "none"
    seen = fit(Bowl([1.0, 1.0]), look).callback_metrics
    assert look.kind == "saddle", "H = 2 (1 1; 1 1) has one zero: no more than half of the eigenvalues are positive"
    assert float(seen["critical/highest"]) == pytest.approx(4)


def test_the_escape_step_lowers_the_loss_as_predicted():
    module = Bowl([0.0, 0.0])
    fit(module, CriticalPoint(escape_step=0.1), epochs=2)
    assert module.losses[:2] == [1, 1]
    assert module.losses[2] == pytest.approx((1 - 0.1**2 / 2) ** 2)


def test_the_predicted_change_is_logged():
    seen = fit(Bowl([0.0, 0.0]), CriticalPoint(escape_step=0.1)).callback_metrics
    assert float(seen["critical/predicted_change"]) == pytest.approx(-0.01)


def test_a_long_spectrum_is_seen_through_lanczos_alone():
    look = CriticalPoint(exact_up_to=1)
    seen = fit(Bowl([0.0, 0.0]), look).callback_metrics
    assert (float(seen["critical/lowest"]), float(seen["critical/highest"])) == pytest.approx((-2, 2), rel=1e-5)
    assert "critical/minimum_ratio" not in seen
    assert look.kind == ""


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.drop = MLP(1, 1, 1, [4], "tanh"), torch.nn.Dropout(0.3)

    def training_step(self, batch, batch_idx):
        return self.drop(self.net(batch[0].view(1, -1, 1))).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_looking_changes_nothing():
    ends = []
    for epochs in (1, 100):  # looks in every epoch, or never
        module = Net()
        torch.manual_seed(1)
        fit(module, CriticalPoint(every_n_epochs=epochs), epochs=3)
        ends.append(torch.cat([p.detach().view(-1) for p in module.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "wrong", [{"every_n_epochs": 0}, {"iterations": 0}, {"tolerance": -1.0}, {"escape_step": -0.1}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(MisconfigurationException, match=next(iter(wrong))):
        CriticalPoint(**wrong)


def test_a_compiled_network_is_seen_as_the_plain_one_is():
    seen = []
    for compiled in (False, True):
        module = Net()
        if compiled:
            module.net.compile(backend="aot_eager")
        torch.manual_seed(1)
        seen.append({k: float(v) for k, v in fit(module, CriticalPoint(), epochs=2).callback_metrics.items()})
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)
    assert "critical/lowest" in seen[0]
