"""Mixing two images and their targets into one, each image of a batch in its own proportion."""

import torch
from torch import Tensor
from torch.distributions import Beta


def _shares(target: Tensor, alpha: float, *shape: int) -> Tensor:
    """Draws from Beta(alpha, alpha), made where the target is; unchecked, as each check waits for the device."""
    both = target.new_full((), alpha)
    return Beta(both, both, validate_args=False).sample(shape)


def mixup(x: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): lambda x_i + (1 - lambda) x_j, and so the targets.

    Args:
        x: Images (B, 3, H, W).
        target: Class probabilities (B, C).
        alpha: lambda ~ Beta(alpha, alpha), one an image.
    """
    other = torch.randperm(len(x), device=x.device)
    share = _shares(target, alpha, len(x))
    by_image, by_class = share.view(-1, 1, 1, 1).to(x.dtype), share.view(-1, 1)
    return torch.lerp(x[other], x, by_image), torch.lerp(target[other], target, by_class)


def cutmix(x: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019, arXiv 1905.04899): a box of another image pasted in; targets by the area that is left.

    The box has the share 1 - lambda of the area and a centre anywhere, so the border may cut it; lambda is then
    counted again from its pixels, as in the authors' code. Arguments as in `mixup`.
    """
    other = torch.randperm(len(x), device=x.device)
    share = _shares(target, alpha, len(x), 1)
    inside = []  # of the box, (B, H) and (B, W)
    for size in x.shape[2:]:
        half = (size * (1 - share).sqrt() / 2).long()
        centre = (torch.rand(len(x), 1, device=x.device) * size).long()
        away = torch.arange(size, device=x.device) - centre
        inside.append((away >= -half) & (away < half))
    box = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)  # (B, H, W)
    left = 1 - box.to(target.dtype).mean((1, 2)).unsqueeze(1)
    return torch.where(box.unsqueeze(1), x[other], x), torch.lerp(target[other], target, left)
