"""leeml study: the ideas of the notes as small experiments: statements that can fail, and verdicts from data.

`leeml study list` names them with their last verdicts, `leeml study NAME...` runs some, `leeml study all` all. Results
are added to a page to read, runs/studies/index.html.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from callbacks.files import write_text
from datamodules.errors import DataError
from scripts.cli.mistakes import Parser, UsageError, near
from scripts.studies.lab.machine import JUDGED, Outcome, describe, load, names, run_studies, scalars
from scripts.studies.lab.records import SIZES, read, save
from scripts.studies.lab.statements import summary


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
    for seed, found in enumerate(outcome.measurements, JUDGED):
        with begin(f"seed {seed}", settings | {"seed": seed}) as run:
            run.summary.update(scalars(found))
    with begin("verdicts", settings) as run:
        columns, rows = study.table(outcome.measurements)
        table = wandb.Table([*columns], [[str(cell) for cell in row] for row in rows])
        run.log({"figure": wandb.Image(str(picture)), "table": table})
        run.summary.update({verdict.says.english: verdict.result for verdict in outcome.verdicts})


def show_list(folder: Path, recorded: Path) -> None:
    """Print number, name, heading and last verdicts of every study.

    Args:
        folder: Results of the user's own runs.
        recorded: Those that came with the project, for studies that were not run.
    """
    own, theirs = read(folder), read(recorded)
    for study, name in sorted(((load(name), name) for name in names()), key=lambda pair: pair[0].number):
        parts = []
        for size in SIZES:
            if last := own.get((name, size), theirs.get((name, size))):
                origin = "" if (name, size) in own else ", recorded"
                parts.append(f"{summary([v.result for v in last.verdicts])} ({size}{origin}, {last.day})")
        print(f"  {study.number:>2}  {name:<17} {study.heading.english}")
        for part in parts or ["not run yet"]:
            print(f"      {part}")


def main(args: list[str]) -> int:
    """Run studies, print their verdicts, add them to the page; 1 if a study that was asked for had no data."""
    from datamodules.files.places import PROJECT

    parser = Parser(prog="leeml study", description=__doc__)
    parser.add_argument("names", nargs="+", help=f"list, all, or some of: {', '.join(names())}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="generated data, a minute or two each (default)")
    size.add_argument("--full", action="store_true", help="real data and larger settings")
    parser.add_argument("--seeds", type=int, help="exactly so many seeds, judged once (default: the study's own looks)")
    parser.add_argument(
        "--design", action="store_true", help="seeds 0, 1, ..., which judge nothing: prints verdicts, records none"
    )
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder with one sub-folder a homework")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", default=PROJECT / "runs" / "studies",
        help="folder of results and of the page index.html, to which these are added (default: runs/studies)",
    )  # fmt: skip
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases too (offline without a key)")
    own = parser.parse_args(args[1:])
    if own.names == ["list"]:
        show_list(own.report, PROJECT / "docs" / "studies")
        return 0
    chosen = names() if own.names == ["all"] else own.names
    for name in chosen:
        if name not in names():
            hint = near(name, names(), 0.4) or f"; there are {', '.join(names())}"
            raise UsageError(f"no study {name!r}{hint}")
    if own.seeds is not None and own.seeds < 1:
        raise UsageError(f"--seeds {own.seeds}: expected at least 1")
    if own.root and not own.full:
        raise UsageError("--data.root is for --full: quick studies generate their data")
    first = 0 if own.design else JUDGED
    outcomes, left_out = run_studies(chosen, not own.full, own.seeds, own.root, first)
    if len(chosen) == 1 and chosen[0] in left_out:
        raise DataError(left_out[chosen[0]])
    for outcome in outcomes:
        print(describe(outcome))
        if own.design:
            continue
        picture = save(outcome, own.report)
        print(f"  figure: {picture}")
        if own.wandb:
            log_wandb(outcome, picture)
    for name, reason in left_out.items():
        print(f"\n{name}: not run: {reason}")
    if outcomes and not own.design:
        from scripts.studies.lab.page import page

        write_text(own.report / "index.html", page(own.report))
        print(f"\npage: {own.report / 'index.html'}")
    return 1 if left_out else 0
