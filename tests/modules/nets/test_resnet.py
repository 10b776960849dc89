"""ResNet against torchvision's with the same weights; the plain net is the same without shortcuts."""

import pytest
import torch
import torchvision
from torch import nn

from modules.nets.resnet import ResNet


@pytest.mark.parametrize(("ours", "theirs"), [((2, 2, 2, 2), "resnet18"), ((3, 4, 6, 3), "resnet34")])
@pytest.mark.parametrize("training", [True, False])
def test_equals_torchvision(ours, theirs, training):
    torch.manual_seed(0)
    other = getattr(torchvision.models, theirs)(num_classes=11)
    for part in other.modules():
        if isinstance(part, nn.BatchNorm2d):  # as if trained: no statistic is at its start
            nn.init.uniform_(part.weight, 0.5, 1.5), nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean), nn.init.uniform_(part.running_var, 0.5, 2.0)
    net = ResNet(11, ours)
    net.load_state_dict(other.state_dict())
    x = torch.randn(4, 3, 96, 96)
    torch.testing.assert_close(net.train(training)(x), other.train(training)(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-5)


def test_plain_net_lacks_only_the_shortcuts():
    residual, plain = ResNet(11), ResNet(11, residual=False)
    lacks = residual.state_dict().keys() - plain.state_dict().keys()
    assert lacks
    assert all(".downsample." in name for name in lacks)
    plain.load_state_dict({k: v for k, v in residual.state_dict().items() if k not in lacks})
    block, x = plain.layer1[0].eval(), torch.randn(1, 64, 8, 8)
    torch.testing.assert_close(block(x), nn.functional.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))))
    assert not torch.allclose(residual.layer1[0].eval()(x), block(x))


def test_small_stem_keeps_the_size():
    net = ResNet(11, stem="small", width=8)
    sizes = {}
    net.layer1.register_forward_hook(lambda module, args, out: sizes.update(first=tuple(out.shape)))
    net.layer4.register_forward_hook(lambda module, args, out: sizes.update(last=tuple(out.shape)))
    net(torch.zeros(2, 3, 32, 32))
    assert sizes == {"first": (2, 8, 32, 32), "last": (2, 64, 4, 4)}
