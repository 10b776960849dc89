"""HW1: our Trainer against a plain loop to the course's specification, and levels against scikit-learn."""

import contextlib
import csv
import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from datamodules.files.places import PROJECT, default_root
from datamodules.hw1_covid import CovidData
from modules.hw1_covid import CovidRegressor
from scripts import kfold
from scripts.benches.budget import Sample
from scripts.benches.tools import medians

EPOCHS, MEMBERS = 100, 32
BATCH = 270  # the course's of 2021, with its network 93-64-1 and SGD


def sample(data: CovidData, module: CovidRegressor) -> Sample:
    """The course's loop of 2022: batches of single rows, MSE."""
    rows = data.train_dataloader().dataset[torch.from_numpy(data.chosen_folds()[0].train)]
    loader = DataLoader(TensorDataset(rows["x"], rows["y"]), batch_size=data.batch_size, shuffle=True)
    return Sample(loader, lambda batch: nn.functional.mse_loss(module(batch[0].unsqueeze(0))[0], batch[1]))


def editions(root: Path | None) -> dict[str, Path]:
    """Folders with HW1 files below the data root."""
    base = (root or default_root()) / "hw1_covid"
    found = {p.name: p for p in sorted(base.iterdir()) if CovidData.has_files(p)} if base.is_dir() else {}
    return found or {"": CovidData(root=str(root) if root else None).locate()}


def plain_loop(x: torch.Tensor, y: torch.Tensor) -> None:
    """The course's training loop: DataLoader over single rows, 93-64-1, MSE, SGD with momentum."""
    net = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    criterion = nn.MSELoss()
    for _ in range(EPOCHS):
        for rows, target in loader:
            optimizer.zero_grad()
            loss = criterion(net(rows).squeeze(1), target)
            loss.backward()
            optimizer.step()


def ours(folder: Path, members: int) -> None:
    """The same training by our module, data and Lightning's Trainer, set-up and reading the file included."""
    data = CovidData(
        dir=str(folder), split="interleaved", folds=10, standardise="features", batch_size=BATCH, members=members
    )
    module = CovidRegressor(functools.partial(torch.optim.SGD, lr=0.001, momentum=0.9))
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data)


def speed(root: Path | None, repeats: int) -> None:
    """Print the cost of one model, and of 32 in one pass, as ratios to the plain loop."""
    folder = next(iter(editions(root).values()))
    data = CovidData(dir=str(folder), split="interleaved", folds=10, standardise="features", batch_size=BATCH)
    data.setup("fit")
    assert data.facts is not None
    parts = data.train_dataloader().dataset[torch.from_numpy(data.chosen_folds()[0].train)]
    x = (parts["x"] - data.facts["mean"][0]) / data.facts["scale"][0]
    seconds = medians(
        {
            "plain loop": lambda: plain_loop(x, parts["y"]),
            "ours, 1 model": lambda: ours(folder, 1),
            f"ours, {MEMBERS} models": lambda: ours(folder, MEMBERS),
        },
        repeats,
    )
    steps, samples = EPOCHS * -(-len(x) // BATCH), EPOCHS * len(x)
    base = seconds["plain loop"]
    print(
        f"\nSpeed: {len(x)} rows, batch {BATCH}, {EPOCHS} epochs; medians of {repeats} turns; "
        "ours with set-up and reading the file"
    )
    print(f"  {'':<16} {'seconds':>8} {'ms a step':>10} {'model-samples/s':>16} {'against plain loop':>20}")
    for name, value in seconds.items():
        models = MEMBERS if str(MEMBERS) in name else 1
        rate = models * samples / value
        against = f"{value / base:.2f} x the time" if models == 1 else f"{rate / (samples / base):.1f} x the samples/s"
        print(f"  {name:<16} {value:8.2f} {1000 * value / steps:10.2f} {rate:16,.0f} {against:>20}")


def out_of_fold(level: str, edition: str, split: str, root: Path | None) -> np.ndarray:
    """Squared errors (N,) in file order of a level's config, cross-validated by `leeml kfold`."""
    configs = PROJECT / "configs" / "hw1_covid"
    own = configs / f"{level}_{edition}.yaml"  # the course's code differs from year to year
    config = own if own.is_file() else configs / f"{level}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        args = ["kfold", "--config", str(config), "--run_dir", f"{folder}/run", "--data.split", split]
        args += ["--data.root", str(root)] if root else []
        args += ["--data.edition", edition] if edition else []
        with contextlib.redirect_stdout(io.StringIO()):
            kfold.main([*args, "--data.seed", "0"])
        with open(f"{folder}/run/out_of_fold.csv", newline="") as file:
            return np.array([(float(r["true"]) - float(r["predicted"])) ** 2 for r in csv.DictReader(file)])


def accuracy(root: Path | None, levels: list[str]) -> None:
    """Print MSE over the same five folds: persistence, two scikit-learn models and our levels, with paired spread."""
    for edition, folder in editions(root).items():
        for split in ("random", "grouped"):
            data = CovidData(dir=str(folder), split=split, fold=None)
            data.setup("fit")
            assert data.train is not None
            assert data.train.target is not None
            x, y, folds = data.train.values, data.train.target, data.split()
            yesterday = data.train.day(data.train.days - 2)[:, -1]
            errors = {"yesterday's value": (yesterday - y) ** 2}
            for name, model in {
                "RidgeCV": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 30))),
                "HistGradientBoosting": HistGradientBoostingRegressor(random_state=0),
            }.items():
                errors[name] = np.empty(len(y))
                for train, val in folds:
                    errors[name][val] = (model.fit(x[train], y[train]).predict(x[val]) - y[val]) ** 2
            for level in levels:
                errors[level] = out_of_fold(level, edition, split, root)
            by_fold = {name: np.array([e[fold.val].mean() for fold in folds]) for name, e in errors.items()}
            best = min(("RidgeCV", "HistGradientBoosting"), key=lambda name: by_fold[name].mean())
            print(
                f"\nAccuracy, {edition or folder.name}, {split} 5 folds, {len(y)} rows: MSE +- deviation over folds, "
                f"ratio and paired difference to {best}"
            )
            for name, mse in by_fold.items():
                gap = mse - by_fold[best]
                print(
                    f"  {name:<21} {mse.mean():.4f} +- {mse.std(ddof=1):.4f}   RMSE {np.sqrt(mse.mean()):.4f}   "
                    f"{mse.mean() / by_fold[best].mean():.3f} x   {gap.mean():+.4f} +- {gap.std(ddof=1):.4f}"
                )
