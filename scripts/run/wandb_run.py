"""The W&B run that a run of leeml belongs to: its folder, id and names."""

import os
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from callbacks.wandb_record import has_key
from datamodules.errors import DataError
from scripts.run.folder import RunFolder

WANDB_NAMES: dict[str, Any] = {"name": str, "group": str, "tags": list[str], "notes": str}
"""Flags --wandb.NAME of `leeml fit`, and their types."""


def settle_wandb(loggers: Any, run: RunFolder, homework: str, names: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Give every WandbLogger the run's folder, its id and names; offline where there is no key.

    The id stands in config.yaml, so that a resumed run, and the scores of `leeml test`, belong to the same W&B run.

    Args:
        loggers: trainer.logger of the configuration; changed in place.
        run: The run's folder. Where a run is resumed, its config names the folder it had then: that is replaced.
        homework: Group of the run, where nothing else is said.
        names: Of the flags --wandb.name, group, tags and notes those that were typed.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not getattr(logger, "class_path", "").endswith("WandbLogger"):
            continue
        init, resumed = logger.init_args, run.config.is_file()
        if init.save_dir in (None, ".") or resumed:
            init.save_dir = str(run.path)
        if not (resumed and init.id):  # a config that is used again begins another W&B run
            init.id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        init.project = init.project or os.environ.get("WANDB_PROJECT", "leeml")
        init.name = names.get("name") or init.name or os.environ.get("WANDB_NAME", run.path.name)
        init.group = names.get("group") or init.get("group") or os.environ.get("WANDB_RUN_GROUP", homework)
        for key in ("tags", "notes"):
            if names.get(key):
                init[key] = names[key]
        os.environ["WANDB_DATA_DIR"] = str(run.path / "wandb")  # artifacts wait here for their upload
        os.environ["WANDB_CACHE_DIR"] = str(run.path)  # wandb adds a folder wandb
        if not has_key() and os.environ.setdefault("WANDB_MODE", "offline") == "online":
            raise DataError(
                "WANDB_MODE is online, but there is no API key: run `wandb login`, set WANDB_API_KEY, "
                "or unset WANDB_MODE to keep the run offline"
            )
