"""How much memory a training step takes: weights, gradients, the optimizer's state, and what is saved for backward."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes of the storages of tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class SavedForBackward:
    """Counts what autograd keeps of the forward passes made within it, each storage once, without the weights.

    Args:
        module: Whose weights are not counted: they are there anyway.
    """

    def __init__(self, module: nn.Module) -> None:
        self._own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._saved: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no address comes twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._saved[storage.data_ptr()] = storage.nbytes()
            self._kept.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        """What was saved so far."""
        return sum(self._saved.values())

    def __enter__(self) -> "SavedForBackward":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._kept.clear()


def lasting(module: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, int]:
    """Bytes that stay from step to step: weights with buffers, gradients, and the optimizers' state."""
    states = [v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    return {
        "weights": size([*module.parameters(), *module.buffers()]),
        "gradients": size([p for p in module.parameters() if p.requires_grad]),
        "optimizer": size(states),
    }


class MemoryNeeded(Callback):
    """Says after the first step of a dry run (`--trainer.fast_dev_run 1`) what a step of this size needs.

    On any device: what autograd saves for backward depends on the batch and the precision, not on who computes. A GPU
    takes somewhat more: workspaces of kernels, and gaps (about a gigabyte with torch's own libraries).
    """

    def __init__(self) -> None:
        self.needed: dict[str, int] = {}
        """Bytes by what they are for."""
        self._saved: SavedForBackward | None = None
        self._watching = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch what the forward pass saves."""
        if not self.needed:
            self._saved, self._watching = SavedForBackward(pl_module), True
            self._saved.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """All is saved that will be."""
        if self._saved is not None and self._watching:
            self._saved.__exit__(None, None, None)
            self._watching = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print how much memory the step took."""
        if self.needed or self._saved is None:
            return
        self.needed = {**lasting(pl_module, trainer.optimizers), "saved for backward": self._saved.bytes}
        parts = ", ".join(f"{name} {count / 1e6:.0f}" for name, count in self.needed.items())
        total = sum(self.needed.values())
        rank_zero_info(f"memory of a step, in MB: {parts}; {total / 1e9:.2f} GB together, on a GPU about 1 GB more")
