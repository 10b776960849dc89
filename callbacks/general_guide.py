"""The lectures' general guide: from training, validation and test loss to what is wrong and what to try next."""

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.files import write_text

Branch = Literal[
    "no better than chance", "model bias", "optimisation", "model bias or optimisation", "overfitting", "mismatch",
    "no reference yet", "good",
]  # fmt: skip

FILE = "guide.json"

ADVICE: dict[Branch, str] = {
    "no better than chance": "the training loss is that of an answer which ignores the input: look for a rate that is "
    "far too small or large, wrong labels, or inputs that do not reach the network",
    "model bias": "a larger model reached less training loss: make the model more flexible (features, width, depth)",
    "optimisation": "a model of at most this size reached less training loss, so this one could too: train longer or "
    "with another optimizer or rate, add warm-up, normalisation or residual connections",
    "model bias or optimisation": "the training loss is large: train a smaller, shallower model; if that one reaches "
    "less, it is optimisation, if not, make this one more flexible",
    "overfitting": "more training data, augmentation, or less flexibility: dropout, weight decay, early stopping, "
    "fewer features, a smaller model",
    "mismatch": "the test rows differ from those held out of the training data, so more of the same data will not "
    "help: look at how the two came about, and hold out rows as the test does (other people, places, later days)",
    "no reference yet": "training and validation loss are close, but nothing tells whether they are small: train "
    "another model on the same data, or set `goal`, such as what a baseline of the course means for the loss",
    "good": "training and validation loss are both small: to go on, lower the goal",
}


class Losses(NamedTuple):
    """What a run ended with; test is None before `leeml test`."""

    parameters: int
    train: float
    validation: float
    test: float | None = None


@runtime_checkable
class KnowsChance(Protocol):
    """A datamodule that knows the loss of the best answer that ignores the input."""

    def chance_loss(self) -> float | None:
        """That loss on the training rows; None where it is not known."""


def diagnose(
    run: Losses,
    references: list[Losses],
    goal: float | None,
    tolerance: float = 0.05,
    gap: float = 0.2,
    chance: float | None = None,
) -> Branch:
    """The branch of the lectures' tree that a run is on.

    The training loss comes first: nothing was learned where it is not below chance, and it is large where it is above
    the goal, or where another run reached less. Only where it is small does the validation loss tell of overfitting,
    and only where that is small, too, the test loss of mismatch: rows held out at random come from where the training
    rows come from, those of the test perhaps not. Without a goal or another run nothing tells whether losses are small.

    Args:
        run: The run in question.
        references: Other runs on the same data with the same loss.
        goal: Training loss that is small enough; None: the least of the references'.
        tolerance: Relative difference of two training losses that still counts as none.
        gap: Relative difference between training and validation, or validation and test, that still counts as none.
        chance: Loss of the best answer that ignores the input; None: not known.
    """
    if chance is not None and not run.train < chance * (1 - tolerance):
        return "no better than chance"
    best = min((r.train for r in references), default=math.inf)
    small_enough = (min(best, run.train) if goal is None else goal) * (1 + tolerance)
    if not run.train <= small_enough:  # also where it is not a number
        better = [r for r in references if r.train * (1 + tolerance) < run.train or math.isnan(run.train)]
        if any(r.parameters <= run.parameters for r in better):
            return "optimisation"
        return "model bias" if better else "model bias or optimisation"
    if not run.validation <= run.train * (1 + gap):
        return "overfitting"
    if run.test is not None and not run.test <= run.validation * (1 + gap):
        return "mismatch"
    return "good" if references or goal is not None else "no reference yet"


class GeneralGuide(Callback):
    """After a fit says where the run stands on the lectures' tree (lecture 2 of 2021), and what to try next.

    Losses are the last epoch's: training loss as the module logged it, so with dropout and augmentation on, which makes
    it look larger than it is. They go to <trainer.default_root_dir>/guide.json with the branch; the same files of other
    runs with the same module and data classes are the references. `leeml test` adds the test loss and looks again.

    Args:
        runs: Folder to look for references in, with all below it (default: runs/<homework>, where the run's own folder
            is runs/<homework>/<level>/<time>).
        goal: Training loss that would be small enough, such as the course's strong line (default: the least of the
            references').
        tolerance, gap: See diagnose.
    """

    def __init__(
        self, runs: str | None = None, goal: float | None = None, tolerance: float = 0.05, gap: float = 0.2
    ) -> None:
        for name, value in {"goal": goal, "tolerance": tolerance, "gap": gap}.items():
            if value is not None and value < 0:
                raise MisconfigurationException(f"GeneralGuide: {name} is {value}: expected 0 or more")
        self.runs, self.goal, self.tolerance, self.gap = runs, goal, tolerance, gap
        self.branch: Branch | None = None
        """What the last fit or test ended on."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the run by training and validation loss."""
        train, validation = _loss(trainer, "train"), _loss(trainer, "val")
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        if train is None or validation is None:
            missing = "train/loss" if train is None else "val/loss or val/mse"
            rank_zero_warn(f"GeneralGuide: no {missing} was logged, so there is nothing to compare")
            return
        parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self._judge(trainer, pl_module, Losses(parameters, train, validation))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the run again, now that its test loss is known."""
        test, own = _loss(trainer, "test"), _read(Path(trainer.default_root_dir) / FILE)
        if trainer.is_global_zero and test is not None and own is not None:
            self._judge(trainer, pl_module, own[1]._replace(test=test))

    def _judge(self, trainer: Trainer, pl_module: LightningModule, run: Losses) -> None:
        own = Path(trainer.default_root_dir).absolute()
        task = [type(part).__name__ for part in (pl_module, getattr(trainer, "datamodule", None))]
        beside = own.parent.parent.glob(f"*/*/{FILE}")  # runs/<homework>/<level>/<time>; no deeper, it may be anywhere
        paths = Path(self.runs).expanduser().rglob(FILE) if self.runs else beside
        found = [_read(path) for path in sorted(paths) if path.parent.absolute() != own]
        references = [losses for kind, losses in filter(None, found) if kind == task]
        data = getattr(trainer, "datamodule", None)
        chance = data.chance_loss() if isinstance(data, KnowsChance) else None
        self.branch = diagnose(run, references, self.goal, self.tolerance, self.gap, chance)
        kept = {"task": task, "losses": run._asdict(), "references": len(references), "chance": chance}
        kept |= {"branch": self.branch, "advice": ADVICE[self.branch]}
        write_text(own / FILE, json.dumps(kept, indent=2) + "\n")
        test = "" if run.test is None else f", test {run.test:.4g}"
        test += "" if chance is None else f", chance {chance:.4g}"
        rank_zero_info(
            f"general guide: {self.branch} (training loss {run.train:.4g}, validation {run.validation:.4g}{test}, "
            f"other runs: {len(references)}): {ADVICE[self.branch]}"
        )


def _loss(trainer: Trainer, part: str) -> float | None:
    """The last epoch's <part>/loss, or <part>/mse where the loss is that."""
    metrics = trainer.callback_metrics
    return next((float(metrics[f"{part}/{name}"]) for name in ("loss", "mse") if f"{part}/{name}" in metrics), None)


def _read(path: Path) -> tuple[list[str], Losses] | None:
    """Module and data class, and losses, of a run; None where there is no such file or it is not one of ours."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["task"], Losses(**kept["losses"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
