"""How much memory a training step takes: weights, gradients, the optimizer's state, and what is saved for backward."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes of the storages of tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class MemoryNeeded(Callback):
    """Says after the first step of a dry run (`--trainer.fast_dev_run 1`) what a step of this size needs.

    On any device: what autograd saves for backward depends on the batch and the precision, not on who computes. A GPU
    takes somewhat more: workspaces of kernels, and gaps (about a gigabyte with torch's own libraries).
    """

    def __init__(self) -> None:
        self.needed: dict[str, int] = {}
        """Bytes by what they are for."""
        self._saved: dict[int, int] = {}
        self._hooks: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch what the forward pass saves."""
        if self.needed:
            return
        own = {p.untyped_storage().data_ptr() for p in pl_module.parameters()}
        kept: list[Tensor] = []  # so that no address comes twice

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self._saved[storage.data_ptr()] = storage.nbytes()
                kept.append(tensor)
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """All is saved that will be."""
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say it."""
        if self.needed:
            return
        weights = [*pl_module.parameters(), *pl_module.buffers()]
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        states = [v for o in trainer.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
        self.needed = {
            "weights": size(weights),
            "gradients": size(trained),
            "optimizer": size(states),
            "saved for backward": sum(self._saved.values()),
        }
        parts = ", ".join(f"{name} {count / 1e6:.0f}" for name, count in self.needed.items())
        total = sum(self.needed.values())
        rank_zero_info(f"memory of a step, in MB: {parts}; {total / 1e9:.2f} GB together, on a GPU about 1 GB more")
