"""What the configuration of a run may name: classes of a fixed list, and files inside the run's folder.

A run's config.yaml, and the copy in its checkpoints, may come from anybody. To build a model, the parser imports every
class and function that a config names, and calls it with the arguments that stand there. So every name is held against
the list below before any of it is imported; only what is on it is handed on. What the user types is not looked at.
"""

import importlib
import pkgutil
import re
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from callbacks.checkpoints import BestCheckpoint
from datamodules.base import HomeworkData
from datamodules.errors import DataError
from modules.base import HomeworkModule
from scripts.cli.parameter_types import SCALARS, parameters, plain
from scripts.cli.yaml_files import DEEPEST, MOST

OURS = {  # modules of ours whose classes a config may name, and what such a class must be
    r"modules\.hw\w+": "modules.base.HomeworkModule",
    r"modules\.nets\.\w+": "torch.nn.Module",
    r"modules\.objectives": "modules.objectives.SequenceObjective",
    r"datamodules\.hw\w+": "datamodules.base.HomeworkData",
    r"callbacks\.\w+": "lightning.pytorch.callbacks.Callback",
}
THEIRS = {  # of other libraries: the classes that they offer here, and what such a class must be
    "torch.optim": "torch.optim.Optimizer",
    "torch.nn": "torch.nn.Module",
    "torchvision.transforms.v2": "torchvision.transforms.v2.Transform",
    "torchmetrics.classification": "torchmetrics.Metric",
    "torchmetrics.regression": "torchmetrics.Metric",
    "torchmetrics.aggregation": "torchmetrics.Metric",
    "lightning.pytorch.callbacks": "lightning.pytorch.callbacks.Callback",
    "lightning.pytorch.profilers": "lightning.pytorch.profilers.Profiler",
    "lightning.pytorch.accelerators": "lightning.pytorch.accelerators.Accelerator",
    "lightning.pytorch.plugins": "lightning.pytorch.plugins.Precision",
}
SINGLE = (  # other loggers send what they record to an address that the config names; DeepSpeed writes where it likes
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.FSDPStrategy",
    "lightning.pytorch.strategies.ModelParallelStrategy",
    "lightning.pytorch.strategies.SingleDeviceStrategy",
    "lightning.pytorch.plugins.environments.LightningEnvironment",
    "lightning.pytorch.plugins.environments.SLURMEnvironment",
    "lightning.pytorch.plugins.environments.TorchElasticEnvironment",
)
WANDB = {"group", "tags", "notes", "entity", "job_type", "resume"}  # what else of wandb.init a config may set
ONE_CALL = ("run_dir", "resume", "output", "ckpt_path", "weights_only", "config", "trust", "budget")
"""Options that belong to one call: no run's config holds them."""
ASKED = (  # of trainer, for a model that is not trained: where and how precisely it computes, and what is shown
    "accelerator", "devices", "num_nodes", "strategy", "precision", "deterministic", "benchmark", "inference_mode",
    "limit_val_batches", "limit_test_batches", "limit_predict_batches", "use_distributed_sampler", "sync_batchnorm",
    "enable_progress_bar", "enable_model_summary", "detect_anomaly", "log_every_n_steps",
)  # fmt: skip
FOLDERS = {"dirpath", "save_dir", "root_dir", "default_root_dir", "log_dir", "dir", "output", "path"}
VARIABLE = r"\$[\w{]|%\w+%"  # of the environment: TensorBoardLogger puts its value in
EXPANDED = FOLDERS | {"name", "version", "sub_dir"}


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@cache
def _offered(package: str) -> dict[str, type]:
    """Classes that a library offers in a package of THEIRS, by name."""
    base = _imported(THEIRS[package])
    found = vars(importlib.import_module(package)).items()
    top = package.split(".")[0]
    return {
        name: value
        for name, value in found
        if isinstance(value, type) and issubclass(value, base) and value.__module__.split(".")[0] == top
    }


@cache
def _own(module: str) -> dict[str, type]:
    """Classes of ours that a config may name, defined in a module."""
    base = next((base for pattern, base in OURS.items() if re.fullmatch(pattern, module)), None)
    package, _, name = module.rpartition(".")
    if base is None or name not in {m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)}:
        return {}
    kind = _imported(base)
    found = vars(importlib.import_module(module)).values()
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, kind) and c.__module__ == module}


