"""Datasets of images: rows to train on, augmented, and rows to judge."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

WEAK = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(0, translate=(0.125, 0.125))])  # FixMatch, section 2.3


class Pictures:
    """Images (N, S, S, 3) in a memory map; a copy in another process opens the file again, not copies it."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __getstate__(self) -> dict[str, Any]:
        return {"path": getattr(self.images, "filename", None) or self.images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path = state["path"]
        self.images = path if isinstance(path, np.ndarray) else np.load(path, mmap_mode="r")

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S), channels last in memory."""
        return torch.from_numpy(self.images[rows.numpy()]).permute(0, 3, 1, 2)


def varied(x: Tensor, keys: Tensor, transform: nn.Module, *key: int) -> Tensor:
    """Every image (B, 3, S, S) changed in its own way, a pure function of its keys (B, K) and the batch's key."""
    if isinstance(transform, nn.Identity):
        return x
    out = []
    with torch.random.fork_rng(devices=[]):  # the network's own noise goes on as if nothing had been drawn
        for image, own in zip(x, keys.tolist(), strict=True):
            state = np.random.SeedSequence((*key, *own)).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(state[0] >> np.uint64(1)))
            out.append(transform(image))
    return torch.stack([image.permute(1, 2, 0) for image in out]).permute(0, 3, 1, 2)  # channels last in memory


class TrainRows(Dataset):
    """Augmented batches for (epoch, rows (1 + k, B), draws): x uint8 (B, 3, H, W), y (B,), row (B,).

    With unlabelled images also weak (kB, 3, S, S) and strong (kB, 3, H, W), two views of each.
    """

    def __init__(
        self, pictures: Pictures, labels: Tensor, augment: nn.Module, seed: int, unlabelled: Pictures | None = None
    ) -> None:
        self.pictures, self.labels, self.augment, self.seed = pictures, labels, augment, seed
        self.unlabelled = unlabelled

    def __getitem__(self, index: tuple[int, Tensor, Tensor]) -> dict[str, Tensor]:
        epoch, table, draws = index
        rows, keys = table[0], torch.stack((table, draws), dim=-1)
        x = varied(self.pictures[rows], keys[0], self.augment, self.seed, epoch, 0)
        batch = {"x": x, "y": self.labels[rows], "row": rows}
        if self.unlabelled is not None:
            plain, keys = self.unlabelled[table[1:].flatten()], keys[1:].flatten(0, 1)
            batch["weak"] = varied(plain, keys, WEAK, self.seed, epoch, 1)
            batch["strong"] = varied(plain, keys, self.augment, self.seed, epoch, 2)
        return batch


class JudgedRows(Dataset):
    """Batches as they are for rows (B,): x uint8 (B, 3, S, S), row (B,), y (B,) where known.

    With test-time augmentation also views (B, K, 3, H, W), K augmented versions of each.
    """

    def __init__(self, pictures: Pictures, labels: Tensor | None, augment: nn.Module, views: int, seed: int) -> None:
        self.pictures, self.labels, self.augment, self.views, self.seed = pictures, labels, augment, views, seed

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        batch = {"x": self.pictures[rows], "row": rows}
        if self.labels is not None:
            batch["y"] = self.labels[rows]
        if self.views:
            seen = [varied(batch["x"], rows.unsqueeze(1), self.augment, self.seed, k, 3) for k in range(self.views)]
            batch["views"] = torch.stack(seen, dim=1)
        return batch
