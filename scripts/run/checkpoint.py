"""A run's checkpoint: read as data only, and turned into a model."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace

from datamodules.base import HomeworkData
from datamodules.errors import DataError
from modules.base import HomeworkModule
from modules.hw5_translation import Translator
from scripts.cli.config_parser import ConfigParser, check_nulls
from scripts.cli.yaml_files import read_yaml
from scripts.run.folder import RunFolder
from scripts.run.trusted import trusted


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as data only, never as code.

    Raises:
        DataError: not there, cut short, holding more than data, or not one of ours.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; check --ckpt_path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        if "Unsupported" in str(error) or "WeightsUnpickler" in str(error) or "weights_only" in str(error).lower():
            raise DataError(
                f"{path}: holds code besides weights and was not loaded; only open checkpoints of leeml"
            ) from None
        raise DataError(f"{path}: the checkpoint is damaged or cut short; use another one of the run") from None
    if not isinstance(checkpoint, dict) or not {"homework", "config", "facts", "state_dict"} <= checkpoint.keys():
        raise DataError(f"{path}: not a checkpoint of leeml; expected one that leeml fit wrote")
    return checkpoint


def inline(config: dict[str, Any]) -> str:
    """A configuration as one line for the parser; not JSON, which has no infinity."""
    return yaml.safe_dump(config, default_flow_style=True, width=math.inf).strip()


def typed_names(words: Iterable[str], configs: Iterable[str] = ()) -> set[str]:
    """All that could be the name of a class in what the user typed: words of the line, and configs (files, or text)."""
    texts = [text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8") for text in configs]
    return {name for text in (*words, *texts) for name in re.findall(r"[A-Za-z_][\w.]*", text)}


def run_config(run: RunFolder, subcommand: str, typed: Iterable[str], trust: bool) -> str:
    """What a subcommand uses of a run's config.yaml, as one line for the parser.

    Raises:
        DataError: the folder is not that of a run, or its configuration is not to be trusted.
    """
    if not run.config.is_file():
        raise DataError(f"{run.path}: no config.yaml here, so this is not the folder of a run (see runs/)")
    config = read_yaml(run.config)
    return inline(trusted(config, run.config, subcommand, run.path, trust=trust, typed={*typed}))


def checkpoint_config(path: Path, subcommand: str, typed: Iterable[str], trust: bool) -> str:
    """The same of the configuration in a checkpoint."""
    config = load_checkpoint(path)["config"]
    return inline(trusted(config, path, subcommand, path.parent, trust=trust, typed={*typed}))


def from_config(
    path: Path, flags: Sequence[str], *sections: str, trust: bool = False, typed: Iterable[str] = ()
) -> Namespace:
    """The objects that sections of a checkpoint's configuration describe: model, data.

    Args:
        path: The checkpoint.
        flags: They change its configuration.
        sections: Which.
        trust: Whether classes that are not known may be built.
        typed: Names that the user has typed elsewhere.
    """
    parser = ConfigParser(prog="leeml")
    parser.add_argument("--config", action=ActionConfigFile)
    for name, base in {"model": HomeworkModule, "data": HomeworkData}.items():
        if name in sections:
            parser.add_lightning_class_args(base, name, subclass_mode=True)
    stored = load_checkpoint(path)["config"]
    config = {name: stored[name] for name in sections}
    safe = trusted(config, path, "predict", path.parent, trust=trust, typed={*typed_names(flags), *typed})
    parsed = parser.parse_args(["--config", inline(safe), *flags])
    check_nulls(parsed)
    return parser.instantiate_classes(parsed)


def load_model(path: Path, flags: Sequence[str] = (), trust: bool = False) -> Any:
    """A trained module of any homework, from its checkpoint alone, in eval mode.

    Args:
        path: The checkpoint.
        flags: `--model.KEY=VALUE`, which change its configuration.
        trust: Whether classes that are not known may be built.

    Raises:
        DataError: it is no checkpoint, not of this version, or it names classes that are not trusted.
    """
    checkpoint = load_checkpoint(path)
    model = from_config(path, flags, "model", trust=trust).model
    try:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).split(", ")[0]  # of many parameters
        raise DataError(f"{path}: does not fit its configuration, or what --model flags made of it: {first}") from error
    return model.eval()


def load_translator(path: Path, flags: Sequence[str] = (), trust: bool = False) -> Any:
    """As `load_model`, and refuses a checkpoint of a homework that does not translate."""
    homework = load_checkpoint(path)["homework"]
    if homework != Translator.homework:
        raise DataError(f"{path}: of {homework}, which translates nothing; name a run of HW5")
    return load_model(path, flags, trust)