def known(name: str) -> type | None:
    """The class of a name with dots, if it is on the list; nothing else is imported to find out."""
    module, _, last = name.rpartition(".")
    if name in SINGLE:
        return _imported(name)
    if found := _own(module).get(last):
        return found
    for package in THEIRS:
        if name.startswith(f"{package}."):
            found = _offered(package).get(last)
            return found if found and name in (f"{package}.{last}", _path(found)) else None
    return None


@cache
def _by_short_name() -> dict[str, str]:
    """Full names by the short ones that a config may use for ours, Lightning's and torch's classes."""
    found = {path.rpartition(".")[2]: path for path in SINGLE}
    for package in THEIRS:
        if package.startswith(("torch.", "lightning.")):
            found |= {name: f"{package}.{name}" for name in _offered(package) if name not in found}
    for package in ("modules", "modules.nets", "datamodules", "callbacks"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            found |= {name: _path(cls) for name, cls in _own(module.name).items()}
    return found


class Check:
    """Walks through a run's configuration, and keeps what is wrong with it.

    Args:
        folder: Of the run, outside of which nothing may be written; None: nothing in the configuration writes.
        typed: Names that the user has typed, which are free.
    """

    def __init__(self, folder: Path | None, typed: Collection[str] = ()) -> None:
        self.folder, self.typed = folder, typed
        self.wrong: list[tuple[str, str]] = []  # key, what is wrong there
        self._values = 0

    def value(self, value: Any, hint: Any, key: str, depth: int = 0) -> Any:
        """The value as plain data with full class names; hint is the type of the parameter that takes it."""
        self._values += 1
        if depth > DEEPEST or self._values > MOST:
            raise DataError(f"{key}: more than {DEEPEST} levels or {MOST:,} values; no run's configuration has so many")
        if isinstance(value, str):
            return self._text(str(value), hint, key)
        if isinstance(value, SCALARS):
            return value
        if isinstance(value, list | tuple):
            return [self.value(part, hint, key, depth + 1) for part in value]
        if not isinstance(value, dict):
            self._note(key, f"holds a {type(value).__name__}; expected numbers, text and lists")
        elif "class_path" in value or "init_args" in value:
            return self._object(value, key, depth)
        elif hint is not Any and not plain(hint):
            self._note(key, "is a section; expected class_path: and init_args:")
        elif self._names(value, key):
            return {name: self.value(part, hint, f"{key}.{name}", depth + 1) for name, part in value.items()}
        return None

    def arguments(self, values: Any, cls: type, key: str) -> Any:
        """The arguments of a class that a section stands for, such as those of the trainer."""
        if not isinstance(values, dict):
            return self.value(values, cls, key)
        if not self._names(values, key):
            return None
        hints = {name: parameters(cls).get(name.rstrip("+"), Any) for name in values}
        return {name: self.value(part, hints[name], f"{key}.{name.rstrip('+')}") for name, part in values.items()}

    def _object(self, value: dict[str, Any], key: str, depth: int) -> Any:
        name, given = value.get("class_path"), value.get("init_args") or {}
        spare = value.get("dict_kwargs") or {}
        if not isinstance(name, str) or value.keys() - {"class_path", "init_args", "dict_kwargs"}:
            self._note(key, "expected class_path: and init_args: alone")
            return None
        if not (self._names(given, key) and self._names(spare, key)):
            return None
        full = name if "." in name else _by_short_name().get(name, name)
        cls = known(full)
        if cls is None and name not in self.typed:
            self._note(key, f"names {name}")
        hints = {} if cls is None else dict(parameters(cls))
        free: set[str] = set()  # arguments that the class hands on, to where they are harmless
        if full == "lightning.pytorch.loggers.WandbLogger":
            given = given | {"save_dir": str(self.folder or ".")}  # whatever it says, it gets the run's folder
            free = WANDB
        elif cls is None:
            free = given.keys() | spare.keys()  # of a class that --trust allows
        for part, argument in (given | spare).items():
            if argument is not None and (part in spare or part not in hints) and part not in free:
                self._note(f"{key}.{part}", f"is handed on by {name} to where nothing checks it")
        hints = dict.fromkeys(free, Any if cls is None else str) | hints
        found = {
            part: self.value(argument, hints.get(part, Any), f"{key}.{part}", depth + 1)
            for part, argument in given.items()
        }
        return {"class_path": full, "init_args": found, **({"dict_kwargs": spare} if spare else {})}

    def _names(self, values: Any, key: str) -> bool:
        """Whether all keys are plain names: the parser expands a dotted one, and gives a meaning to __path__."""
        if not isinstance(values, dict):
            self._note(key, f"holds {values!r:.60}; expected names with values")
            return False
        bad = [name for name in values if not isinstance(name, str) or "." in name or name.startswith("__")]
        if bad:
            self._note(key, f"holds the key {bad[0]!r:.60}; expected a plain name")
        return not bad

    def _text(self, text: str, hint: Any, key: str) -> str:
        """Text that may name something to import, or a file to write."""
        if plain(hint):
            if self.folder is not None:
                self._inside(text, key)
            return text
        full = text if "." in text else _by_short_name().get(text, text)
        try:
            word = re.fullmatch(r"[a-z0-9_ +-]*", text) and not Path(text).is_file()  # such as auto, relu or ddp
        except (OSError, ValueError):  # too long for a file's name
            word = None
        if not (word or text in self.typed or known(full)):
            self._note(key, f"names {text:.100}")
        return text if word else full

    def _inside(self, text: str, key: str) -> None:
        """Files are written into the run's folder alone."""
        assert self.folder is not None
        name = key.rpartition(".")[2]
        try:
            path = Path(text).expanduser()
            inside = "://" not in text and path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, ValueError, RuntimeError):  # a null byte, a user that is not there
            self._note(key, f"is {text!r:.200}, which is no path in the run's folder")
            return
        if name in EXPANDED and re.search(VARIABLE, text):
            self._note(key, f"is {text:.200}, where a variable may lead out of the run's folder")
        elif name in FOLDERS or path.is_absolute() or "://" in text:
            if not inside:
                self._note(key, f"is {text:.200}, outside of the run's folder")
        elif ".." in re.split(r"[\\/]", text):
            self._note(key, f"is {text:.200}, which leads out of its folder")

    def _note(self, key: str, what: str) -> None:
        self.wrong.append((key, what))


