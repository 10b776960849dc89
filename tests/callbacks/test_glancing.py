"""AnnealedGlance: an even way from one share to another by optimizer step, on modules that glance."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks.glancing import AnnealedGlance

SHARES = st.floats(0.01, 1.0)


@given(SHARES, SHARES, st.integers(2, 300), st.integers(0, 100))
def test_the_way_is_even_and_ends(first, last, total, beyond):
    callback = AnnealedGlance(first, last)
    shares = [callback.share(step, total) for step in range(total)]
    assert shares[0] == pytest.approx(first)
    assert callback.share(total - 1 + beyond, total) == pytest.approx(last)
    even = [first + (last - first) * n / (total - 1) for n in range(total)]
    assert shares == pytest.approx(even)


class Glancing(LightningModule):
    def __init__(self):
        super().__init__()
        self.part, self.glance, self.seen = nn.Linear(2, 1), 0.5, []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.glance)
        return self.part(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_goes_from_the_first_share_to_the_last_by_its_steps(accumulated):
    module, callback = Glancing(), AnnealedGlance(0.5, 0.3)
    loader = DataLoader(TensorDataset(torch.randn(12, 2)), batch_size=3)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulated,
    )  # fmt: skip
    trainer.fit(module, loader)
    total = 8 // accumulated
    assert module.seen == [callback.share(batch // accumulated, total) for batch in range(8)]
    assert module.seen[-1] == pytest.approx(0.3)


def test_mistakes():
    for shares in ((0.0, 0.3), (1.1, 0.3), (0.5, -0.1), (0.5, 1.5)):
        with pytest.raises(MisconfigurationException, match="expected shares"):
            AnnealedGlance(*shares)
    with pytest.raises(MisconfigurationException, match="total=0"):
        AnnealedGlance(total=0)
    for module in (nn.Linear(1, 1), SimpleNamespace(glance=0.0)):
        with pytest.raises(MisconfigurationException, match=r"--model.glance 0\.5"):
            AnnealedGlance().on_train_start(None, module)
