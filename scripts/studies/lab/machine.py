"""Runs studies: measures seeds side by side, look by look, and keeps what each gave in the cache."""

import ast
import hashlib
import importlib
import json
import os
import pkgutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from callbacks.files import write_text
from datamodules.errors import DataError
from scripts import studies
from scripts.cli.homeworks import data_class
from scripts.studies.lab.statements import Measurements, Verdict, judge, summary
from scripts.studies.lab.study import Study

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} seeds [{elapsed}{postfix}]"
KEPT = 2  # form of the kept measurements; another number measures all again
JUDGED = 1000
"""First seed that judges; those below are for designing an experiment, and judge nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a study gave."""

    name: str
    study: Study[Any]
    quick: bool
    measurements: list[Measurements]
    verdicts: list[Verdict]
    seconds: float
    """Of all measurements together, also those that were kept from an earlier call."""


def names() -> list[str]:
    """All studies, by file, in alphabetical order."""
    return [m.name for m in pkgutil.iter_modules(studies.__path__) if not m.ispkg]


def load(name: str) -> Study[Any]:
    """The study of a file."""
    return importlib.import_module(f"scripts.studies.{name}").STUDY


def state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file in a folder: what tells whether its data has changed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def measuring_code(project: Path, place: str, name: str = "run") -> dict[str, str]:
    """What a function of a study runs, by "place:name": itself and all that it uses of scripts/studies/.

    Texts, statements and figures are not among it, nor are the settings: they stand in the key themselves.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    parsed: dict[str, list[ast.stmt]] = {}
    left = [(place, name)]
    while left:
        place, name = left.pop()
        if (place, name) in seen or name == "Settings":
            continue
        seen.add((place, name))
        if place not in parsed:
            parsed[place] = ast.parse((project / place).read_text(encoding="utf-8")).body
        for node in parsed[place]:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts.studies."):
                other = (node.module or "").replace(".", "/")
                for known in node.names:
                    if name == (known.asname or known.name):
                        whole = f"{other}/{known.name}.py"  # where a module itself is imported, all of it counts
                        if (project / whole).is_file():
                            found[f"{whole}:"] = ast.dump(ast.parse((project / whole).read_text(encoding="utf-8")))
                        else:
                            left.append((f"{other}.py", known.name))
            elif name in bound(node):
                found[f"{place}:{name}"] = ast.dump(node)
                left += [(place, used.id) for used in ast.walk(node) if isinstance(used, ast.Name) and used.id != name]
    return found


def bound(node: ast.stmt) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def kept_file(name: str, study: Study[Any], settings: Any, seed: int, root: Path) -> Path:
    """Where a measurement is kept: its name tells settings, seed, data, and the code of study and idea.

    Code are the functions that the study's `run` reaches in scripts/studies/, and the files of the idea; generated data
    lies in a folder named after all of datamodules/. What the idea's files use is not looked at: after a change there,
    delete the folder.
    """
    from torch import __version__

    from datamodules.files.places import PROJECT, cache_folder

    own = f"scripts/studies/{name}.py"
    ideas = sorted({place.partition(":")[0] for place in study.code} - {own})
    code = {path: hashlib.sha256((PROJECT / path).read_bytes()).hexdigest() for path in ideas}
    data = [str(root.absolute()), *state(root / study.data)] if study.data else []
    parts = [KEPT, asdict(settings), seed, data, code, measuring_code(PROJECT, own), __version__]
    key = json.dumps(parts, sort_keys=True)
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
    from datamodules.files.places import PROJECT, cache_folder, default_root

    if not quick:
        return (root or default_root()).expanduser()
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((PROJECT / "datamodules").rglob("*.py"))))
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


def attempt(name: str, settings: Any, seed: int, root: Path) -> tuple[Measurements, float] | DataError:
    """What a process of its own does: measure a seed, or say what is wrong with the data."""
    try:
        return measure(name, load(name), settings, seed, root)
    except DataError as error:
        return error


def remaining(left: list[str], known: dict[str, list[float]], at_once: int) -> str:
    """How long the seeds still to be measured will take, in words.

    Args:
        left: The study of each such seed.
        known: Seconds of the seeds measured so far, by study.
        at_once: Seeds that are measured at a time.
    """
    if not left:
        return ""
    if any(not known[name] for name in left):
        return "time left not known yet"  # some study may take a hundred times as long as those so far
    seconds = sum(sum(known[name]) / len(known[name]) for name in left) / min(at_once, len(left))
    return f"about {tqdm.format_interval(seconds)} left"


def run_studies(
    chosen: list[str], quick: bool, seeds: int | None, root: Path | None, first: int = JUDGED
) -> tuple[list[Outcome], dict[str, str]]:
    """Outcomes in the order of the notes; studies without their data are left out and named, with the reason.

    A study gets seeds until its last look, or until all its statements are decided. As many seeds are measured at a
    time as there are cores; one by one where they would share a GPU.

    Args:
        chosen: Names of studies.
        quick: Their size.
        seeds: Exactly so many, judged once, in place of the studies' own looks.
        root: Of the data, for those that are not quick.
        first: The first seed.
    """
    plans = dict(sorted(((name, load(name)) for name in chosen), key=lambda plan: plan[1].number))
    places = {name: data_root(study, quick, root) for name, study in plans.items()}
    looks = {name: (seeds,) if seeds else study.looks(quick) for name, study in plans.items()}
    gpu = any(takes_gpu(study.settings(quick)) for study in plans.values())
    found: dict[str, list[tuple[Measurements, float]]] = {name: [] for name in plans}
    left_out: dict[str, str] = {}

    def verdicts(name: str) -> list[Verdict]:
        return [judge(said, [m for m, _ in found[name]], looks[name]) for said in plans[name].statements]

    with tqdm(bar_format=BAR, ncols=79, file=sys.stderr, total=0) as bar:
        for look in range(max(map(len, looks.values()))):
            tasks = []
            for name in plans:
                decided = found[name] and all(verdict.result != "undecided" for verdict in verdicts(name))
                if name not in left_out and look < len(looks[name]) and not decided:
                    new = range(first + len(found[name]), first + looks[name][look])
                    tasks += [(name, plans[name].settings(quick), seed, places[name]) for seed in new]
            tasks.sort(key=lambda task: task[2])  # a seed of each first: then it is known how long each takes
            for name, result in measured(tasks, plans, gpu, found, left_out, bar):
                if isinstance(result, DataError):
                    left_out[name] = str(result)
                else:
                    found[name].append(result)
    outcomes = []
    for name, study in plans.items():
        if name not in left_out:
            measurements, seconds = [m for m, _ in found[name]], sum(s for _, s in found[name])
            outcomes.append(Outcome(name, study, quick, measurements, verdicts(name), seconds))
    return outcomes, left_out


def measured(
    tasks: list[tuple[str, Any, int, Path]],
    plans: dict[str, Study[Any]],
    gpu: bool,
    found: dict[str, list[tuple[Measurements, float]]],
    left_out: dict[str, str],
    bar: tqdm,
) -> Iterator[tuple[str, tuple[Measurements, float] | DataError]]:
    """What each task gave, in their order, while the bar moves on."""
    missing = [not kept_file(name, plans[name], *rest).is_file() for name, *rest in tasks]
    at_once = max(1, 1 if gpu else min(cpu_count(), sum(missing)))
    left = [name for (name, *_), fresh in zip(tasks, missing, strict=True) if fresh]
    order = list(plans)
    bar.total = (bar.total or 0) + len(tasks)  # tqdm allows None
    answers = Parallel(n_jobs=at_once, return_as="generator")(delayed(attempt)(*task) for task in tasks)
    for (name, *_), fresh, result in zip(tasks, missing, answers, strict=True):
        if fresh and name in left:
            left.remove(name)
        yield name, result
        if name in left_out:
            left = [other for other in left if other != name]
            bar.total -= 1
        else:
            bar.n += 1
        known = {study: [seconds for _, seconds in results] for study, results in found.items()}
        bar.set_description_str(f"study {order.index(name) + 1}/{len(order)} {name}", refresh=False)
        bar.set_postfix_str(remaining(left, known, at_once))


def describe(outcome: Outcome) -> str:
    """Verdicts and table as text."""
    study = outcome.study
    columns, rows = study.table(outcome.measurements)
    cells = [columns, *([f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [f"\n{study.number} {outcome.name}: {summary([v.result for v in outcome.verdicts])}"]
    lines += [f"  - {v.says.english}: {v.result}\n      {v.words.english}" for v in outcome.verdicts]
    lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def scalars(found: Measurements) -> dict[str, float]:
    """The single numbers among measurements; those of inner tables as outer/inner."""
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    for name, inner in found.items():
        if isinstance(inner, dict):
            numbers |= {f"{name}/{key}": value for key, value in scalars(inner).items()}
    return numbers
