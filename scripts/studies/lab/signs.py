"""Images that studies make: signs somewhere in noise, as many as are wanted."""

import torch
from torch import Tensor


def made_images(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bytes (N, 3, S, S) and classes (N,): one of 8 signs of 5 x 5 pixels somewhere in noise, in some colour."""
    signs = torch.rand(8, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5  # the same for all
    y = torch.randint(8, (count,), generator=generator)
    places = torch.randint(side - 4, (2, count), generator=generator)
    image = torch.zeros(count, side, side)
    rows = torch.arange(count)
    for i in range(5):
        for j in range(5):
            image[rows, places[0] + i, places[1] + j] = signs[y, i, j].float()
    colour = 80 + 80 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 50 + 25 * torch.randn(count, 3, side, side, generator=generator)
    return (noise + colour * image.unsqueeze(1)).clamp(0, 255).byte(), y


def sign_facts(x: Tensor) -> dict[str, object]:
    """What HW3's module must know of such images (N, 3, S, S): classes, mean and deviation of the channels."""
    pixels = x.double() / 255
    return {
        "classes": [str(number) for number in range(8)],
        "mean": pixels.mean((0, 2, 3)).float(),
        "deviation": pixels.std((0, 2, 3)).float(),
    }
