"""Grad-CAM against closed forms, and its promise to leave nothing behind."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from modules.pictures.grad_cam import grad_cam

X = torch.randn(5, 3, 9, 7, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 3, 1, 1, 2])


def network(inplace=False):
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def closed_form(net, after_relu):
    """The class activation map (Zhou et al. 2016) of the ReLU's output; or the paper's equations at the convolution."""
    features, w = net[0](X), net[4].weight[TARGET]  # (B, K, h, w), (B, K)
    places = features.shape[2] * features.shape[3]
    if after_relu:
        return torch.einsum("bk,bkhw->bhw", w, features.relu()).relu() / places
    weights = w * (features > 0).float().mean((2, 3)) / places
    return torch.einsum("bk,bkhw->bhw", weights, features).relu()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_it_equals_the_closed_form(layer, inplace):
    net = network(inplace)
    found = grad_cam(net, net[layer], X, TARGET)
    expected = closed_form(net, after_relu=layer == 1)
    assert found.shape == (5, 7, 5)
    assert expected.any(dim=(1, 2)).sum() >= 3  # not a comparison of zeros
    torch.testing.assert_close(found, expected)


def test_each_map_depends_on_its_own_sample_and_target_alone():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 35, 4)).eval()
    together = grad_cam(net, net[2], X, TARGET)
    alone = torch.cat([grad_cam(net, net[2], X[i : i + 1], TARGET[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, grad_cam(net, net[2], X, (TARGET + 1) % 4))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_without_autograd(context):
    net = network()
    expected = grad_cam(net, net[1], X, TARGET)
    with context():
        found = grad_cam(net, net[1], X.clone(), TARGET.clone())  # in inference mode: tensors made in it
        assert not torch.is_grad_enabled()
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_it_works_in_a_trainer_and_with_frozen_weights():
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network().requires_grad_(False)

        def predict_step(self, batch, batch_idx):
            assert torch.is_inference_mode_enabled()
            return grad_cam(self.net, self.net[1], batch * 1, TARGET)

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=True,
    )  # fmt: skip
    (found,) = trainer.predict(Module(), torch.utils.data.DataLoader(X, batch_size=5))
    torch.testing.assert_close(found, closed_form(network(), after_relu=True))


def test_it_leaves_nothing_behind():
    net, x = network(), X.clone()
    before = copy.deepcopy(net.state_dict())
    grad_cam(net, net[1], x, TARGET)
    assert all(not part._forward_hooks and not part._backward_hooks for part in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not x.requires_grad
    assert x.grad is None
    assert not any(part.training for part in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_hook_goes_when_the_network_fails():
    net = network()
    with pytest.raises(RuntimeError):
        grad_cam(net, net[0], X[:, :2], TARGET)
    assert not net[0]._forward_hooks


def test_what_it_cannot_do():
    net = network()
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        grad_cam(net, net[4], X, TARGET)
    with pytest.raises(ValueError, match=r"gave \[\]"):
        grad_cam(net, nn.ReLU(), X, TARGET)  # no part of the network
    with pytest.raises(ValueError, match="eval mode"):
        grad_cam(net.train(), net[1], X, TARGET)
