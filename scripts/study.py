"""leeml study: the ideas of the notes as small experiments, each with a claim that can fail and a verdict from data.

`leeml study list` names them, `leeml study NAME` runs one, `leeml study all --report DIR` all, with a page to read.
"""

import ast
import hashlib
import importlib
import json
import os
import pkgutil
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

matplotlib.use("Agg")

from callbacks.files import whole, write_text
from datamodules.errors import DataError
from scripts import studies
from scripts.data import data_class
from scripts.evidence import Finding, Measurements, Study, verdict
from scripts.mistakes import Parser, UsageError, near

KEPT = 1  # form of the kept measurements; another number measures all anew


@dataclass(frozen=True)
class Outcome:
    """What a study gave."""

    name: str
    study: Study[Any]
    quick: bool
    measurements: list[Measurements]
    findings: list[Finding]
    seconds: float
    """Of all measurements together, also those that were kept from an earlier call."""


def names() -> list[str]:
    """All studies, by file, in alphabetical order."""
    return [m.name for m in pkgutil.iter_modules(studies.__path__)]


def load(name: str) -> Study[Any]:
    """The study of a file."""
    return importlib.import_module(f"scripts.studies.{name}").STUDY


def source(place: str) -> tuple[str, int]:
    """Text and first line of "path:name" in the project; the name of a method is Class.method.

    Raises:
        LookupError: nothing of this name is defined there.
    """
    from datamodules.base import PROJECT

    path, _, name = place.partition(":")
    text = (PROJECT / path).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        found = [n for n in node.body if getattr(n, "name", None) == part]
        if not found:
            raise LookupError(f"{place}: no {part!r} there")
        node = found[0]
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]), node.lineno


