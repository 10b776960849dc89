"""leeml bench: speed and accuracy of a homework against plain references, in one process run, printed as ratios."""

import argparse
import contextlib
import difflib
import importlib
import inspect
import io
import os
import pkgutil
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from datamodules.errors import DataError
from scripts import benches
from scripts.mistakes import UsageError


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
def empty_cache() -> Iterator[None]:
    """A cache of its own, without the bars of building it."""
    before = os.environ.get("LEEML_CACHE")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.environ["LEEML_CACHE"] = folder
        try:
            yield
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


def main(args: list[str]) -> int:
    """Run one homework's benchmark."""
    known = [m.name for m in pkgutil.iter_modules(benches.__path__)]
    parser = argparse.ArgumentParser(prog="leeml bench", description=__doc__)
    parser.add_argument("homework", help=", ".join(known))
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder with one sub-folder a homework")
    parser.add_argument("--only", choices=["speed", "accuracy"], help="one half of it")
    parser.add_argument("--levels", nargs="+", default=["boss"], help="levels in the accuracy table")
    parser.add_argument(
        "--decoding", nargs="+", type=Path, metavar="RUN", help="instead: score and speed of trained translators"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps of each level in that table (hw4_speaker)")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns; medians are reported")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    own = parser.parse_args(args[1:])
    if own.homework not in known:
        near = difflib.get_close_matches(own.homework, known, 1, 0.4)
        raise DataError(
            f"no benchmark of {own.homework!r}; " + (f"did you mean {near[0]}?" if near else f"there are {known}")
        )
    for name in ("repeats", "threads"):
        if getattr(own, name) < 1:
            raise UsageError(f"--{name} {getattr(own, name)}: expected at least 1")
    torch.set_num_threads(own.threads)
    print(environment(own.threads))
    bench = importlib.import_module(f"scripts.benches.{own.homework}")
    if own.decoding:
        if not hasattr(bench, "decoding"):
            raise DataError(f"{own.homework} does not translate: --decoding is for hw5_translation")
        bench.decoding(own.root, own.decoding, own.repeats)
        return 0
    shorter = {} if own.steps is None else {"steps": own.steps}
    if shorter and "steps" not in inspect.signature(bench.accuracy).parameters:
        raise DataError(f"{own.homework}: --steps is for hw4_speaker, the levels of others run as their configs say")
    if own.only != "accuracy":
        bench.speed(own.root, own.repeats)
    if own.only != "speed":
        bench.accuracy(own.root, own.levels, **shorter)
    return 0
