"""leeml kfold: every row predicted by models that never saw it, the spread over folds, and their ensemble's submission.

Nothing is chosen by looking at held-out rows: early stopping is dropped and the last weights are scored. An interrupted
call goes on at the fold and step where it stopped: by the same command, or by --run_dir DIR --resume. Folds may be
spread over sessions and machines (--only 0,1): copy their folders into one --run_dir, and the call that finds them all
joins them.
"""

import argparse
import inspect
import json
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.submission import table, write_csv
from datamodules.base import HomeworkData
from datamodules.course import describe_baselines
from datamodules.errors import DataError
from modules.base import HomeworkModule
from scripts.cli.config_parser import class_named, known_classes
from scripts.cli.mistakes import Parser, UsageError
from scripts.cli.yaml_files import read_yaml
from scripts.run.budget import parse_budget, settle, shorten_warmup
from scripts.run.checkpoint import from_config, load_checkpoint, run_config, typed_names
from scripts.run.folder import RunFolder
from scripts.run.folds import FoldPredictions, count_of, data_options, join, missing_of, predictions
from scripts.run.resume import PLACES
from scripts.train import LeemlCLI, find_config, new_run, own_flags, run_cli

RECORD = "kfold.json"  # what a k-fold run was asked for
ELSEWHERE = (*(f"--data.{key}" for key in PLACES), "--trainer.accelerator")


