"""Overfitting: flexibility against data, what each remedy does, and mismatch, which more data does not fix.

Changed after looking: early stopping was judged ten times at equal distances, the first time when the thousands of
epochs of `--full` had long overfitted; now after 1, 2, 4, 8 ... of them.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from datamodules.base import Fold
from datamodules.hw1_covid import CovidData
from modules.hw1_covid import CovidRegressor
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, mean_and_spread
from scripts.studies.lab.fit import Errors, errors, fit

SplitRule = Literal["random", "state", "time"]


@dataclass(frozen=True)
class Settings:
    """Rows to train on, hidden layers from stiff to flexible, steps and rate; nets side by side whose errors count."""

    sizes: tuple[int, int] = (100, 1000)
    nets: dict[str, list[int]] = field(default_factory=lambda: {"linear": [], "8": [8], "128 + 128": [128, 128]})
    steps: int = 250
    rate: float = 3e-3
    members: int = 1
    edition: str | None = None


class FewRows(CovidData):
    """HW1's data with only some of the rows to train on.

    Args:
        limit: Rows to keep of each fold's training part, drawn by `seed`.
        options: Of CovidData.
    """

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(**options)
        self.limit = limit

    def split(self) -> list[Fold]:
        """The folds of CovidData, their training rows thinned out."""
        rng = np.random.default_rng(self.seed)
        return [Fold(np.sort(rng.permutation(fold.train)[: self.limit]), fold.val) for fold in super().split()]


class Noisy(Callback):
    """Augmentation for a table: in every step new noise, a share of each feature's deviation; state marks stay."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add it to the batch."""
        assert isinstance(pl_module, CovidRegressor)
        scale = 1 / pl_module.net.inverse
        scale = torch.where(pl_module.facts["is_state"].unsqueeze(1) | scale.isinf(), 0.0, scale)  # type: ignore[index]
        batch["x"] = batch["x"] + self.share * scale * torch.randn_like(batch["x"])


