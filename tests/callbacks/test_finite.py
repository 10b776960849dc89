"""Steps whose numbers are not finite are not made; nothing is judged or kept that is not finite."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks.checkpoints import LastCheckpoint, RunCheckpointIO
from callbacks.finite import PATIENCE, FiniteNumbers, NotFiniteError
from callbacks.warmup import WarmupScheduler


class Net(LightningModule):
    def __init__(self, optimizer):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        self.new_optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return self.net(batch["x"]).square().mean() * batch["scale"].mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch["x"]))

    def configure_optimizers(self):
        return self.new_optimizer(self.parameters())


class Rows(TensorDataset):
    def __getitem__(self, row):
        return dict(zip(("x", "scale", "row"), super().__getitem__(row), strict=True))


def batches(bad, value, steps=6, size=4, leave_out=False):
    """Loader whose batches of these numbers have the value in their first row, or are not there."""
    x = torch.randn(steps * size, 3, generator=torch.Generator().manual_seed(2))
    for number in bad:
        x[number * size] = value
    kept = [n for n in range(steps) if not (leave_out and n in bad)]
    rows = torch.cat([torch.arange(n * size, (n + 1) * size) for n in kept])
    return DataLoader(Rows(x[rows], torch.ones(len(rows)), rows), batch_size=size)


def trained(loader, optimizer, *callbacks, **options):
    module = Net(optimizer)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, **({"enable_checkpointing": False} | options),
    )  # fmt: skip
    trainer.fit(module, loader)
    return module, trainer


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.1),
    "fused": lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.1, fused=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.5),
}


@settings(max_examples=40)
@given(
    optimizer=st.sampled_from([*OPTIMIZERS]),
    bad=st.sets(st.integers(0, 5), min_size=1, max_size=3),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    deferred=st.booleans(),
)
def test_a_step_left_out_is_as_if_its_batch_were_not_there(optimizer, bad, value, deferred):
    """Weights and running statistics alike; also where the flags stay on the device, by an optimizer that can skip."""
    if deferred:
        optimizer = "fused"
    with pytest.MonkeyPatch.context() as patch:
        if deferred:
            patch.setattr("callbacks.finite.AT_ONCE", ())
        finite = FiniteNumbers("skip")
        with pytest.warns(UserWarning, match="left out"):
            module, _ = trained(batches(bad, value), OPTIMIZERS[optimizer], finite)
    other, _ = trained(batches(bad, value, leave_out=True), OPTIMIZERS[optimizer])
    assert finite.skipped == len(bad)
    for name, weights in module.state_dict().items():
        torch.testing.assert_close(weights, other.state_dict()[name], rtol=0, atol=0)


def test_where_the_device_cannot_leave_a_step_out_its_gradient_is_zero(monkeypatch):
    monkeypatch.setattr("callbacks.finite.AT_ONCE", ())
    finite = FiniteNumbers("skip")
    with pytest.warns(UserWarning, match=r"step 2: the loss is not finite \(training rows 8, 9, 10, 11, from 0\)"):
        module, _ = trained(batches({2, 3}, math.nan), OPTIMIZERS["SGD"], finite)
    assert finite.skipped == 2
    assert all(weights.isfinite().all() for weights in module.state_dict().values())


def test_stop_names_the_step_and_what_was_not_finite():
    finite = FiniteNumbers()
    with pytest.raises(NotFiniteError, match=r"step 3: the batch's x is not finite \(training rows 12, from 0\)"):
        trained(batches({3}, math.nan), OPTIMIZERS["AdamW"], finite)
    with pytest.raises(NotFiniteError, match=r"step 1: the loss is .*the output of net\.0 \(Linear\) is the first"):
        trained(batches({1}, 3e38), lambda parameters: torch.optim.SGD(parameters, 1e3), finite)


def test_a_gradient_alone_is_named_by_its_weights():
    class Root(Net):
        def training_step(self, batch, batch_idx):
            zero = self.net[3].weight.sum() * (0 if self.trainer.global_step == 2 else 1)
            return super().training_step(batch, batch_idx) + zero.abs().sqrt()  # whose slope at 0 is infinite

    module = Root(OPTIMIZERS["AdamW"])
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      callbacks=[FiniteNumbers()], enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with pytest.raises(NotFiniteError, match=r"step 2: the gradient of net\.3\.weight is not finite"):
        trainer.fit(module, batches(set(), 0))


def test_stop_keeps_the_state_before_the_step(tmp_path):
    path = tmp_path / "last.ckpt"
    keeper = LastCheckpoint(path)
    with pytest.raises(NotFiniteError, match="step 3"):
        trained(batches({3, 4, 5}, math.nan), OPTIMIZERS["AdamW"], FiniteNumbers(), keeper, plugins=[RunCheckpointIO()],
                enable_checkpointing=True)  # fmt: skip
    expected, _ = trained(batches({3, 4, 5}, math.nan, leave_out=True), OPTIMIZERS["AdamW"])
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, kept[name]) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("warmup", [True, False])
def test_lower_halves_the_rate(warmup):
    callbacks = [WarmupScheduler("constant")] if warmup else []
    with pytest.warns(UserWarning, match="rate multiplied by 0.5"):
        _, trainer = trained(batches({1, 4}, math.nan), OPTIMIZERS["AdamW"], FiniteNumbers("lower"), *callbacks)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("good", [None, PATIENCE - 1])
def test_skipping_for_ever_is_an_error(deferred, good, monkeypatch):
    """PATIENCE steps in a row; one good step begins the count anew, whenever the flags are looked at."""
    if deferred:
        monkeypatch.setattr("callbacks.finite.AT_ONCE", ())
    steps = PATIENCE if good is None else 2 * PATIENCE - 1
    loader = batches(set(range(steps)) - {good}, math.nan, steps=steps)
    for every in (1, 7, steps):
        finite = FiniteNumbers("skip")
        if good is None:
            with pytest.raises(NotFiniteError, match=f"{PATIENCE} steps in a row"):
                trained(loader, OPTIMIZERS["fused"], finite, log_every_n_steps=every)
        else:
            with pytest.warns(UserWarning, match="left out"):
                trained(loader, OPTIMIZERS["fused"], finite, log_every_n_steps=every)
            assert finite.skipped == steps - 1


def test_the_first_of_several_errors_ends_the_run(tmp_path):
    """Under DDP the end of a run waits for the next logged step; further steps may be bad until then."""
    keeper = LastCheckpoint(tmp_path / "last.ckpt")

    class Ends(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            keeper.end(NotFiniteError("step 0"))
            keeper.end(NotFiniteError("step 1"))

    with pytest.raises(NotFiniteError, match="step 0"):
        trained(batches(set(), 0), OPTIMIZERS["AdamW"], Ends(), keeper, plugins=[RunCheckpointIO()],
                enable_checkpointing=True)  # fmt: skip


def test_accumulated_batches_share_their_fate():
    finite = FiniteNumbers("skip")
    with pytest.warns(UserWarning, match="step 1: .* left out"):
        module, _ = trained(batches({3}, math.nan), OPTIMIZERS["AdamW"], finite, accumulate_grad_batches=2)
    assert finite.skipped == 1
    assert all(weights.isfinite().all() for weights in module.state_dict().values())


def test_what_fp16_skips_is_no_mistake():
    """The first scale is too large for these gradients; the scaler finds one that is not."""

    class Steep(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 1e38 * 1e-3

    module = Steep(lambda parameters: torch.optim.SGD(parameters, 1e-38))
    finite = FiniteNumbers()
    fp16 = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # Lightning itself has it on GPUs alone
    trainer = Trainer(max_epochs=1, accelerator="cpu", plugins=[fp16], logger=False, enable_checkpointing=False,
                      callbacks=[finite], enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    before = copy.deepcopy(module.state_dict())
    trainer.fit(module, batches(set(), 0, steps=30))
    assert fp16.scaler.get_scale() < 65536
    assert finite.skipped == 0
    assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_metric_that_is_not_finite_chooses_no_checkpoint(tmp_path):
    module = Net(OPTIMIZERS["AdamW"])
    keeper = ModelCheckpoint(tmp_path, "best", "val/loss")
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[keeper, FiniteNumbers()],
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    with pytest.raises(NotFiniteError, match=r"step 6: val/loss is nan"):
        trainer.fit(module, batches(set(), 0), batches({0}, math.nan))
    assert not list(tmp_path.glob("*.ckpt"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """A finite gradient times a large rate: no further step looks at what comes out."""
    module = Net(lambda parameters: torch.optim.SGD(parameters, 1e38))
    loader = batches(set(), 0, steps=1)
    loader.dataset.tensors[1].fill_(1e20)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                      callbacks=[FiniteNumbers(), LastCheckpoint(tmp_path / "last.ckpt")],
                      enable_model_summary=False)  # fmt: skip
    with pytest.raises(NotFiniteError, match=r"the weights net\.\S+ are not finite, no checkpoint"):
        trainer.fit(module, loader)
    assert not list(tmp_path.glob("*.ckpt"))
