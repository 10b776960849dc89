"""FoodClassifier: its losses against closed forms, TTA by the course's formula, that it learns, and what it draws."""

import functools

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torchvision.transforms import v2

from datamodules.generated import write_food
from datamodules.hw3_food import FoodData
from modules.hw3_food import FoodClassifier
from modules.nets.cnn import CNN
from modules.nets.resnet import ResNet

FACTS = {
    "classes": ["a", "b", "c"],
    "keys": ["0", "1", "2"],
    "mean": torch.tensor([0.2, 0.3, 0.4]),
    "deviation": torch.tensor([0.5, 0.6, 0.7]),
    "held_out": "",
}


class Linear(nn.Sequential):
    """A network whose scores can be computed by hand."""

    def __init__(self, num_classes, size=4):
        super().__init__(nn.Flatten(), nn.Linear(3 * size * size, num_classes))


def classifier(net=Linear, **options):
    torch.manual_seed(0)
    module = FoodClassifier(net=net, **options)
    module.expect(FACTS)
    module.configure_model()
    module.log = module.log_dict = lambda *args, **kwargs: None
    module._trainer = type("T", (), {"world_size": 1, "accumulate_grad_batches": 1})()
    return module


def batch(count=5, size=4):
    torch.manual_seed(1)
    x = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return {"x": x, "y": torch.randint(0, 3, (count,)), "row": torch.arange(count)}


def test_images_are_normalised_by_the_facts():
    x = batch()["x"]
    expected = (x.double() / 255 - FACTS["mean"].view(3, 1, 1)) / FACTS["deviation"].view(3, 1, 1)
    torch.testing.assert_close(classifier().normalised(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_cross_entropy(smoothing):
    module, data = classifier(label_smoothing=smoothing), batch()
    p = module(data["x"]).log_softmax(1)
    expected = torch.stack(
        [-(1 - smoothing) * row[y] - smoothing * row.mean() for row, y in zip(p, data["y"], strict=True)]
    ).mean()
    torch.testing.assert_close(module.training_step(data, 0), expected)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.999])
def test_fixmatch_counts_confident_images_alone(threshold):
    module, data = classifier(pseudo_threshold=threshold, pseudo_weight=2.0), batch()
    plain = module.training_step(data, 0)
    weak, strong = batch(7)["x"], batch(7)["x"].flip(3)
    sure, label = module(weak).softmax(1).max(1)
    scores = module(strong).log_softmax(1)
    kept = [-scores[i, label[i]] for i in range(7) if sure[i] >= threshold]
    assert len(kept) == 7 if threshold == 0 else len(kept) < 7
    expected = plain + 2.0 * torch.stack([*kept, torch.zeros(())]).sum() / 7
    total = module.training_step(data | {"weak": weak, "strong": strong}, 0)
    torch.testing.assert_close(total, expected)
    assert module.net.training
    module.zero_grad()
    total.backward()
    assert module.net[1].weight.grad.abs().sum() > 0


def test_views_count_half_as_the_course_says():
    module, data = classifier(), batch()
    views = torch.stack([batch()["x"].flip(3), batch()["x"].flip(2)], dim=1)
    expected = 0.5 * module(data["x"]) + 0.25 * module(views[:, 0]) + 0.25 * module(views[:, 1])
    torch.testing.assert_close(module.scores(data | {"views": views}), expected)
    shares = module.predict_step(data | {"views": views}, 0)["prediction"]
    torch.testing.assert_close(shares, expected.softmax(1))


def test_mixing_trains_on_both_classes(monkeypatch):
    seen = []
    monkeypatch.setattr("modules.hw3_food.mixup", lambda x, t, a: seen.append(("mixup", a)) or (x, t))
    monkeypatch.setattr("modules.hw3_food.cutmix", lambda x, t, a: seen.append(("cutmix", a)) or (x, t))
    module, data = classifier(mixup=0.2, cutmix=1.0), batch()
    for _ in range(40):
        module.training_step(data, 0)
    counts = {kind: seen.count(kind) for kind in set(seen)}
    assert counts.keys() == {("mixup", 0.2), ("cutmix", 1.0)}
    assert min(counts.values()) > 8


# a real training


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("food") / "sample"
    write_food(folder)
    return folder


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    torch.manual_seed(0)
    data = FoodData(
        dir=str(sample),
        image_size=32,
        batch_size=16,
        augment=[v2.RandomResizedCrop(24, (0.5, 1.0)), v2.RandomHorizontalFlip()],
    )
    module = FoodClassifier(
        functools.partial(torch.optim.AdamW, lr=3e-3), functools.partial(ResNet, width=8, blocks=(1, 1, 1)), 0.1
    )
    trainer = Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path_factory.mktemp("run"),
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module, data


def test_it_learns(trained):
    trainer, _, _ = trained
    assert trainer.callback_metrics["val/accuracy"] > 0.4  # chance: 1 of 11
    assert trainer.callback_metrics["train/accuracy"] > 0.4


def test_metrics_are_those_of_the_whole_held_out_set(trained):
    trainer, module, data = trained
    module.eval()
    right, loss = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            scores = module(batch["x"])
            right.append(scores.argmax(1) == batch["y"])
            loss.append(nn.functional.cross_entropy(scores, batch["y"], reduction="none"))
    right, loss = torch.cat(right), torch.cat(loss)
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss.double().mean().item(), rel=1e-4)
    matrix = module.confusion.compute()
    assert matrix.sum() == len(right)
    assert matrix.diagonal().sum() == right.sum()


def test_only_the_images_shown_are_kept(trained):
    _, module, _ = trained
    shown = [*module._images, *(image for *_, image in module._worst)]
    assert sum(x.untyped_storage().nbytes() for x in shown) == sum(x.numel() for x in shown)


def test_a_network_without_convolutions_can_be_drawn(trained):
    trainer, _, data = trained
    module = FoodClassifier(net=functools.partial(Linear, size=32))
    trainer.validate(module, data, verbose=False)
    assert {"confusion", "worst_mistakes"} <= module.draw().keys()


def test_pictures(trained):
    _, module, _ = trained
    training = module.net.training
    figures = module.draw()
    assert figures.keys() == {
        "confusion", "class_accuracy", "features", "first_filters", "worst_mistakes", "grad_cam",
    }  # fmt: skip
    assert module.net.training == training
    ((columns, rows),) = module.tables().values()
    assert columns == ["true", "predicted", "probability"]
    assert len(rows) == int(module.confusion.compute().sum())


@pytest.mark.parametrize("net", [functools.partial(CNN, channels=(4, 4), hidden=(8,)), ResNet])
def test_features_are_the_stages_means(net):
    module = classifier(net).eval()
    x = batch(3, 32)["x"]
    last = module.stages()[-1]
    found = []
    handle = last.register_forward_hook(lambda m, a, out: found.append(out.mean((2, 3))))
    module(x)
    handle.remove()
    features = module.features(x)
    torch.testing.assert_close(features["last layer"], found[0])
    assert features["middle layer"].shape[0] == 3
    assert not last._forward_hooks


def test_a_network_of_torchvision_takes_part(trained):
    from torchvision.models import squeezenet1_1

    module = classifier(squeezenet1_1).eval()
    assert module(batch(2, 64)["x"]).shape == (2, 3)
    assert module.features(batch(2, 64)["x"])["last layer"].shape[0] == 2
