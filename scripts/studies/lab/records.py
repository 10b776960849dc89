"""Results of studies as files: DIR/quick/NAME.json with the verdicts, and NAME.png beside it.

They are what the page, docs/notes.md and the site are made of; docs/studies/ holds those of the project's own runs.
"""

import json
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from callbacks.files import whole, write_text
from datamodules.errors import DataError
from scripts.studies.lab.machine import Outcome
from scripts.studies.lab.statements import Said, Verdict

SIZES = ("quick", "full")


@dataclass(frozen=True)
class Record:
    """What is kept of a study that was run.

    Args:
        name: Of the study.
        size: "quick" or "full".
        verdicts: In the order of its statements.
        columns, rows: Its table, as text.
        play: What its script in the page gets.
        settings: By name.
        seeds, seconds: How many, and what all of them took together on one core each.
        day, torch, machine: When and where.
    """

    name: str
    size: str
    verdicts: list[Verdict]
    columns: list[str]
    rows: list[list[str]]
    play: Any
    settings: dict[str, Any]
    seeds: int
    seconds: float
    day: str
    torch: str
    machine: str


def record(outcome: Outcome) -> Record:
    """Of an outcome, as it is kept."""
    from torch import __version__

    study = outcome.study
    columns, rows = study.table(outcome.measurements)
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return Record(
        outcome.name, "quick" if outcome.quick else "full", outcome.verdicts, columns, cells,
        study.play.data(outcome.measurements) if study.play else None, asdict(study.settings(outcome.quick)),
        len(outcome.measurements), round(outcome.seconds, 1), date.today().isoformat(), __version__,
        f"{platform.system()} {platform.machine()}",
    )  # fmt: skip


def save(outcome: Outcome, folder: Path) -> Path:
    """Write a study's record and picture into a folder of results; returns the picture."""
    kept = record(outcome)
    place = folder / kept.size / f"{kept.name}.json"
    with whole(place.with_suffix(".png")) as scratch:
        outcome.study.figure(outcome.measurements).savefig(scratch, format="png", dpi=130)
    write_text(place, json.dumps(asdict(kept), ensure_ascii=False, indent=1) + "\n")
    return place.with_suffix(".png")


def read(folder: Path) -> dict[tuple[str, str], Record]:
    """All records in a folder of results, by name and size.

    Raises:
        DataError: a file there is no record.
    """
    found = {}
    for size in SIZES:
        for path in sorted((folder / size).glob("*.json")):
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                said = [
                    Verdict(**verdict | {"says": Said(*verdict["says"]), "words": Said(*verdict["words"])})
                    for verdict in fields.pop("verdicts")
                ]
                found[path.stem, size] = Record(**fields, verdicts=said)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{path}: no record of a study ({error}); delete it and run the study again") from error
    return found
