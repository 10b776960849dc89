"""run.json: when a run began and ended, from which configs, and with which code and versions."""

import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from callbacks.files import write_text
from datamodules.files.places import PROJECT

FILE = "run.json"
PACKAGES = ("torch", "lightning", "torchmetrics", "torchvision", "numpy")


def git_state() -> str | None:
    """The project's commit, with a + where files differ from it; None outside a git checkout or without git."""
    try:
        said = [
            subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    commit, changed = (one.stdout.strip() for one in said)
    return commit + ("+" if changed else "")


def read_origin(run: Path) -> dict[str, Any]:
    """What run.json of a run's folder holds; empty where there is none or it is damaged."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_begin(run: Path, configs: Sequence[str]) -> None:
    """Record the beginning of a run; one that is resumed keeps its first record, and counts as not ended again.

    Args:
        run: The run's folder.
        configs: The --config files that it was started with.
    """
    kept = read_origin(run) or {
        "began": _now(),
        "configs": [Path(config).stem for config in configs if not config.startswith("{")],
        "git": git_state(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    _write(run, {**kept, "ended": None})


def write_end(run: Path) -> None:
    """Record that a run came to its end."""
    _write(run, {**read_origin(run), "ended": _now()})


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def _write(run: Path, content: dict[str, Any]) -> None:
    write_text(run / FILE, json.dumps(content, indent=2) + "\n")
