"""Weights of an earlier run, for a fit to begin with."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn


def load_first_weights(
    module: nn.Module, homework: str, facts: dict[str, Any], start: str, same: list[str], shared: Collection[str] = ()
) -> None:
    """Put the weights of a checkpoint into a module of the same sizes.

    Args:
        module: Takes them.
        homework: Of the module.
        facts: Of the data that the module is to be trained on.
        start: A checkpoint, or the folder of a run, whose best one is taken.
        same: Facts that must be the same in both, such as the tokenizer, without which the weights mean nothing.
        shared: Parts that the file must have, by the first names of their weights. Of others, one that the file lacks
            keeps its weights, and one that only the file has is left there. Empty: the file must have all.

    Raises:
        MisconfigurationException: there is no such checkpoint, or it is of something else.
    """
    path = Path(start).expanduser()
    path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    where = f"model.start: {path}"
    if not path.is_file():
        raise MisconfigurationException(f"{where}: no such checkpoint; expected one, or the folder of a trained run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a broken file
        raise MisconfigurationException(f"{where}: damaged, or not a checkpoint of leeml") from None
    if not isinstance(checkpoint, dict) or not {"homework", "facts", "state_dict"} <= checkpoint.keys():
        raise MisconfigurationException(f"{where}: not a checkpoint of leeml; expected one that leeml fit wrote")
    if checkpoint["homework"] != homework:
        raise MisconfigurationException(
            f"{where}: a checkpoint of {checkpoint['homework']}, the model is of {homework}"
        )
    for name in same:
        there, here = checkpoint["facts"].get(name), facts[name]
        if not (torch.equal(there, here) if isinstance(there, torch.Tensor) else there == here):
            shown = "" if isinstance(here, torch.Tensor) else f" ({there}, here {here})"
            raise MisconfigurationException(
                f"{where}: a {name} of another run{shown}; take the --data options and files of that run"
            )
    found, expected = checkpoint["state_dict"], module.state_dict()
    if shared:
        there, here = ({key.split(".")[0] for key in state} | {*shared} for state in (found, expected))
        kept = {key: value for key, value in expected.items() if key.split(".")[0] not in there}
        found = kept | {key: value for key, value in found.items() if key.split(".")[0] in here}
    sizes = [{key: tuple(value.shape) for key, value in state.items()} for state in (found, expected)]
    wrong = sorted(key for key in {*found, *expected} if sizes[0].get(key) != sizes[1].get(key))
    if wrong:
        raise MisconfigurationException(
            f"{where}: its weights do not fit model.net: {wrong[0]} is {sizes[0].get(wrong[0], 'absent')} in the file, "
            f"{sizes[1].get(wrong[0], 'absent')} in the model; give both the same settings, model.net above all"
        )
    module.load_state_dict(found)
