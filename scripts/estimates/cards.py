"""Cards and their rates, and how long the operations of a step take on one: a roofline.

The rates are those of the makers' data sheets (dense, without sparsity); the shares of them that a training step
reaches are assumptions. Of the CPU at hand they are measured.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from scripts.estimates.counting import Operation

REACHED = 0.4  # of the arithmetic that a data sheet promises
REACHED_MEMORY = 0.75  # of its bandwidth
REACHED_CPU = 0.75  # of a large product's rate, by the products of a step (measured with five configs, docs/plan.md)
START = 8e-6  # seconds of the host for each operation that starts a kernel, from Python, without torch.compile
LOOP = 2e-3  # seconds of the host for a batch: Lightning's loop and ours (measured with HW1, docs/hw1_covid.md)
CONTEXT = 1e9  # bytes that CUDA, its libraries and gaps take


class Card(NamedTuple):
    """What a card can do."""

    title: str
    memory: float
    """Bytes; 0: not limited here."""
    half: float
    """Operations a second, of 16-bit products."""
    single: float
    """Of 32-bit products; TF32 where there is one."""
    bandwidth: float
    """Bytes a second."""
    start: float
    """Seconds to start an operation."""
    loaders: int
    """Processes that make batches beside the training; 0: the training waits for them."""

    def arithmetic(self, operation: Operation) -> float:
        """Seconds for its products and memory traffic alone."""
        rate = self.half if operation.half else self.single
        return max(operation.flops / rate, operation.traffic / self.bandwidth)

    def seconds(self, operations: Iterable[Operation], waiting: int = 0) -> float:
        """Seconds for the operations of a batch, one after the other.

        Args:
            operations: Of a step, or of its forward pass.
            waiting: Further kernels that do little, such as those of each time step of a recurrent layer.
        """
        listed = list(operations)
        busy, starts = sum(map(self.arithmetic, listed)), (len(listed) + waiting) * self.start + LOOP
        return max(busy, starts) if self.loaders else busy + starts  # a GPU computes while the host starts what follows


def _gpu(title: str, gigabytes: float, half: float, single: float, bandwidth: float, loaders: int) -> Card:
    tera = 1e12 * REACHED
    return Card(title, gigabytes * 1e9, half * tera, single * tera, bandwidth * 1e9 * REACHED_MEMORY, START, loaders)


# TFLOPS of 16 and 32 bits, GB/s, and the processes that usual machines around such a card leave for the loader
GPUS = {
    "t4": _gpu("T4", 16, 65, 8.1, 320, 1),  # Colab: two cores
    "p100": _gpu("P100", 16, 18.7, 9.3, 732, 3),  # Kaggle: four cores; no tensor cores
    "v100": _gpu("V100", 16, 125, 15.7, 900, 7),
    "a100": _gpu("A100", 40, 312, 156, 1555, 7),
    "h100": _gpu("H100", 80, 989, 495, 3350, 7),
}


def _median(call: Callable[[], object], seconds: float = 0.2) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def product_rate(dtype: torch.dtype, side: int) -> float:
    """Operations a second of this CPU in products of square matrices, measured."""
    a = torch.randn(side, side).to(dtype)
    return 2 * side**3 / _median(lambda: a @ a)


def this_cpu() -> Card:
    """The CPU at hand, by a short measurement of a product, a copy and a small addition."""
    large, small = torch.randn(2**23), torch.randn(8)
    target = torch.empty_like(large)
    rate = REACHED_CPU * product_rate(torch.float32, 512)
    bandwidth = 2 * large.nbytes / _median(lambda: target.copy_(large))
    start = _median(lambda: [small.add(small) for _ in range(100)]) / 100
    title = f"this CPU ({torch.get_num_threads()} threads)"
    return Card(title, 0.0, rate, rate, bandwidth, start, 0)


def card_named(name: str) -> Card:
    """A card by its name of `GPUS`, or cpu."""
    return this_cpu() if name == "cpu" else GPUS[name]