def predict_rows(cli: LeemlCLI, loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and predictions of a loader's rows, by the weights in memory."""
    quiet = Trainer(
        accelerator=cli.trainer.accelerator, devices=1, precision=cli.trainer.precision, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=cli.trainer.default_root_dir,
    )  # fmt: skip
    batches: Sequence[Any] = quiet.predict(cli.model, dataloaders=loader) or []
    if not all(isinstance(b, dict) and {"row", "prediction"} <= b.keys() for b in batches):
        raise DataError(
            f"{type(cli.model).__name__}.predict_step returns no 'row' and 'prediction', which tell what it says of "
            "which row; expected {'row': numbers (B,), 'prediction': (B, ...)}"
        )
    rows = torch.cat([b["row"] for b in batches]).cpu().numpy()
    return rows, torch.cat([b["prediction"] for b in batches]).float().cpu().numpy()


def predict_fold(cli: LeemlCLI) -> FoldPredictions:
    """What the last weights of a run say of the rows held out and of the test file."""
    last = cli.run.checkpoints / "last.ckpt"
    if last.is_file():  # a finished run that was gone on with did not train: its averaged weights are only there
        cli.model.load_state_dict(load_checkpoint(last)["state_dict"])
    found = FoldPredictions(*predict_rows(cli, cli.datamodule.val_dataloader()))
    try:
        cli.datamodule.setup("predict")
        rows, predicted = predict_rows(cli, cli.datamodule.predict_dataloader())
        found.test = predicted[rows.argsort()]
    except DataError as error:  # what the folds have learned is not thrown away for it
        found.no_test = str(error)
    return found


def read_configs(configs: Sequence[str]) -> dict[str, Any]:
    """The configs' sections; a later file wins."""
    merged: dict[str, Any] = {}
    for config in configs:
        for section, content in read_yaml(Path(config)).items():
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
        return "it needs folds, labels and a score; subclass HomeworkData (datamodules/base.py)"
    if lacks := [name for name in ("split", "labels", "score") if getattr(data, name) is getattr(HomeworkData, name)]:
        return f"it has no {' and no '.join(lacks)} of its own; fit it once instead"
    options = inspect.signature(data).parameters
    if any(option.kind is option.VAR_KEYWORD for option in options.values()) or {"folds", "fold"} <= options.keys():
        return data.no_kfold
    return "it has no options `folds` and `fold`, so its rows are not cut into folds; fit it once instead"


def main(args: list[str]) -> int:
    """Train all folds, in one pass where the module can, and write out-of-fold predictions, scores and submission."""
    parser = Parser(prog="leeml kfold", description=__doc__, epilog="Everything else as in leeml fit.")
    parser.add_argument("--folds", type=int, help="(default 5)")
    parser.add_argument("--one_by_one", action="store_true", help="train the folds one after the other in any case")
    parser.add_argument("--run_dir", type=Path, help="folder of the run (default runs/<homework>/<level>_kfold/<time>)")
    parser.add_argument("--resume", action="store_true", help="resume the interrupted run in --run_dir")
    parser.add_argument("--only", type=_numbers, help="train these folds (2,3), one by one; join when all are there")
    parser.add_argument("--budget", help="time for all folds together, such as 1h: see leeml fit --budget")
    own, rest = parser.parse_known_args(args[1:])
    began, steps = time.perf_counter(), None
    if own.resume and own.run_dir is None:
        raise UsageError("--resume needs --run_dir, the folder of the k-fold run to resume")
    configs = [find_config(c) for c in own_flags().parse_known_args(rest)[0].config]
    config = read_configs(configs)
    known_classes()
    model, data = (_chosen(section, config, rest) for section in ("model", "data"))
    if data is not None and (why := _no_folds(data)):
        raise UsageError(f"kfold cannot work on {data.__name__}: {why}")
    run = RunFolder(own.run_dir.absolute()) if own.run_dir else new_run(configs, "_kfold")
    begun = _begun_part(run)
    if begun is None:
        if own.resume and not configs:
            raise DataError(f"{run.path}: holds no k-fold run to resume; start it without --resume")
        own.folds = own.folds or 5
        can = model is not None and issubclass(model, HomeworkModule) and model.members_in_one_pass
        together = can and not own.one_by_one and own.only is None
        line = [*rest, "--trainer.devices=1", "--trainer.strategy=auto", f"--data.folds={own.folds}"]
        if own.budget:
            fits = 1 if together else len(own.only or range(own.folds))
            trial = [*line, "--data.fold", "null" if together else "0"]
            further, steps = settle(trial, parse_budget(own.budget), began, fits)
            line += further
    else:
        if own.budget:
            raise UsageError(
                f"--budget {own.budget}: the length of {run.path} is settled already; leave it out to resume"
            )
        own.folds, together = _settled(run, begun, own, rest, config)
        line = _going_on(begun, rest, configs)
    if wrong := [k for k in own.only or () if k >= own.folds]:
        raise UsageError(
            f"--only {wrong[0]}: expected numbers from 0 to {own.folds - 1}, as there are {own.folds} folds"
        )
    parts = [run] if together else [RunFolder(run.path / f"fold_{k}") for k in range(own.folds)]
    cli, warmup = None, None if steps is None else partial(shorten_warmup, steps=steps)
    for number, part in enumerate(parts):
        if (not together and own.only and number not in own.only) or predictions(part).is_file():
            continue
        fold = "null" if together else str(number)
        if part.config.is_file() and part.resumable():
            words = ["fit", *_going_on(part, rest, configs), "--run_dir", str(part.path), "--resume"]
        else:
            words = ["fit", *line, "--run_dir", str(part.path), "--data.fold", fold]
        again = f"leeml kfold --run_dir {run.path} --resume"
        notes = {} if begun else {run.path / RECORD: json.dumps(_asked(rest, config), indent=2) + "\n"}
        try:
            cli = run_cli(words, early_stopping=False, again=again, notes=notes, settle=warmup)
        except BaseException:
            _tidy(run)
            raise
        if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return 0
        predict_fold(cli).save(predictions(part))
    if missing := missing_of(parts):
        print(f"  folds {missing} are missing: leeml kfold --run_dir {run.path} --resume")
        return 0
    joined = join(parts)
    report(run, cli.datamodule if cli else read_data(parts[0], rest), joined)
    if joined.no_test:
        print(f"leeml: no submission.csv was written: {joined.no_test}", file=sys.stderr)
    return 0


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"found {text}, expected numbers of folds such as 2,3")
    return sorted({int(number) for number in text.split(",")})


