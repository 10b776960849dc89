"""The course's CNNs for images, with pooling, or without it as AlphaGo's."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU, a share of the height and width: (B, C, H, W) -> (B, D, H/by, W/by)."""

    def __init__(self, channels: int, out: int, shrink: Literal["pool", "stride"], by: int = 2) -> None:
        pool = shrink == "pool"
        conv = nn.Conv2d(channels, out, 3, stride=1 if pool else by, padding=1)
        super().__init__(conv, nn.BatchNorm2d(out), nn.ReLU(), *([nn.MaxPool2d(by)] if pool else []))


class CNN(nn.Module):
    """Blocks and linear layers; by default the course's network of 2022 and 2023 (12,833,803 parameters, 11 classes).

    That of 2021 has channels [64, 128, 256], hidden [256, 256], by [2, 2, 4] and grid 8 (4,634,891 parameters).
    Whatever the size of the images, the features are brought to grid x grid (at the course's 128 pixels they are).

    Args:
        num_classes: Width of the output.
        channels: Width of each block.
        hidden: Widths of the linear layers before the last one.
        dropout: Share of the inputs of each linear layer that is dropped.
        shrink: pool, as the course; or stride, a network without pooling (Springenberg et al. 2015,
            arXiv 1412.6806): what pooling throws away may matter, as it does on a Go board (Silver et al. 2016).
        by: What each block divides height and width by; null: 2.
        grid: Height and width of the features that the linear layers see.

    Raises:
        ValueError: `by` has not a number for each block.
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        hidden: Sequence[int] = (1024, 512),
        dropout: float = 0.0,
        shrink: Literal["pool", "stride"] = "pool",
        by: Sequence[int] | None = None,
        grid: int = 4,
    ) -> None:
        super().__init__()
        by = by or [2] * len(channels)
        if len(by) != len(channels):
            raise ValueError(f"by has {len(by)} numbers, but channels has {len(channels)}; expected one for each block")
        blocks = zip((3, *channels), channels, by, strict=False)
        self.features = nn.Sequential(*(ConvBlock(before, after, shrink, part) for before, after, part in blocks))
        self.grid = nn.AdaptiveAvgPool2d(grid)
        widths = (grid**2 * channels[-1], *hidden)
        layers: list[nn.Module] = []
        for before, after in zip(widths, hidden, strict=False):
            layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU()]
        self.classifier = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], num_classes))

    @property
    def stages(self) -> list[nn.Module]:
        """The parts whose outputs are feature maps, first to last."""
        return list(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images, (B, 3, H, W) -> (B, num_classes)."""
        return self.classifier(self.grid(self.features(x)).flatten(1))
