"""leeml doctor: versions, devices and what they can do, data, fonts, W&B, disk: what a bug report should hold."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from datamodules.files.places import PROJECT, cache_folder, default_root
from scripts.cli.homeworks import data_class, homeworks
from scripts.cli.mistakes import Parser

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "jsonargparse", "wandb", "sacrebleu")
EXTRAS = ("gradio", "optuna", "onnx", "onnxruntime", "pillow-heif")
GIGABYTE = 1e9


def versions() -> Iterator[tuple[str, str]]:
    """Python, the system, and the packages that matter."""
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    yield "packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield "extras", ", ".join(f"{name} {_version(name)}" for name in EXTRAS)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def devices() -> Iterator[tuple[str, str]]:
    """Processor and GPUs, with the number formats that each is fast in."""
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fast = [name for flag, name in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX")) if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bf16 = f"bf16 by {' and '.join(fast)}" if fast else "no fast bf16"
    yield "cpu", f"{cores} cores, {torch.get_num_threads()} torch threads, {bf16}, torch.compile {_compiler()}"
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        yield "gpu", "Apple MPS: --trainer.accelerator mps" if mps else "none that torch can use"
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        precision = "bf16-mixed" if (card.major, card.minor) >= (8, 0) else "16-mixed (bf16 would be emulated)"
        yield (
            f"gpu {i}",
            f"{card.name}, {card.total_memory / GIGABYTE:.0f} GB, capability {card.major}.{card.minor}: {precision}, "
            f"channels_last {'yes' if card.major >= 7 else 'no'}, torch.compile {'yes' if card.major >= 7 else 'no'}",
        )


def _compiler() -> str:
    return "yes" if shutil.which(os.environ.get("CXX", "g++")) else "no (it needs g++)"


def data(root: Path) -> Iterator[tuple[str, str]]:
    """What lies in the data folder for each homework."""
    yield "data", str(root)
    for name in homeworks():
        folder, cls = root / name, data_class(name)
        editions = sorted(path.name for path in folder.iterdir() if cls.has_files(path)) if folder.is_dir() else []
        if cls.has_files(folder):  # one folder inside may be why: it is not a second set
            editions = [name, *(editions if len(editions) > 1 else [])]
        yield f"  {name}", ", ".join(editions) or f"none (leeml data sample {name} makes a small generated set)"


def fonts() -> str:
    """Whether Chinese text can be drawn."""
    from modules.pictures.style import chinese_fonts

    found = chinese_fonts()
    return found[0] if found else "none with Chinese letters (Debian and Ubuntu: apt install fonts-noto-cjk)"


def disk() -> Iterator[tuple[str, str]]:
    """Free space where runs and the cache go."""
    for name, path in (("runs", PROJECT / "runs"), ("cache", cache_folder())):
        there = next(place for place in (path, *path.parents) if place.is_dir())
        writable = "" if os.access(there, os.W_OK) else ", cannot be written to"
        yield f"free for {name}", f"{shutil.disk_usage(there).free / GIGABYTE:.0f} GB at {path}{writable}"


def report(root: Path) -> Iterator[tuple[str, str]]:
    """All of it, in the order that it is printed."""
    from callbacks.wandb_record import has_key

    yield from versions()
    yield from devices()
    yield from data(root)
    yield "fonts", fonts()
    yield "W&B", "a key is there" if has_key() else "no key: runs stay offline (wandb login, or WANDB_API_KEY)"
    yield from disk()


def main(args: list[str]) -> int:
    """Print a line for each thing."""
    parser = Parser(prog="leeml doctor", description=__doc__)
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder (default: $LEEML_DATA, else data/)")
    own = parser.parse_args(args[1:])
    for name, text in report((own.root or default_root()).expanduser()):
        print(f"{name:<17} {text}", flush=True)
    return 0
