"""A run's checkpoint: read as data only, and turned into a model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace

from datamodules.base import HomeworkData
from datamodules.errors import DataError
from modules.base import HomeworkModule
from modules.hw5_translation import Translator
from scripts.cli.config_parser import Parser as ConfigParser


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


def from_config(checkpoint: dict[str, Any], flags: Sequence[str], *sections: str) -> Namespace:
    """The objects that sections of a checkpoint's configuration describe: model, data."""
    parser = ConfigParser(prog="leeml")
    parser.add_argument("--config", action=ActionConfigFile)
    for name, base in {"model": HomeworkModule, "data": HomeworkData}.items():
        if name in sections:
            parser.add_lightning_class_args(base, name, subclass_mode=True)
    config = {name: checkpoint["config"][name] for name in sections}
    text = yaml.safe_dump(config, default_flow_style=True, width=math.inf).strip()
    return parser.instantiate_classes(parser.parse_args(["--config", text, *flags]))


def load_model(path: Path, flags: Sequence[str] = ()) -> Any:
    """A trained module, from its checkpoint alone.

    Raises:
        DataError: it is no checkpoint, of a homework that does not translate, or not of this version.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint["homework"] != Translator.homework:
        raise DataError(f"{path}: of {checkpoint['homework']}, which translates nothing; name a run of HW5")
    model = from_config(checkpoint, flags, "model").model
    try:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).split(", ")[0]  # of many parameters
        raise DataError(f"{path}: does not fit its configuration, or what --model flags made of it: {first}") from error
    return model.eval()
