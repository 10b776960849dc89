"""What is known of many runs: settings, epochs, scores and state of each, read from the files of its folder."""

import json
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from callbacks.curves import Curve, last_epoch, read_metrics
from datamodules.errors import DataError
from scripts.cli.yaml_files import read_yaml
from scripts.run.folder import RunFolder
from scripts.run.origin import read_origin


class RunInfo(NamedTuple):
    """One run, in the columns of `leeml runs`."""

    path: Path
    homework: str
    level: str
    began: str
    """Date and time; empty where it was not recorded."""
    epochs: str
    """Epochs done, of how many (of ? where steps or time end the run)."""
    best: float | None
    """Best value of the metric that chooses the checkpoint."""
    monitor: str
    test: dict[str, float]
    """Scores of `leeml test`, by name."""
    git: str
    state: str
    """running, interrupted (can be resumed), stopped (has no state to resume from), or done."""


def find_runs(folder: Path) -> Iterator[Path]:
    """Folders of runs at or below a folder: those with a config.yaml beside metrics.csv or checkpoints/."""
    for config in sorted(folder.rglob("config.yaml")):
        if (config.parent / "metrics.csv").is_file() or (config.parent / "checkpoints").is_dir():
            yield config.parent


def read_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        DataError: the folder has none, or it is not YAML with sections.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise DataError(f"{run}: no config.yaml here, so this is not the folder of a run (see `leeml runs`)")
    config = read_yaml(path)
    if not isinstance(config, dict) or not {"model", "data", "trainer"} <= config.keys():
        raise DataError(f"{path}: expected YAML with the sections model, data, trainer; the file is damaged")
    return config


def curves_of(run: Path) -> dict[str, Curve]:
    """Curves of a run by name; none where nothing was logged yet."""
    path = run / "metrics.csv"
    return read_metrics(path) if path.is_file() else {}


def describe_run(run: Path) -> RunInfo:
    """Read one run's folder.

    Raises:
        DataError: a file of it is damaged.
    """
    config, origin, scores = read_config(run), read_origin(run), _read_scores(run)
    for section in ("trainer", "checkpoint"):
        if not isinstance(config.get(section) or {}, Mapping):
            raise DataError(f"{run / 'config.yaml'}: {section}: expected a section, found {config[section]!r:.60}")
    checkpoint = config.get("checkpoint") or {}
    monitor, mode = str(checkpoint.get("monitor") or ""), checkpoint.get("mode")
    values = [value for _, value in curves_of(run).get(monitor, [])]
    best = scores.get(f"best {monitor}", (max if mode == "max" else min)(values, default=None))
    done = bool(origin.get("ended")) if origin else f"best {monitor}" in scores
    resumable = (run / "checkpoints" / "last.ckpt").is_file()
    epoch = last_epoch(run / "metrics.csv") if (run / "metrics.csv").is_file() else None
    most = (config["trainer"] or {}).get("max_epochs")
    configs = origin.get("configs")
    return RunInfo(
        run,
        str(_class_path(config["data"]) or _class_path(config["model"]) or "?").split(".")[-2:][0],
        "+".join(map(str, configs if isinstance(configs, list) else [])) or run.parent.name,
        str(origin.get("began") or ""),
        f"{0 if epoch is None else epoch + 1} of {most if isinstance(most, int) and most > 0 else '?'}",
        best,
        monitor,
        {name: value for name, value in scores.items() if name.startswith("test/")},
        str(origin.get("git") or ""),
        "running" if RunFolder(run).in_progress() else "done" if done else "interrupted" if resumable else "stopped",
    )


def _read_scores(run: Path) -> dict[str, float]:
    """The numbers in scores.json; none where there is no such file."""
    path = run / "scores.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected names with scores, found {found!r:.60}")
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _class_path(section: Any) -> str | None:
    return section.get("class_path") if isinstance(section, Mapping) else None


def flatten(config: Any, key: str = "") -> dict[str, Any]:
    """A nested configuration by dotted keys: a class has its path at its own key, its settings below without init_args.

    Of a list with classes in it, each is named by its class, such as trainer.callbacks.EarlyStopping, a second one
    EarlyStopping 2.
    """
    if isinstance(config, Mapping) and config:
        own = {key: path} if key and (path := _class_path(config)) else {}
        parts = {name: part for name, part in config.items() if not (own and name == "class_path")}
        return own | {k: v for name, part in parts.items() for k, v in flatten(part, _join(key, str(name))).items()}
    if isinstance(config, list) and any(isinstance(part, Mapping) for part in config):
        named: dict[str, Any] = {}
        for place, part in enumerate(config):
            name = str(_class_path(part) or place).rpartition(".")[2]
            again = sum(other.split()[0] == name for other in named)
            named[f"{name} {again + 1}" if again else name] = part
        return {k: v for name, part in named.items() for k, v in flatten(part, _join(key, name)).items()}
    return {key: config}


def _join(key: str, name: str) -> str:
    return key if name == "init_args" else f"{key}.{name}" if key else name


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Settings in which two configurations differ: (dotted key, value of a, value of b); - where one lacks it.

    A class that only one has, such as a callback, is one row: what it is set to is not listed.
    """
    one, two = flatten(a), flatten(b)

    def inside(key: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        parents = list(accumulate(key.split("."), "{}.{}".format))[:-1]
        return key in own and any(parent in own and parent not in other for parent in parents)

    return [
        (key, str(one.get(key, "-")), str(two.get(key, "-")))
        for key in dict.fromkeys([*one, *two])
        if one.get(key, "-") != two.get(key, "-") and not inside(key, one, two) and not inside(key, two, one)
    ]
