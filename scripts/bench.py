"""leeml bench: speed and accuracy of a homework against plain references, in one process run, printed as ratios."""

import argparse
import difflib
import importlib
import inspect
import pkgutil
from pathlib import Path

import torch

from datamodules.errors import DataError
from scripts import benches
from scripts.benches.tools import environment
from scripts.cli.mistakes import UsageError


def main(args: list[str]) -> int:
    """Run one homework's benchmark."""
    known = [m.name for m in pkgutil.iter_modules(benches.__path__) if m.name.startswith("hw")]
    parser = argparse.ArgumentParser(prog="leeml bench", description=__doc__)
    parser.add_argument("homework", help=", ".join(known))
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder with one sub-folder a homework")
    parser.add_argument("--only", choices=["speed", "accuracy"], help="one half of it")
    parser.add_argument("--levels", nargs="+", default=["boss"], help="levels in the accuracy table")
    parser.add_argument(
        "--decoding", nargs="+", type=Path, metavar="RUN", help="instead: score and speed of trained translators"
    )
    parser.add_argument("--trust", action="store_true", help="allow those runs to use classes that leeml does not know")
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
        bench.decoding(own.root, own.decoding, own.repeats, own.trust)
        return 0
    shorter = {} if own.steps is None else {"steps": own.steps}
    if shorter and "steps" not in inspect.signature(bench.accuracy).parameters:
        raise DataError(f"{own.homework}: --steps is for hw4_speaker, the levels of others run as their configs say")
    if own.only != "accuracy":
        bench.speed(own.root, own.repeats)
    if own.only != "speed":
        bench.accuracy(own.root, own.levels, **shorter)
    return 0