class BestHeldOut(Callback):
    """Early stopping, seen from its end: errors where the held-out one is least, of 1, 2, 4, 8 ... or all epochs."""

    def __init__(self) -> None:
        self.best = Errors(float("inf"), float("inf"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge where it is time."""
        done = trainer.current_epoch + 1
        if done.bit_count() == 1 or done == trainer.max_epochs:
            found = errors(pl_module, trainer.datamodule)  # type: ignore[attr-defined,arg-type]
            self.best = min(self.best, found, key=lambda e: e.held_out)
            pl_module.train()


def trained(settings: Settings, seed: int, root: Path, **options: Any) -> tuple[Errors, Errors]:
    """Errors at the end of a fit, and where the held-out error was least.

    Args:
        settings, seed, root: As in `run`.
        options: limit and split of the data, hidden and dropout of the net, decay of the weights, noise in the inputs.
    """
    limit = options.get("limit", settings.sizes[0])
    data = FewRows(
        limit, root=str(root), edition=settings.edition, split=options.get("split", "random"), seed=seed,
        batch_size=settings.sizes[0], members=settings.members,
    )  # fmt: skip
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=settings.rate, weight_decay=options.get("decay", 0.0))
    module = CovidRegressor(optimizer, hidden=options["hidden"], dropout=options.get("dropout", 0.0))
    epochs = settings.steps * settings.sizes[0] // limit
    best = BestHeldOut()
    fit(module, data, epochs, [best, *([Noisy(options["noise"])] if "noise" in options else [])])
    return errors(module, data), best.best


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Errors of every net on few and many rows, of every remedy on few, and of other ways to hold rows out."""
    found: Measurements = {"grid": {}, "remedies": {}, "splits": {}, "sizes": list(settings.sizes)}
    flexible = list(settings.nets)[-1]
    few = settings.sizes[0]
    for name, hidden in settings.nets.items():
        for limit in settings.sizes:
            last, best = trained(settings, seed, root, hidden=hidden, limit=limit)
            found["grid"].setdefault(name, []).append(list(last))
            if name == flexible and limit == few:
                found["remedies"] |= {"none": list(last), "early stopping": list(best)}
    hidden = settings.nets[flexible]
    found["remedies"]["more data"] = found["grid"][flexible][1]
    remedies: dict[str, dict[str, float]] = {
        "dropout": {"dropout": 0.5},
        "weight decay": {"decay": 3.0},
        "noisy inputs": {"noise": 0.3},
    }
    for name, options in remedies.items():
        found["remedies"][name] = list(trained(settings, seed, root, hidden=hidden, **options)[0])
    middle = list(settings.nets)[1]
    found["splits"]["random"] = found["grid"][middle][1]
    for split in ("state", "time"):
        apart: dict[str, Any] = {"hidden": settings.nets[middle], "limit": settings.sizes[1], "split": split}
        found["splits"][split] = list(trained(settings, seed, root, **apart)[0])
    return found


def held_out(measurements: list[Measurements], kind: str, name: str) -> np.ndarray:
    """Held-out error of a remedy or split, one a seed."""
    return np.array([m[kind][name][1] for m in measurements])


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Five per cent of the error counts as a difference."""
    margin = float(np.log2(1.05))
    grid = np.array([list(m["grid"].values()) for m in measurements])  # (seeds, nets, sizes, train and held out)
    names, (few, many) = list(measurements[0]["grid"]), measurements[0]["sizes"]
    gap = np.log2(grid[..., 1] / grid[..., 0])
    findings = [
        effect(f"on {few} rows, {names[-1]} units have a wider gap between held-out and training error than {names[1]} "
               "(log2 ratio)", (gap[:, -1, 0] - gap[:, 1, 0]).tolist(), margin),
        effect(f"on {many} rows the gap of {names[-1]} units is narrower than on {few} (log2 ratio)",
               (gap[:, -1, 0] - gap[:, -1, 1]).tolist(), margin),
    ]  # fmt: skip
    none = held_out(measurements, "remedies", "none")
    for name in measurements[0]["remedies"]:
        if name != "none":
            less = np.log2(none / held_out(measurements, "remedies", name))
            findings.append(effect(f"{name}: less held-out error (log2 ratio)", less.tolist(), margin))
    random = held_out(measurements, "splits", "random")
    for split, who in {"state": "other states", "time": "later days"}.items():
        more = np.log2(held_out(measurements, "splits", split) / random)
        findings.append(effect(f"mismatch: {who} have more error than random rows (log2 ratio)", more.tolist(), margin))
    return findings


def figure(measurements: list[Measurements]) -> Figure:
    """Errors by flexibility, by remedy and by split."""
    drawn = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = drawn.subplots(1, 3, width_ratios=[3, 4, 2])
    grid = np.array([list(m["grid"].values()) for m in measurements])
    names = list(measurements[0]["grid"])
    for i, (size, colour) in enumerate(zip(measurements[0]["sizes"], ("tab:red", "tab:blue"), strict=True)):
        for part, style in enumerate(("--", "-")):
            label = f"{size} rows, {('training', 'held out')[part]}"
            left.semilogy(range(len(names)), grid[:, :, i, part].mean(0), "o" + style, color=colour, label=label)
    left.set_xticks(range(len(names)), names)
    left.set(title="flexibility", xlabel="hidden units", ylabel="mean squared error")
    left.legend(fontsize=7)
    for axes, kind in ((middle, "remedies"), (right, "splits")):
        kinds = list(measurements[0][kind])
        for part, shift in enumerate((-0.2, 0.2)):
            values = np.array([[m[kind][name][part] for name in kinds] for m in measurements])
            axes.bar(np.arange(len(kinds)) + shift, values.mean(0), 0.38, yerr=values.std(0), capsize=2,
                     color=("0.75", "tab:purple")[part], label=("training", "held out")[part])  # fmt: skip
        axes.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right")
        axes.set_yscale("log")
    middle.set_title(f"remedies, {names[-1]} units, {measurements[0]['sizes'][0]} rows")
    middle.legend(fontsize=7, loc="lower right")
    right.set_title("how rows are held out")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Training and validation errors of all settings."""

    def row(name: str, values: list[list[float]]) -> list[Any]:
        train, held = np.array(values).T
        return [name, mean_and_spread(train), mean_and_spread(held)]

    rows = []
    for net in measurements[0]["grid"]:
        for i, size in enumerate(measurements[0]["sizes"]):
            rows.append(row(f"{net}, {size} rows", [m["grid"][net][i] for m in measurements]))
    for kind in ("remedies", "splits"):
        for name in measurements[0][kind]:
            rows.append(row(f"{kind}: {name}", [m[kind][name] for m in measurements]))
    return ["", "training error", "held-out error"], rows


STUDY = Study(
    number=5,
    heading="Overfitting",
    chinese="過擬合與不匹配",
    claim="The more flexible a model and the fewer the rows, the wider the gap between training and held-out error; "
    "more data, augmentation, dropout, weight decay and early stopping each lower the held-out error; rows of other "
    "states or later days (mismatch) have more error than random ones.",
    source="Lecture 2 of 2021; Geman et al. 1992, Neural Computation 4",
    idea="A net with more freedom than the rows can pin down does as it likes between them. Each remedy takes freedom "
    "away or adds rows. Where the held-out rows come from other states or later days, the model has not overfitted: "
    "it was never told. Early stopping chooses among a few epochs, by the very rows it is judged on. For a table, "
    "augmentation is noise in the inputs.",
    formula="gap = L<sub>held out</sub> / L<sub>train</sub>",
    varies="hidden units, rows to train on, remedy, and how HW1's rows are held out",
    code=("modules/hw1_covid.py:CovidRegressor", "datamodules/hw1_covid.py:CovidData.split"),
    quick=Settings(),
    full=Settings(steps=4000, members=8, edition="2021"),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw1_covid",
    seeds=3,
)