def _begun_part(run: RunFolder) -> RunFolder | None:
    """The run whose configuration tells how the k-fold run is made: of all folds in one pass, or any fold's."""
    if run.config.is_file():
        options = data_options(run)
        if "folds" not in options or options.get("fold") is not None:
            raise DataError(
                f"{run.path}: holds a run already, and no k-fold run; resume it by leeml fit --resume, or choose "
                "another --run_dir"
            )
    folders = [run, *(RunFolder(path) for path in sorted(run.path.glob("fold_*")))]
    return next((part for part in folders if part.config.is_file()), None)


def _going_on(part: RunFolder, flags: Sequence[str], configs: Sequence[str]) -> list[str]:
    """The words of a fold that is made as a part of the run was: its configuration, and what is typed for one call.

    The user's configs come first: they allow the classes that they name, and the part's configuration overrules them.
    """
    trust = ["--trust"] if "--trust" in flags else []
    stored = run_config(part, "fit", typed_names(flags, configs), bool(trust))
    return [*(word for config in (*configs, stored) for word in ("--config", config)), *_where(flags), *trust]


def _settled(
    run: RunFolder, begun: RunFolder, own: argparse.Namespace, flags: Sequence[str], config: dict[str, Any]
) -> tuple[int, bool]:
    """Number of folds of a run that was begun, and whether all are trained in one pass.

    Raises:
        DataError: other flags than those it was begun with are typed.
    """
    folds, together = count_of(begun), data_options(begun).get("fold") is None
    if own.folds not in (None, folds) or (together and (own.only or own.one_by_one)):
        how = "in one pass" if together else "one by one"
        raise DataError(f"{run.path}: a k-fold run of {folds} folds {how}; say the same, or choose another --run_dir")
    record = run.path / RECORD
    asks = set(_words(flags)) - set(_where(flags))
    if asks and record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if before != _asked(flags, config):
            raise DataError(
                f"{run.path}: this k-fold run was begun with other flags or another config "
                f"({' '.join(before['flags'])}); resume with: leeml kfold --run_dir {run.path} --resume"
            )
    return folds, together


def _words(flags: Sequence[str]) -> list[str]:
    """Each flag with its value as one word."""
    found: list[str] = []
    for word in flags:
        if word.startswith("-") or not found or "=" in found[-1]:
            found.append(word)
        else:
            found[-1] += f"={word}"
    return found


def _where(flags: Sequence[str]) -> list[str]:
    """The flags that say where data and device are, which change no number."""
    return [w for w in _words(flags) if w.split("=")[0] in ELSEWHERE]


def _asked(flags: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    words = [w for w in _words(flags) if w.split("=")[0] not in (*ELSEWHERE, "--config", "-c", "--trust")]
    return json.loads(json.dumps({"flags": words, "config": config}, default=str))


def _tidy(run: RunFolder) -> None:
    """Leave no folder where no fold has begun."""
    if run.path.is_dir() and {path.name for path in run.path.iterdir()} == {RECORD}:
        (run.path / RECORD).unlink()
        run.path.rmdir()


def read_data(part: RunFolder, flags: Sequence[str]) -> HomeworkData:
    """The data of a fold that was trained before."""
    words = iter(flags)
    own = [w if "=" in w else f"{w}={next(words, '')}" for w in words if w.startswith("--data.")]
    if any(flag.startswith(("--data.root", "--data.edition")) for flag in own):
        own = ["--data.dir=null", *own]
    data = from_config(part.checkpoint("last"), own, "data", trust="--trust" in flags).data
    data.prepare_data()
    data.setup("fit")
    with suppress(DataError):
        data.setup("predict")
    return data


def report(run: RunFolder, data: HomeworkData, found: FoldPredictions) -> None:
    """Write out_of_fold.csv, scores.json and, with predictions of the test file, submission.csv; print the table."""
    rows, predicted, test = found.rows, found.held, found.test
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
    if test is not None:
        write_csv(run.path / "submission.csv", *table(data, test))
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
    submission = "submission.csv (mean of all folds' models), " if test is not None else ""
    print(f"  files  {run.path}: out_of_fold.csv, {submission}scores.json")
