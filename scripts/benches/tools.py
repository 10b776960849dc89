"""What all benchmarks share: medians, the machine's description, memory, an empty cache."""

import contextlib
import io
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch


def quiet_lightning() -> None:
    """Keep what Lightning says of seeds, devices and steps out of the tables."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def environment(threads: int) -> str:
    """Device, threads and versions behind the figures."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
        )
        device = f"CPU ({name or platform.machine()}), {threads} threads"
    names = ("torch", "torchvision", "lightning", "numpy", "pillow", "scikit-learn")
    return f"{device}; Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names)


def medians(parts: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each part; the parts take turns, so that a slow moment of the machine hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


@contextlib.contextmanager
def empty_cache(place: Path | None = None) -> Iterator[Path]:
    """A cache of its own, below `place`, without the bars of building it."""
    before = os.environ.get("LEEML_CACHE")
    with tempfile.TemporaryDirectory(dir=place) as folder, contextlib.redirect_stderr(io.StringIO()):
        os.environ["LEEML_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["LEEML_CACHE"]
            if before is not None:
                os.environ["LEEML_CACHE"] = before


def resident() -> dict[str, float]:
    """MB in memory now: anonymous pages, pages of memory maps and of other files."""
    sums, kind = {"anonymous": 0.0, "map": 0.0, "files": 0.0}, "files"
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field, value = line.split(maxsplit=1)
        if field[-1] != ":":
            kind = "map" if line.endswith(".npy") else "files"
        elif field == "Anonymous:":
            sums["anonymous"] += int(value.split()[0]) / 1024
            sums[kind] -= int(value.split()[0]) / 1024
        elif field == "Rss:":
            sums[kind] += int(value.split()[0]) / 1024
    return sums


def peak_memory() -> float:
    """MB that this process had in memory at its most."""
    status = Path("/proc/self/status").read_text()  # not getrusage, whose peak begins with that of the parent
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
