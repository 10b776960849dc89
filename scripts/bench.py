"""leeml bench: speed and accuracy of a homework against plain references, in one process run, printed as ratios.

The benchmark of a homework is a file of scripts/benches with the functions `speed` and `accuracy`, and, for flags or
parts of its own, `add_flags(parser)`. A function gets the flags that its parameters are named after. For --budget it
has `sample(data, module)`, see scripts/benches/budget.py.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import torch

from scripts import benches
from scripts.benches import scale, steps
from scripts.benches.budget import compare
from scripts.benches.tools import environment, quiet_lightning
from scripts.cli.mistakes import Parser, UsageError, near
from scripts.run.device import AUTOCAST

FURTHER = {"scale": scale.main, "steps": steps.main}


def main(args: list[str]) -> int:
    """Run one homework's benchmark, or one of all homeworks."""
    quiet_lightning()
    if (further := FURTHER.get("".join(args[1:2]))) is not None:
        return further(args[2:])
    known = [m.name for m in pkgutil.iter_modules(benches.__path__) if m.name.startswith("hw")]
    more = (
        "A homework may have more: leeml bench NAME -h. Noise of full size: leeml bench scale. Samples a second and "
        "the share of the device's peak: leeml bench steps."
    )
    parser = Parser(
        prog="leeml bench",
        description=__doc__.splitlines()[0],
        epilog=more,
    )
    parser.add_argument("homework", help=", ".join(known))
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder with one sub-folder a homework")
    parser.add_argument("--only", choices=["speed", "accuracy"], help="one half of it")
    parser.add_argument("--levels", nargs="+", default=["boss"], help="levels in the accuracy table")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns; medians are reported")
    parser.add_argument("--budget", help="train the course's code and each of --levels for so long, such as 5m")
    parser.add_argument(
        "--precision", choices=["32-true", "auto", *AUTOCAST], default="32-true",
        help="for --budget: trainer.precision of our levels",
    )  # fmt: skip
    parser.add_argument("--data.edition", dest="edition", help="for --budget, where there are several")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    named = next((word for word in args[1:] if word in known), None)
    bench = importlib.import_module(f"scripts.benches.{named}") if named else None
    if bench and hasattr(bench, "add_flags"):
        bench.add_flags(parser)
    own = parser.parse_args(args[1:]) if bench else parser.parse_known_args(args[1:])[0]
    if own.homework != named:
        hint = near(own.homework, known, 0.4) or f"; there are {', '.join(known)}"
        raise UsageError(f"no benchmark of {own.homework!r}{hint}")
    assert bench is not None
    for name in ("repeats", "threads"):
        if getattr(own, name) < 1:
            raise UsageError(f"--{name} {getattr(own, name)}: expected at least 1")
    torch.set_num_threads(own.threads)
    print(environment(own.threads))
    if own.budget:
        data = {"--data.root": own.root, "--data.edition": own.edition}
        compare(bench, data, own.levels, own.budget, own.precision)
        return 0
    for part in [own.only] if own.only else ["speed", "accuracy"]:
        measure: Callable[..., None] = getattr(bench, part)
        measure(**{name: getattr(own, name) for name in inspect.signature(measure).parameters})
    return 0
