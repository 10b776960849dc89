"""ResNet of basic blocks (He et al. 2015, arXiv 1512.03385); without its shortcuts it is that paper's plain net."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (eq. 1 and 2): (B, C, H, W) -> (B, D, H/stride, W/stride).

    Args:
        channels, out: C and D.
        stride: Of the first convolution.
        residual: Add the input, brought to the output's shape by a 1 x 1 convolution where it has another one.
    """

    def __init__(self, channels: int, out: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.residual, self.stride = residual, stride
        self.downsample: nn.Module = nn.Identity()
        if residual and (stride != 1 or channels != out):
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """F(x) + x, or F(x) alone in the plain net."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if not self.residual:
            return self.relu(out)
        # not a 1 x 1 convolution with a stride: from under 8 channels oneDNN's writes beyond its memory on AVX2
        return self.relu(out + self.downsample(x[..., :: self.stride, :: self.stride]))


class ResNet(nn.Module):
    """Four stages of basic blocks; [2, 2, 2, 2] is ResNet-18, its weights named as torchvision's.

    Args:
        num_classes: Width of the output.
        blocks: Blocks in each stage; every stage but the first halves height and width and doubles the channels.
        width: Channels of the first stage.
        residual: False is the plain net with the same layers, which trains worse the deeper it is.
        stem: imagenet (7 x 7, stride 2, then pooling: a quarter of the size) or small (3 x 3, full size), for images of
            about 32 to 64 pixels (section 4.2 of the paper).
        dropout: Share of the features dropped before the last layer.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        residual: bool = True,
        stem: Literal["imagenet", "small"] = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        channels = width
        self.stage_names: list[str] = []
        for number, count in enumerate(blocks):
            out = width * 2**number
            stage = nn.Sequential()
            for block in range(count):
                stage.append(BasicBlock(channels, out, 2 if number and not block else 1, residual))
                channels = out
            self.stage_names.append(f"layer{number + 1}")
            self.add_module(self.stage_names[-1], stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():  # He et al. 2015, arXiv 1502.01852: keeps the variance through ReLU layers
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> list[nn.Module]:
        """The parts whose outputs are feature maps, first to last."""
        return [self.get_submodule(name) for name in self.stage_names]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images, (B, 3, H, W) -> (B, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))
