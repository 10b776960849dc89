"""torch.compile for any module, from a config."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torchmetrics import Metric, MetricCollection


class Compiled(Callback):
    """Compile every network of the module in place, so that the names in its checkpoints stay as they are.

    Batches that CriticalPoint looks at go uncompiled: a compiled network cannot be differentiated twice. Recurrent
    networks stay as they are: torch would cut them into a dozen graphs, and their layers are single kernels already.

    Args:
        mode: See torch.compile. reduce-overhead records a network's kernels as a CUDA graph, which the host starts as
            one: for batches of one shape (HW1, HW2's windows, HW3, HW4), without accumulated gradients.
    """

    def __init__(
        self, mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    ) -> None:
        self.mode = mode

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile once the networks are built and on their device."""
        pl_module.compiled = True  # type: ignore[assignment]
        for child in pl_module.children():
            # a list of networks is never called itself
            for part in child if isinstance(child, nn.ModuleList) else [child]:
                if not isinstance(part, Metric | MetricCollection):
                    part.compile(mode=self.mode)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell CUDA graphs that what the step before put out may be overwritten: all networks make one step."""
        torch.compiler.cudagraph_mark_step_begin()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The same: without it, each network of an ensemble would overwrite the answers of the one before."""
        torch.compiler.cudagraph_mark_step_begin()
