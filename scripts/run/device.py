"""What the devices at hand are good for: number formats, and how many of them a run takes."""

import statistics
import time
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What products are computed in, by the name of a precision."""
FASTER = 1.3  # bf16 must be so many times as fast on a CPU: small networks gain less than the one that is timed


def use_tensor_cores() -> None:
    """Let an NVIDIA GPU multiply float32 matrices as TF32, whose 10 bits are enough here; a CPU stays exact."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that a model works in outside of a trainer.

    Args:
        device: Of the model.
        precision: As trainer.precision, but that "auto" leaves a CPU in float32.
    """
    if precision == "auto":
        precision = best_precision(True) if device.type == "cuda" else "32-true"
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def best_precision(on_gpu: bool) -> str:
    """What trainer.precision "auto" stands for.

    GPUs of capability 8.0 and more (Ampere) have bfloat16; older ones, as a T4 or P100, have float16 alone, whose
    loss is scaled. A CPU gets bfloat16 where it is faster by a measurement of a second.
    """
    if on_gpu:
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
    return "bf16-mixed" if _faster_in_bf16() else "32-true"


def _faster_in_bf16(seconds: float = 1.0) -> bool:
    """Whether a small network's step is so much faster under autocast on this CPU."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))
        x = torch.randn(512, 256)
    times: dict[bool, list[float]] = {False: [], True: []}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for low, found in times.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = net(x).square().mean()
            loss.backward()
            found.append(time.perf_counter() - start)
    plain, half = (statistics.median(found[1:] or found) for found in times.values())
    return plain > FASTER * half


def settle_device(trainer: Any) -> None:
    """Choose the precision that "auto" stands for, synchronise batch norms over GPUs, refuse what would stop later.

    Args:
        trainer: The trainer's configuration; changed in place.

    Raises:
        MisconfigurationException: gradients cannot be clipped as the configuration wants.
    """
    on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if on_gpu:
        use_tensor_cores()
        trainer.sync_batchnorm = True  # of one process nothing changes
    if trainer.precision == "auto":
        trainer.precision = best_precision(on_gpu)
        rank_zero_info(f"trainer.precision auto: {trainer.precision}")
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else getattr(trainer.strategy, "class_path", "")
    if "fsdp" in strategy.lower() and trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value":
        raise MisconfigurationException(
            f"trainer.strategy {strategy} cannot clip gradients by their norm; use ddp, or say "
            "--trainer.gradient_clip_algorithm value, or --trainer.gradient_clip_val null"
        )