def state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file in a folder: what tells whether its data has changed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def kept_file(name: str, study: Study[Any], settings: Any, seed: int, root: Path) -> Path:
    """Where a measurement is kept: its name tells settings, seed, data, and the code of study and idea.

    Code of the study are its file, the idea's, and what studies share, and all of datamodules/ where the data is
    generated; what these use in turn is not looked at: after a change there, delete the folder.
    """
    from torch import __version__

    from datamodules.base import PROJECT
    from datamodules.cache import cache_folder

    own = f"scripts/studies/{name}.py"
    shared = re.findall(r"^from scripts\.(study_\w+) import", (PROJECT / own).read_text(encoding="utf-8"), re.MULTILINE)
    places = [own, *(f"scripts/{module}.py" for module in {"study_fit", *shared}), *study.code]
    paths = sorted({place.partition(":")[0] for place in places})
    code = [hashlib.sha256((PROJECT / path).read_bytes()).hexdigest() for path in paths]
    data = [str(root.absolute()), *state(root / study.data)] if study.data else []
    key = json.dumps([KEPT, asdict(settings), seed, data, code, __version__], sort_keys=True)
    return cache_folder() / "studies" / name / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All generators at a seed, and one thread: more of them would add in another order, and get in each other's way.

    The environment variable by which Lightning remembers the seed is put back afterwards.
    """
    import torch
    from lightning.pytorch import seed_everything

    before, threads = os.environ.get("PL_GLOBAL_SEED"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        seed_everything(seed, verbose=False)
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("PL_GLOBAL_SEED", None)
        if before is not None:
            os.environ["PL_GLOBAL_SEED"] = before


def measure(name: str, study: Study[Any], settings: Any, seed: int, root: Path) -> tuple[Measurements, float]:
    """Measurements of one seed and the seconds they took, from the cache where they are."""
    path = kept_file(name, study, settings, seed, root)
    if path.is_file():
        kept = json.loads(path.read_text())
        return kept["measurements"], kept["seconds"]
    start = time.perf_counter()
    with seeded(seed):
        found = study.run(settings, seed, root)
    seconds = time.perf_counter() - start
    text = json.dumps({"measurements": found, "seconds": seconds})
    write_text(path, text)
    return json.loads(text)["measurements"], seconds  # the same types as from the file


def data_root(study: Study[Any], quick: bool, root: Path | None) -> Path:
    """Root of the study's data: the user's for full; for quick generated, and kept in the cache until our code changes.

    It is made beside its place and moved there, so that it is whole, also where two processes make it at once.
    """
    from datamodules.base import PROJECT, default_root
    from datamodules.cache import cache_folder

    if not quick:
        return (root or default_root()).expanduser()
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((PROJECT / "datamodules").glob("*.py"))))
    made = cache_folder() / "studies" / "samples" / code.hexdigest()[:32]
    if study.data is not None and not (made / study.data).is_dir():
        made.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=made, prefix=".") as scratch:
            data_class(study.data).sample(Path(scratch) / study.data / "sample")
            try:
                os.rename(Path(scratch) / study.data, made / study.data)
            except OSError:
                if not (made / study.data).is_dir():  # else another process was first
                    raise
    return made


def takes_gpu(settings: Any) -> bool:
    """Whether some fit of a study has the accelerator "auto", and there is a GPU."""
    import torch

    parts = (settings, getattr(settings, "size", None))
    return any(getattr(part, "accelerator", "") == "auto" for part in parts) and torch.cuda.is_available()


def attempt(name: str, quick: bool, seed: int, root: Path) -> tuple[Measurements, float] | DataError:
    """What a process of its own does: measure a seed, or say what is wrong with the data."""
    study = load(name)
    try:
        return measure(name, study, study.settings(quick), seed, root)
    except DataError as error:
        return error


def run_studies(
    chosen: list[str], quick: bool, seeds: int | None, root: Path | None
) -> tuple[list[Outcome], dict[str, str]]:
    """Outcomes in the order of the notes; studies without their data are left out and named, with the reason.

    As many seeds are measured at a time as there are cores; one by one where they would share a GPU.
    """
    plans = dict(sorted(((name, load(name)) for name in chosen), key=lambda plan: plan[1].number))
    places = {name: data_root(study, quick, root) for name, study in plans.items()}
    tasks = [(name, quick, seed, places[name]) for name, study in plans.items() for seed in range(seeds or study.seeds)]
    kept = [kept_file(name, plans[name], plans[name].settings(quick), seed, place) for name, _, seed, place in tasks]
    missing = sum(not path.is_file() for path in kept)
    at_once = 1 if any(takes_gpu(study.settings(quick)) for study in plans.values()) else min(cpu_count(), missing)
    workers = Parallel(n_jobs=max(1, at_once), return_as="generator")
    found: dict[str, list[tuple[Measurements, float]]] = {name: [] for name in plans}
    left_out = {}
    with tqdm(total=len(tasks), unit="seed", file=sys.stderr) as bar:
        for (name, *_), result in zip(tasks, workers(delayed(attempt)(*task) for task in tasks), strict=True):
            bar.set_description(name)
            if isinstance(result, DataError):
                left_out[name] = str(result)
                bar.total = (bar.total or 0) - 1  # tqdm allows None
                bar.refresh()
            else:
                found[name].append(result)
                bar.update()
    outcomes = []
    for name, study in plans.items():
        if name not in left_out:
            measured, seconds = [m for m, _ in found[name]], sum(s for _, s in found[name])
            outcomes.append(Outcome(name, study, quick, measured, study.judge(measured), seconds))
    return outcomes, left_out


def describe(outcome: Outcome) -> str:
    """Claim, verdict, findings and table as text."""
    study = outcome.study
    columns, rows = study.table(outcome.measurements)
    cells = [columns, *([f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [f"\n{study.number} {outcome.name}: {verdict(outcome.findings)}", f"  claim: {study.claim}"]
    lines += [f"  - {f.text}: {f.result} ({f.numbers})" for f in outcome.findings]
    lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def scalars(found: Measurements) -> dict[str, float]:
    """The single numbers among measurements; those of inner tables as outer/inner."""
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    for name, inner in found.items():
        if isinstance(inner, dict):
            numbers |= {f"{name}/{key}": value for key, value in scalars(inner).items()}
    return numbers


def log_wandb(outcome: Outcome, picture: Path) -> None:
    """One W&B group a study: a run a seed with its numbers, and one with the verdict, the figure and the table."""
    import wandb

    from callbacks.wandb_record import has_key

    def begin(run: str, config: dict[str, Any]) -> Any:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "leeml"), group=f"study-{outcome.name}", name=run, config=config,
            dir=picture.parent, mode=None if has_key() else "offline", reinit="finish_previous",
        )  # fmt: skip

    os.environ.setdefault("WANDB_SILENT", "true")
    study = outcome.study
    settings = asdict(study.settings(outcome.quick))
    for seed, found in enumerate(outcome.measurements):
        with begin(f"seed {seed}", settings | {"seed": seed}) as run:
            run.summary.update(scalars(found))
    with begin("verdict", settings | {"claim": study.claim}) as run:
        columns, rows = study.table(outcome.measurements)
        table = wandb.Table([*columns], [[str(cell) for cell in row] for row in rows])
        run.log({"figure": wandb.Image(str(picture)), "table": table})
        run.summary.update({"verdict": verdict(outcome.findings)} | {f.text: f.result for f in outcome.findings})


def show_list() -> None:
    """Print number, name and claim of every study."""
    for study, name in sorted(((load(name), name) for name in names()), key=lambda pair: pair[0].number):
        print(f"  {study.number:>2}  {name:<17} {study.claim}")


def main(args: list[str]) -> int:
    """Run studies, print their verdicts, save figures, write the page; 1 if a study that was asked for had no data."""
    parser = Parser(prog="leeml study", description=__doc__)
    parser.add_argument("name", help=f"list, all, or one of: {', '.join(names())}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="generated data, under a minute each (default)")
    size.add_argument("--full", action="store_true", help="real data and larger settings")
    parser.add_argument("--seeds", type=int, help="seeds of studies that chance enters (default: the study's own)")
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder with one sub-folder a homework")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write the page DIR/index.html")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases too (offline without a key)")
    own = parser.parse_args(args[1:])
    if own.name == "list":
        show_list()
        return 0
    if own.name not in ("all", *names()):
        hint = near(own.name, names(), 0.4) or f"; there are {', '.join(names())}"
        raise UsageError(f"no study {own.name!r}{hint}")
    if own.seeds is not None and own.seeds < 1:
        raise UsageError(f"--seeds {own.seeds}: expected at least 1")
    if own.root and not own.full:
        raise UsageError("--data.root is for --full: quick studies generate their data")
    outcomes, left_out = run_studies(names() if own.name == "all" else [own.name], not own.full, own.seeds, own.root)
    if own.name in left_out:
        raise DataError(left_out[own.name])
    from datamodules.base import PROJECT

    folder = PROJECT / "runs" / "studies" / ("full" if own.full else "quick")
    for outcome in outcomes:
        print(describe(outcome))
        picture = folder / f"{outcome.name}.png"
        with whole(picture) as scratch:
            outcome.study.figure(outcome.measurements).savefig(scratch, format="png", dpi=130)
        print(f"  figure: {picture}")
        if own.wandb:
            log_wandb(outcome, picture)
    for name, reason in left_out.items():
        print(f"\n{name}: not run: {reason}")
    if own.report:
        from scripts.report import page

        write_text(own.report / "index.html", page(outcomes, left_out))
        print(f"\npage: {own.report / 'index.html'}")
    return 1 if left_out else 0
