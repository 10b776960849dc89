"""torch.compile for any module, from a config."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torchmetrics import Metric, MetricCollection


class Compiled(Callback):
    """Compile every network of the module in place, so that the names in its checkpoints stay as they are.

    Batches that CriticalPoint looks at go uncompiled: a compiled network cannot be differentiated twice. Recurrent
    networks stay as they are: torch would cut them into a dozen graphs, and their layers are single kernels already.

    Args:
        mode: See torch.compile.
    """

    def __init__(self, mode: str = "default") -> None:
        self.mode = mode

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile once the networks are built and on their device."""
        pl_module.compiled = True  # type: ignore[assignment]
        for child in pl_module.children():
            # a list of networks is never called itself
            for part in child if isinstance(child, nn.ModuleList) else [child]:
                if not isinstance(part, Metric | MetricCollection):
                    part.compile(mode=self.mode)
