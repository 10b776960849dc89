"""leeml kfold: every row predicted by models that never saw it, the spread over folds, and their ensemble's submission.

Nothing is chosen by looking at held-out rows: early stopping is dropped and the last weights are scored.
"""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.submission import write_csv
from datamodules.base import HomeworkData
from datamodules.course import describe_baselines
from datamodules.errors import DataError
from modules.base import HomeworkModule
from scripts.cli.config_parser import class_named, known_classes
from scripts.cli.mistakes import Parser, UsageError
from scripts.run.folder import RunFolder
from scripts.train import LeemlCLI, find_config, new_run, own_flags, run_cli


def predict_rows(cli: LeemlCLI, loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and predictions of a loader's rows, by the weights in memory."""
    quiet = Trainer(
        accelerator=cli.trainer.accelerator, devices=1, precision=cli.trainer.precision, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=cli.trainer.default_root_dir,
    )  # fmt: skip
    batches: Sequence[Any] = quiet.predict(cli.model, dataloaders=loader) or []
    rows = torch.cat([b["row"] for b in batches]).cpu().numpy()
    return rows, torch.cat([b["prediction"] for b in batches]).float().cpu().numpy()


def read_configs(configs: Sequence[str]) -> dict[str, Any]:
    """The configs' sections; a later file wins."""
    merged: dict[str, Any] = {}
    for config in configs:
        for section, content in yaml.safe_load(Path(config).read_text(encoding="utf-8")).items():
            merged[section] = (merged.get(section) or {}) | content if isinstance(content, dict) else content
    return merged


def _chosen(section: str, config: dict[str, Any], flags: Sequence[str]) -> type | None:
    """The class that configs and flags name for model or data, if they name one."""
    parser = Parser(add_help=False)
    parser.add_argument(f"--{section}", default=(config.get(section) or {}).get("class_path", ""))
    name = vars(parser.parse_known_args(flags)[0])[section]
    return class_named(name, LightningModule if section == "model" else LightningDataModule) if name else None


def _no_folds(data: type) -> str | None:
    """Why these data cannot be cut into folds whose predictions are averaged; None where they can."""
    if not issubclass(data, HomeworkData):
        return "it needs folds, row numbers and a score; subclass HomeworkData (datamodules/base.py)"
    options = inspect.signature(data).parameters
    if any(option.kind is option.VAR_KEYWORD for option in options.values()) or {"folds", "fold"} <= options.keys():
        return data.no_kfold
    return "it has no options `folds` and `fold`, so its rows are not cut into folds; fit it once instead"


def main(args: list[str]) -> int:
    """Train all folds, in one pass where the module can, and write out-of-fold predictions, scores and submission."""
    parser = Parser(prog="leeml kfold", description=__doc__, epilog="Everything else as in leeml fit.")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--one_by_one", action="store_true", help="train the folds one after the other in any case")
    parser.add_argument("--run_dir", type=Path, help="folder of the run (default runs/<homework>/<level>_kfold/<time>)")
    own, rest = parser.parse_known_args(args[1:])
    configs = [find_config(c) for c in own_flags().parse_known_args(rest)[0].config]
    config = read_configs(configs)
    known_classes()
    model, data = (_chosen(section, config, rest) for section in ("model", "data"))
    if data is not None and (why := _no_folds(data)):
        raise UsageError(f"kfold cannot work on {data.__name__}: {why}")
    can = model is not None and issubclass(model, HomeworkModule) and model.members_in_one_pass
    together = can and not own.one_by_one
    run = RunFolder(own.run_dir.absolute()) if own.run_dir else new_run(configs, "_kfold")
    line = ["fit", *rest, "--trainer.devices=1", "--trainer.strategy=auto", f"--data.folds={own.folds}", "--run_dir"]
    if together:
        plans = [[*line, str(run.path), "--data.fold", "null"]]
    else:
        plans = [[*line, str(run.path / f"fold_{k}"), "--data.fold", str(k)] for k in range(own.folds)]
    held: list[tuple[np.ndarray, np.ndarray]] = []
    test: list[np.ndarray] = []
    no_test: DataError | None = None
    for plan in plans:
        cli = run_cli(plan, early_stopping=False)
        held.append(predict_rows(cli, cli.datamodule.val_dataloader()))
        try:
            cli.datamodule.setup("predict")
            rows, predicted = predict_rows(cli, cli.datamodule.predict_dataloader())
            test.append(predicted[rows.argsort()])
        except DataError as error:  # what the folds have learned is not thrown away for it
            no_test = error
    if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return 0
    rows, predicted = (np.concatenate(part) for part in zip(*held, strict=True))
    report(run, cli.datamodule, rows, predicted, test)
    if no_test is not None:
        print(f"leeml: no submission.csv was written: {no_test}", file=sys.stderr)
    return 0


def report(run: RunFolder, data: HomeworkData, rows: np.ndarray, predicted: np.ndarray, test: list[np.ndarray]) -> None:
    """Write out_of_fold.csv, scores.json and, with predictions of the test file, submission.csv; print the table."""
    fold = np.full(int(rows.max()) + 1, -1)
    for number, part in enumerate(data.split()):
        fold[part.val] = number
    order = np.argsort(rows)
    rows, predicted = rows[order], data.decide(predicted[order])
    ids, true = data.labels(rows)
    write_csv(
        run.path / "out_of_fold.csv",
        ["id", "fold", "true", "predicted"],
        zip(ids, fold[rows], true, predicted, strict=True),
    )
    if test:
        write_csv(run.path / "submission.csv", *data.submission(np.mean(test, axis=0)))
    by_fold = [data.score(true[fold[rows] == k], predicted[fold[rows] == k]) for k in range(data.n_folds)]
    name, mean, spread = data.score_name, float(np.mean(by_fold)), float(np.std(by_fold, ddof=1))
    run.add_scores(
        {f"kfold {name}": round(mean, 5), "spread": round(spread, 5), "folds": [round(s, 5) for s in by_fold]}
    )
    print(f"\n  fold  rows  {name}")
    for number, score in enumerate(by_fold):
        print(f"  {number:<4}  {int((fold[rows] == number).sum()):<4}  {score:.4f}")
    print(
        f"  mean        {mean:.4f}  (deviation over folds {spread:.4f}; last weights, nothing chosen on held-out rows)"
    )
    for text in describe_baselines(data.baselines(), mean):
        print(f"  course's baselines  {text}")
    submission = "submission.csv (mean of all folds' models), " if test else ""
    print(f"  files  {run.path}: out_of_fold.csv, {submission}scores.json")
