"""leeml study: the ideas of the notes as small experiments, each with a claim that can fail and a verdict from data.

`leeml study list` names them, `leeml study NAME` runs one, `leeml study all --report DIR` all, with a page to read.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from callbacks.files import whole, write_text
from datamodules.errors import DataError
from scripts.cli.mistakes import Parser, UsageError, near
from scripts.studies.lab.evidence import verdict
from scripts.studies.lab.machine import Outcome, describe, load, names, run_studies, scalars


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
    from datamodules.files.places import PROJECT

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
        from scripts.studies.lab.page import page

        write_text(own.report / "index.html", page(outcomes, left_out))
        print(f"\npage: {own.report / 'index.html'}")
    return 1 if left_out else 0