def trusted(
    config: Any, source: Path, subcommand: str, folder: Path, *, trust: bool, typed: Collection[str] = ()
) -> dict[str, Any]:
    """What a subcommand uses of a run's configuration, when nothing in it is dangerous.

    Args:
        config: Of a run, as data.
        source: Where it stands, for messages.
        subcommand: The subcommand. All but fit use the model, the data, and where to compute.
        folder: Of the run.
        trust: Whether the user allows all that this run names.
        typed: Names that the user has typed.

    Raises:
        DataError: it names something that is not on the list, or a file outside of the run's folder.
    """
    if not isinstance(config, dict):
        raise DataError(f"{source}: holds no configuration of a run")
    training = subcommand == "fit"
    given, unused = dict(config), {}
    if not training and isinstance(config.get("trainer"), dict):
        given["trainer"] = {k: v for k, v in config["trainer"].items() if k in ASKED and not isinstance(v, dict | list)}
        unused = {k: v for k, v in config["trainer"].items() if k not in given["trainer"]}
    if not training:
        given.pop("checkpoint", None)
    reading, writing, spare = Check(None, typed), Check(folder if training else None, typed), Check(None, typed)
    found: dict[str, Any] = {}
    for key, part in given.items():
        if key in ("model", "data"):
            found[key] = reading.value(part, HomeworkModule if key == "model" else HomeworkData, key)
        elif key in ("trainer", "checkpoint"):
            found[key] = writing.arguments(part, Trainer if key == "trainer" else BestCheckpoint, key)
        elif key in ONE_CALL:
            reading.wrong.append((key, "belongs on the command line"))
        else:
            found |= reading.value({key: part}, Any, str(key)) or {}
    spare.arguments(unused, Trainer, "trainer")
    wrong = [*reading.wrong, *writing.wrong]
    if wrong and not trust:
        others = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        raise DataError(
            f"{source}: {wrong[0][0]} {wrong[0][1]}{others}. A run may name only the known classes of leeml, torch, "
            "torchvision and Lightning, and write only into its own folder; anything else could run code of whoever "
            "made it. If you know who that was, allow it for this call with --trust"
        )
    for key, what in wrong:
        print(f"leeml: note: {source}: {key} {what}; --trust allows it", file=sys.stderr)
    for key, what in spare.wrong:
        print(f"leeml: note: {source}: {key} {what}; {subcommand} needs none of it, and leaves it out", file=sys.stderr)
    return given if trust else found
