import itertools

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from callbacks.averaging import AverageOfLast

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*deprecated")


class Line(LightningModule):
    """Fits a straight line, and notes the weight that each validation saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[float] = []

    def training_step(self, batch):
        return (self.layer(batch) - 3 * batch).square().mean()

    def validation_step(self, batch):
        self.seen.append(self.layer.weight.item())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Weights(Callback):
    """The weight at the end of each training epoch, before its validation."""

    def __init__(self) -> None:
        self.of_epochs: list[float] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.of_epochs.append(pl_module.layer.weight.item())


def fit(folder, epochs, ckpt=None, last=2, **options):
    torch.manual_seed(0)
    module, weights = Line(), Weights()
    numbers = DataLoader(torch.linspace(-1, 1, 8).unsqueeze(1), batch_size=4)
    keeper = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[AverageOfLast(last), weights, keeper], num_sanity_val_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, numbers, DataLoader(torch.zeros(1, 1)), ckpt_path=ckpt)
    return module, weights.of_epochs


def test_validates_and_saves_the_mean_and_trains_on_without_it(tmp_path):
    module, own = fit(tmp_path, 4)
    means = [own[0], *((a + b) / 2 for a, b in itertools.pairwise(own))]
    assert module.seen[1:] == pytest.approx(means)  # the first is the sanity check's
    assert module.layer.weight.item() == pytest.approx(means[-1])
    for epoch, mean in enumerate(means):
        saved = torch.load(tmp_path / f"{epoch}.ckpt", weights_only=True)
        assert saved["state_dict"]["layer.weight"].item() == pytest.approx(mean)
        assert saved["current_model_state"]["layer.weight"].item() == own[epoch]
    plain = fit(tmp_path / "one", 4, last=1)
    assert plain[1] == own, "averaging changed the training"


def test_resumed_run_has_the_same_weights(tmp_path):
    whole, own = fit(tmp_path / "whole", 5, last=3)
    fit(tmp_path / "part", 2, last=3)
    rest, more = fit(tmp_path / "rest", 5, ckpt=tmp_path / "part/1.ckpt", last=3)
    assert more == own[2:]
    assert torch.equal(whole.layer.weight, rest.layer.weight)


def test_without_validation_it_is_what_was_trained(tmp_path):
    module, own = fit(tmp_path, 2, limit_val_batches=0)
    assert module.layer.weight.item() == own[-1]
    saved = torch.load(tmp_path / "1.ckpt", weights_only=True)
    assert saved["state_dict"]["layer.weight"].item() == own[-1]


def test_none_to_average():
    with pytest.raises(MisconfigurationException, match="last=0: expected 1 or more"):
        AverageOfLast(0)
