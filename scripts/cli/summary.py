"""The short table at the end of a subcommand: the score, the course's baselines, and where the files are."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer

from callbacks.checkpoints import BestCheckpoint
from datamodules.base import HomeworkData
from datamodules.course import describe_baselines
from scripts.run.folder import RunFolder

TESTED_ON = "tested on"
"""Key of scores.json beside the scores: on which rows `leeml test` found its own, in words."""


def collect(subcommand: str, trainer: Trainer) -> dict[str, Any]:
    """Scores of this call, by name."""
    if subcommand == "fit":
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
        if best is None or best.best_model_score is None or not best.best_model_score.isfinite():
            return {}
        return {f"best {best.monitor}": round(float(best.best_model_score), 5)}
    return {name: round(float(value), 5) for name, value in trainer.callback_metrics.items()}


def describe_checkpoint(path: Path) -> str:
    """A checkpoint's file, with the step that it was taken at."""
    step = torch.load(path, map_location="cpu", weights_only=True).get("global_step")
    return f"{path.name} of step {step}" if step is not None else path.name


def show_summary(
    subcommand: str, trainer: Trainer, data: LightningDataModule, run: RunFolder, output: str | None
) -> dict[str, Any]:
    """Print scores, baselines and files of the run, and return the scores of this call.

    Scores of earlier calls are remembered in scores.json.

    Args:
        subcommand: fit, validate, test or predict.
        trainer: What ran it.
        data: Its data.
        run: Its folder.
        output: The file that predict was told to write.
    """
    scores = collect(subcommand, trainer)
    told = scores | (
        {TESTED_ON: data.describe_test()} if subcommand == "test" and isinstance(data, HomeworkData) else {}
    )
    if scores and run.config.is_file():
        run.add_scores(told)
    known = run.read_scores() or told
    rows: list[tuple[str, str]] = [(name, f"{value}") for name, value in known.items()]
    if subcommand != "fit" and trainer.ckpt_path:
        rows.append(("weights", describe_checkpoint(Path(trainer.ckpt_path))))
    if isinstance(data, HomeworkData):
        metric = str(getattr(trainer.lightning_module, "monitor", "")).removeprefix("val/")
        score = known.get(f"test/{metric}", known.get(f"best val/{metric}"))
        rows += [("course's baselines", text) for text in describe_baselines(data.baselines(), score)]
    names = ("checkpoints/best.ckpt", "metrics.csv", "samples.csv", "figures", "submission.csv", "submission.txt")
    files = [run.path / name for name in names]
    rows += [("run folder", str(run.path))]
    rows += [("files", ", ".join(str(f.relative_to(run.path)) for f in files if f.exists()))]
    if output and subcommand == "predict":
        rows += [("submission", output)]
    width = max(len(name) for name, _ in rows)
    print()
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    return scores
