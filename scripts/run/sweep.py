"""A sweep file, in the form of W&B's sweeps, as Optuna's search space, sampler and pruner."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna import pruners, samplers
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from datamodules.errors import DataError
from scripts.cli.yaml_files import read_yaml

METHODS = ("bayes", "random", "grid")
PRESET = "presets/wandb.yaml"  # what the trials of W&B's own agent need
KNOWN = (
    "constant, categorical, int_uniform, q_uniform, uniform, log_uniform_values, q_log_uniform_values (or value, "
    "values, min and max alone)"
)


class Sweep(NamedTuple):
    """What a sweep file asks for."""

    flags: list[str]
    """Of `leeml fit`, without W&B's preset."""
    method: str
    metric: str
    """Such as val/accuracy."""
    direction: Literal["minimize", "maximize"]
    """minimize or maximize."""
    space: dict[str, BaseDistribution]
    """By dotted key. Choices are JSON texts, since Optuna stores no lists."""
    fixed: dict[str, Any]
    pruner: pruners.BasePruner
    most: int | None
    """Trials: run_cap, or all of a grid."""

    def sampler(self, seed: int) -> samplers.BaseSampler:
        """TPE for bayes (Bergstra et al. 2011), else random; the trials of a grid are settled beforehand."""
        return samplers.TPESampler(seed=seed) if self.method == "bayes" else samplers.RandomSampler(seed)

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of values, for method grid."""
        choices = [choices_of(key, kind) for key, kind in self.space.items()]
        return [dict(zip(self.space, row, strict=True)) for row in itertools.product(*choices)]

    def values(self, trial: optuna.Trial) -> dict[str, Any]:
        """Values of one trial, by dotted key."""
        found: dict[str, Any] = dict(self.fixed)
        for key, kind in self.space.items():
            value = trial._suggest(key, kind)
            found[key] = json.loads(value) if isinstance(kind, CategoricalDistribution) else value
        return found


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Flags of `leeml fit` for a trial's values."""
    return [
        f"--{key}={json.dumps(value) if isinstance(value, list | dict) else value}" for key, value in values.items()
    ]


def choices_of(key: str, kind: BaseDistribution) -> list[CategoricalChoiceType]:
    """All values of a parameter, for a grid.

    Raises:
        DataError: there are infinitely many.
    """
    if isinstance(kind, CategoricalDistribution):
        return list(kind.choices)
    if isinstance(kind, IntDistribution):
        return list(range(kind.low, kind.high + 1, kind.step))
    assert isinstance(kind, FloatDistribution)
    if kind.step is None:
        raise DataError(f"parameters.{key}: method grid needs values, or steps (q_uniform), not a range")
    return [kind.low + i * kind.step for i in range(round((kind.high - kind.low) / kind.step) + 1)]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        DataError: it is no sweep, or asks for something that leeml tune does not know; says what, and what it knows.
    """
    content = read_yaml(path)
    try:
        return _sweep(content)
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]} is missing; see configs/sweeps/ for examples") from None
    except (DataError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: {error}") from None


def _sweep(content: Any) -> Sweep:
    if not isinstance(content, Mapping):
        raise DataError("expected command, method, metric and parameters, as in configs/sweeps/")
    command, metric, method = content["command"], content["metric"], content["method"]
    if "fit" not in command:
        raise DataError(f"command: expected [..., leeml, fit, --config, FILE, ..., ${{args}}], found {command}")
    if method not in METHODS:
        raise DataError(f"method: expected one of {', '.join(METHODS)}, found {method}")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise DataError(f"metric.goal: expected minimize or maximize, found {goal}")
    words = [str(word) for word in command[command.index("fit") + 1 :] if word != "${args}"]
    flags: list[str] = []
    for word in words:
        if word.endswith(PRESET) and flags and flags[-1] in ("--config", "-c"):
            flags.pop()
        else:
            flags.append(word)
    space: dict[str, BaseDistribution] = {}
    fixed: dict[str, Any] = {}
    for key, given in content["parameters"].items():
        if "value" in given or given.get("distribution") == "constant":
            fixed[key] = given["value"]
        else:
            space[key] = _distribution(key, given)
    if not space:
        raise DataError("parameters: nothing to search, as each has one value")
    most = content.get("run_cap")
    if method == "grid":
        size = math.prod(len(choices_of(key, kind)) for key, kind in space.items())
        most = min(most or size, size)
    return Sweep(flags, method, metric["name"], goal, space, fixed, _pruner(content), most)


def _distribution(key: str, given: Mapping[str, Any]) -> BaseDistribution:
    kind = given.get("distribution")
    if unknown := given.keys() - {"distribution", "values", "min", "max", "q"}:
        raise DataError(f"parameters.{key}: leeml tune does not know {', '.join(sorted(unknown))}; it knows {KNOWN}")
    if kind in (None, "categorical") and "values" in given:
        return CategoricalDistribution([json.dumps(value) for value in given["values"]])
    low, high = given["min"], given["max"]
    if kind is None:
        kind = "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform"
    if kind == "int_uniform":
        return IntDistribution(low, high)
    if kind in ("q_uniform", "q_log_uniform_values"):
        whole = all(isinstance(number, int) for number in (low, high, given.get("q", 1)))
        if kind == "q_uniform":
            step = given.get("q", 1)
            return IntDistribution(low, high, step=step) if whole else FloatDistribution(low, high, step=step)
        if whole and given.get("q", 1) == 1:
            return IntDistribution(low, high, log=True)
    if kind in ("uniform", "log_uniform_values"):
        return FloatDistribution(low, high, log=kind != "uniform")
    raise DataError(f"parameters.{key}: leeml tune does not know the distribution {kind}; it knows {KNOWN}")


def _pruner(content: Mapping[str, Any]) -> pruners.BasePruner:
    """Successive halving with the rungs of W&B's hyperband; none where the file asks for none."""
    given = content.get("early_terminate")
    if not given:
        return pruners.NopPruner()
    if given.get("type") != "hyperband":
        raise DataError(f"early_terminate.type: expected hyperband, found {given.get('type')}")
    eta = given.get("eta", 3)
    first = given["min_iter"] if "min_iter" in given else round(given["max_iter"] / eta ** given.get("s", 1))
    return pruners.SuccessiveHalvingPruner(min_resource=max(1, first), reduction_factor=eta)
