"""The README.md of an exported model: what it does, what it was trained on, its scores, how to use it."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callbacks.progress import networks
from scripts.cli.summary import TESTED_ON
from scripts.exports.graphs import Graph
from scripts.exports.writing import TOLERANCE
from scripts.run.origin import read_origin

TASKS = {
    "hw1_covid": ("tomorrow's share of positive COVID tests in a US state", "FILE.csv"),
    "hw2_phoneme": ("the phone spoken in every 10 ms of speech", "FILE.wav"),
    "hw3_food": ("the kind of food in a photo", "FILE.jpg"),
    "hw4_speaker": ("who speaks", "FILE.wav"),
    "hw5_translation": ("translates sentences", '"A sentence."'),
}
LIMITS = {
    "hw1_covid": "Columns are found by their names; another survey than the course's has no meaning here.",
    "hw2_phoneme": "Speech of 16 kHz, one channel. With model.smoothing the example takes the likeliest path. "
    "Features are kept as float16 by leeml (data.precision): where two phones are all but equal, they may differ.",
    "hw3_food": "Images are squashed to a square. Test-time augmentation, which scores may have, is left out.",
    "hw4_speaker": "It knows the speakers it was trained on and no others; recordings of 16 kHz, one channel.",
    "hw5_translation": "The example takes the likeliest word at every step; leeml's scores may come from a beam.",
}


def scores_of(run: Path) -> dict[str, float]:
    """The scores of a run; empty where there are none."""
    return {name: value for name, value in _recorded(run).items() if isinstance(value, int | float)}


def tested_on(run: Path) -> str:
    """The rows that `leeml test` scored, in words; empty where it was not called."""
    return str(_recorded(run).get(TESTED_ON, ""))


def _recorded(run: Path) -> dict[str, Any]:
    path = run / "scores.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def spread_of(run: Path) -> dict[str, list[float]]:
    """Each score over all folds of a k-fold run, if this run is one of them."""
    if not re.fullmatch(r"fold_\d+", run.name):
        return {}
    every = [scores_of(path) for path in sorted(run.parent.glob("fold_*"))]
    return {name: [one[name] for one in every if name in one] for name in scores_of(run)}


def score_lines(run: Path) -> list[str]:
    """The scores as a table, with mean and deviation over folds where they are known."""
    found, folds = scores_of(run), spread_of(run)
    if not found:
        return ["Not recorded: the run ended before it was judged."]
    notes = [f"`test/...`: {rows}." for rows in [tested_on(run)] if rows]
    if not any(len(others) > 1 for others in folds.values()):
        notes.append("How much they differ between splits of the data was not measured (`leeml kfold` does).")
        return ["| score | this model |", "|---|---|", *(f"| {k} | {v:.4g} |" for k, v in found.items()), "", *notes]
    lines = ["| score | this model | mean and deviation over folds |", "|---|---|---|"]
    for name, value in found.items():
        others, spread = folds[name], "not measured"
        if len(others) > 1:
            spread = f"{statistics.mean(others):.4g} ± {statistics.stdev(others):.2g}, {len(others)} folds"
        lines.append(f"| {name} | {value:.4g} | {spread} |")
    return [*lines, "", *notes] if notes else lines


def trained_on(checkpoint: dict[str, Any]) -> list[str]:
    """The data in words: edition, and the settings that a config can change; no folder of this machine."""
    config, facts = checkpoint["config"]["data"], checkpoint["facts"]
    settings = config.get("init_args") or {}
    edition = facts.get("edition") or settings.get("edition") or Path(settings.get("dir") or "").name
    shown = {k: v for k, v in settings.items() if isinstance(v, bool | int | float | str) and k not in ("root", "dir")}
    generated = " (generated data, which stand for no real ones)" if edition == "sample" else ""
    return [
        f"- data: `{config['class_path']}`, edition {edition or 'not recorded'}{generated}; they are not part of this "
        "folder",
        f"- settings: {', '.join(f'{name} {value}' for name, value in shown.items())}",
        f"- weights of epoch {checkpoint['epoch'] + 1}, after {checkpoint['global_step']} optimizer steps",
    ]


def graph_lines(graphs: Sequence[Graph], ending: str) -> list[str]:
    """Inputs and outputs of every file; a dynamic dimension has a name."""
    lines = ["| file | input | type | shape |", "|---|---|---|---|"]
    for graph in graphs:
        for name, value in graph.inputs.items():
            sizes = {i: dim.__name__ for i, dim in graph.dynamic[name].items()}
            shape = ", ".join(str(sizes.get(i, size)) for i, size in enumerate(value.shape))
            lines.append(f"| {graph.name}.{ending} | {name} | {str(value.dtype).removeprefix('torch.')} | ({shape}) |")
    return [*lines, "", *[f"`{g.name}.{ending}` gives {', '.join(g.outputs)}." for g in graphs]]


def card(
    module: Any,
    checkpoint: dict[str, Any],
    run: Path,
    graphs: Sequence[Graph],
    largest: float,
    needs: Sequence[str],
    ending: str,
) -> str:
    """The text.

    Args:
        module: The trained module.
        checkpoint: That it was read from.
        run: Its folder.
        graphs: What was written.
        largest: Difference found between a graph and its module.
        needs: Packages of the example.
        ending: Of the graphs' files.
    """
    what, given = TASKS[module.homework]
    origin = read_origin(run)
    count = sum(parameter.numel() for parameter in module.parameters())
    nets = ", ".join(f"`{name}`" for name, _ in networks(module))
    classes = module.facts.get("classes") or []
    languages = f" ({module.facts['source']} to {module.facts['target']})" if "source" in module.facts else ""
    versions = ", ".join(f"{name} {number}" for name, number in (origin.get("versions") or {}).items())
    lines = [
        f"# {module.homework}: {what}{languages}", "",
        f"A `{type(module).__name__}` with {count:,} parameters ({nets}), trained with leeml, the homeworks of Hung-yi "
        "Lee's machine learning course in PyTorch Lightning.", "",
        "## Use", "",
        "```bash", f"pip install {' '.join(needs)}", f"python example.py {given}", "```", "",
        "`facts.json` holds names and how inputs are made; `example.py` shows both. It needs no leeml.", "",
        *graph_lines(graphs, ending), "",
        f"Held against the network it was made from, on random inputs of two sizes: the largest difference is "
        f"{largest:.1e}, the tolerance {TOLERANCE:g} (absolute and relative).", "",
        "## Trained on", "", *trained_on(checkpoint),
        *([f"- {len(classes)} classes: {', '.join(classes[:12])}{', ...' * (len(classes) > 12)}"] if classes else []),
        f"- begun {origin.get('began') or 'not recorded'}, commit {origin.get('git') or 'not recorded'}"
        + (f", {versions}" if versions else ""), "",
        "## Scores", "", *score_lines(run), "",
        "## Limits", "", LIMITS[module.homework], "",
    ]  # fmt: skip
    return "\n".join(lines)
