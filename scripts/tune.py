"""leeml tune: search hyper-parameters by Optuna, in the space of a sweep file (configs/sweeps/).

Each trial is a fit with the flags of the file, those typed here, and the values that the sampler chose. A trial is
judged by its best validation, and stopped early where the file says so. All trials stand in one file, study.db: an
interrupted search goes on by --resume. The same file starts a sweep of W&B: wandb sweep FILE.
"""

import json
import logging
import math
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.files import write_text
from callbacks.submission import write_csv
from datamodules.errors import DataError
from scripts.cli.mistakes import Parser, UsageError
from scripts.run.flags import check_flags
from scripts.run.folder import RunFolder
from scripts.runs import table
from scripts.train import find_config, new_run, run_cli

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from scripts.run.sweep import Sweep

COLUMNS = 3  # panels of the picture side by side
SHOWN = 10  # best trials in the table that is printed; trials.csv has all


class Judge(Callback):
    """Tells Optuna of each validation, and ends the fit where the trial is not worth going on with.

    Args:
        trial: The trial.
        metric: What it is judged by.
        direction: minimize or maximize.
    """

    def __init__(self, trial: "Trial", metric: str, direction: str) -> None:
        self.trial, self.metric, self.better = trial, metric, max if direction == "maximize" else min
        self.best: float | None = None
        self.validations = 0
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the best value so far."""
        if trainer.sanity_checking:
            return
        if self.metric not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise DataError(f"metric.name: the validation has no {self.metric}; it has {known}")
        value = float(trainer.callback_metrics[self.metric])
        self.best = value if self.best is None else self.better(self.best, value)
        self.validations += 1
        self.trial.report(self.best, self.validations)
        if self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def check_optuna() -> None:
    """Say how to install Optuna where it is missing."""
    try:
        import optuna
    except ImportError:
        raise DataError("leeml tune needs Optuna: pip install 'leeml[tune]' (or pip install optuna)") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(run: RunFolder, sweep: "Sweep") -> "Study":
    """The search in a folder, begun where there is none; a trial that was interrupted is made again."""
    import optuna
    from optuna.trial import TrialState

    logging.getLogger("alembic").setLevel(logging.WARNING)
    run.path.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{run.path / 'study.db'}"
    study = optuna.create_study(
        storage=storage, study_name="tune", direction=sweep.direction, pruner=sweep.pruner, load_if_exists=True
    )
    if sweep.method == "grid" and not study.trials:
        for params in sweep.grid():
            study.enqueue_trial(params)
    waiting = [trial.params for trial in study.get_trials(states=(TrialState.WAITING,))]
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        shutil.rmtree(trial_folder(run, trial.number), ignore_errors=True)
        if trial.params and trial.params not in waiting:
            study.enqueue_trial(trial.params)
    return study


def trial_folder(run: RunFolder, number: int) -> Path:
    """Folder of a trial's run."""
    return run.path / "trials" / f"{number:03}"


def run_trial(sweep: "Sweep", study: "Study", run: RunFolder, flags: list[str], seed: int) -> "FrozenTrial":
    """Fit once, with values that the sampler chose."""
    from optuna.trial import TrialState

    from scripts.run.sweep import flags_of

    study.sampler = sweep.sampler(seed + len(study.trials))  # a search that is resumed draws as one that is not
    trial = study.ask()
    values = sweep.values(trial)
    folder = trial_folder(run, trial.number)
    print(f"trial {trial.number}: " + ", ".join(f"{k} {_short(v)}" for k, v in values.items()), flush=True)
    judge = Judge(trial, sweep.metric, sweep.direction)
    line = ["fit", *sweep.flags, *flags, *flags_of(values), "--run_dir", str(folder)]
    try:
        cli = run_cli(line, watch=judge, again=f"leeml tune --run_dir {run.path} --resume")
    except Exception as error:
        if type(error).__name__ == "NotFiniteError":
            trial.set_user_attr("failed", str(error))  # it counts as a trial; one that was interrupted does not
        study.tell(trial, state=TrialState.FAIL)
        if type(error).__name__ != "NotFiniteError":
            raise
        print(f"trial {trial.number}: failed: {error}", flush=True)
        return study.trials[trial.number]
    if cli.trainer.fast_dev_run or judge.best is None:  # type: ignore[attr-defined]
        study.tell(trial, state=TrialState.FAIL)
        raise DataError("the fit ended before its first validation, so there is nothing to judge it by")
    trial.set_user_attr("validations", judge.validations)
    trial.set_user_attr("best", judge.best)
    study.tell(trial, None if judge.pruned else judge.best, TrialState.PRUNED if judge.pruned else TrialState.COMPLETE)
    how = f", stopped after {judge.validations} validations" if judge.pruned else ""
    print(f"trial {trial.number}: {sweep.metric} {judge.best:.5g}{how}", flush=True)
    return study.trials[trial.number]


def ended_trials(study: "Study") -> "list[FrozenTrial]":
    """Those that count: that came to their end, were stopped early, or failed by numbers that are not finite."""
    from optuna.trial import TrialState

    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in ended or "failed" in trial.user_attrs]


def keep_best(study: "Study", run: RunFolder) -> None:
    """Delete the checkpoints of all trials but the best: a hundred networks would fill the disk."""
    best = best_trial(study)
    for trial in study.trials:
        if best is not None and trial.number != best.number:
            for file in (trial_folder(run, trial.number) / "checkpoints").glob("*.ckpt"):
                file.unlink()


def best_trial(study: "Study") -> "FrozenTrial | None":
    """The best of those that came to their end; None where there is none yet."""
    from optuna.trial import TrialState

    return study.best_trial if study.get_trials(states=(TrialState.COMPLETE,)) else None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _choice(value: Any) -> str:
    """A value as a person writes it: choices are JSON texts."""
    return str(json.loads(value)) if isinstance(value, str) else str(value)


def _rounded(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def rows_of(study: "Study", sweep: "Sweep") -> tuple[list[str], list[list[str]]]:
    """Columns and rows of trials.csv, the best trial first, those without a score last."""
    sign = -1 if sweep.direction == "maximize" else 1
    trials = [trial for trial in study.trials if trial.params]
    trials.sort(key=lambda t: (t.value is None, sign * t.user_attrs.get("best", 0.0)))
    columns = ["trial", "state", sweep.metric, "validations", *sweep.space]
    rows = [
        [
            str(t.number),
            t.state.name.lower(),
            *(f"{t.user_attrs[k]:.6g}" if k in t.user_attrs else "" for k in ("best", "validations")),
            *(_choice(t.params[key]) if key in t.params else "" for key in sweep.space),
        ]
        for t in trials
    ]
    return columns, rows


def draw_importance(study: "Study", sweep: "Sweep", path: Path) -> str | None:
    """Write a picture: how much of the spread of scores each parameter explains, and the scores over its values.

    Returns:
        Why there is no picture; None where there is one.
    """
    import optuna

    scored = [trial for trial in study.trials if "best" in trial.user_attrs]
    scores = [trial.user_attrs["best"] for trial in scored]
    if len(set(scores)) < 2:
        return "it takes two trials with different scores"
    from matplotlib.figure import Figure

    from callbacks.files import whole
    from modules.pictures.captions import explain

    every = optuna.create_study(direction=sweep.direction)  # Optuna leaves out the trials that were stopped early
    every.add_trials(
        [
            optuna.create_trial(params=t.params, distributions=t.distributions, value=t.user_attrs["best"])
            for t in scored
        ]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    importance = optuna.importance.get_param_importances(every, evaluator=evaluator)
    names = list(importance)
    full = [trial.state == optuna.trial.TrialState.COMPLETE for trial in scored]
    rows = math.ceil((len(names) + 1) / COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 1 + 3 * rows), layout="constrained")
    bars, *panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    bars.barh([name.rpartition(".")[2] for name in names], list(importance.values()), color="tab:blue")
    bars.invert_yaxis()
    bars.set(xlabel="share of the variance of the score", ylabel="setting, by its importance (fANOVA)")
    bars.set_xlim(0, 1)
    for name, axes in zip(names, panels, strict=False):
        kind = sweep.space[name]
        values = [trial.params[name] for trial in scored]
        if isinstance(kind, optuna.distributions.CategoricalDistribution):
            values = [kind.choices.index(value) for value in values]
            axes.set_xticks(range(len(kind.choices)), [_choice(c) for c in kind.choices])
        elif getattr(kind, "log", False):
            axes.set_xscale("log")
        for wanted, marker, label in ((True, "o", "to the end"), (False, "x", "stopped early")):
            if chosen := [i for i, ended in enumerate(full) if ended == wanted]:
                axes.scatter([values[i] for i in chosen], [scores[i] for i in chosen], s=18, marker=marker, label=label)
        axes.set(xlabel=name, ylabel=f"best {sweep.metric}")
        axes.grid(alpha=0.3)
    panels[len(names) - 1].legend(fontsize="small")
    explain("importance", figure, f"{sweep.metric} of {len(scored)} trials")
    with whole(path) as scratch:
        figure.savefig(scratch, format="png", dpi=110)
    return None


def report(study: "Study", sweep: "Sweep", run: RunFolder, flags: list[str]) -> None:
    """Write trials.csv and importance.png, print the best trials and what to do with the best."""
    from scripts.run.sweep import flags_of

    columns, rows = rows_of(study, sweep)
    write_csv(run.path / "trials.csv", columns, rows)
    why = draw_importance(study, sweep, run.path / "importance.png")
    short = [column.rpartition(".")[2] for column in columns]
    print("\n" + table(short, [[_rounded(cell) for cell in row] for row in rows[:SHOWN]]))
    print(f"\n  files  {run.path}: study.db, trials.csv" + (", importance.png" if why is None else ""))
    if why is not None:
        print(f"  no importance.png: {why}")
    best = best_trial(study)
    if best is not None:
        values = {k: json.loads(v) if isinstance(v, str) else v for k, v in best.params.items()}
        line = [*sweep.flags, *flags, *flags_of({**sweep.fixed, **values})]
        folder = trial_folder(run, best.number)
        print(f"  best   trial {best.number}: leeml test --run_dir {folder}")
        print(f"  again  leeml fit {' '.join(repr(w) if ' ' in w else w for w in line)}")
        print("  The best of many trials looks better than it is: judge it on rows that chose nothing, such as a")
        print("  labelled test set (leeml test) or another fold (the line above with --data.fold 1).")


def begin(run: RunFolder, sweep: str, flags: list[str], seed: int) -> None:
    """Write what a new search was asked for into its folder, which must be new or empty.

    Raises:
        DataError: the folder is another process's, or holds something.
    """
    run.create()
    if held := sorted(path.name for path in run.path.iterdir() if path.name != ".lock"):
        run.free()
        if "study.db" in held:
            raise DataError(f"{run.path}: holds a search already; add --resume to go on with it, or choose another")
        raise DataError(f"{run.path}: holds {held[0]} already; name a new or an empty folder for the search")
    write_text(run.path / "sweep.yaml", sweep)
    write_text(run.path / "tune.json", json.dumps({"flags": flags, "seed": seed}, indent=2) + "\n")


def discard(run: RunFolder, made: bool) -> None:
    """Delete the files of a search, and its folder if the search made it."""
    for name in ("sweep.yaml", "tune.json", "study.db", "study.db-journal"):
        (run.path / name).unlink(missing_ok=True)
    shutil.rmtree(run.path / "trials", ignore_errors=True)
    run.free()
    if made:
        with suppress(OSError):
            run.path.rmdir()


def read_asked(run: RunFolder, trust: bool) -> tuple[list[str], int]:
    """Flags and seed that a search was begun with.

    Raises:
        DataError: the record is damaged, or it or the sweep file names what is not to be trusted.
    """
    path = run.path / "tune.json"
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        flags, seed = [str(flag) for flag in asked["flags"]], int(asked["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: the record of the search is missing or damaged; begin a new search") from None
    if not trust:
        trials = run.path / "trials"
        if links := [link for link in (trials, *sorted(trials.glob("*"))) if link.is_symlink()]:
            raise DataError(f"{links[0]}: is a link, which could lead out of the search's folder; see --trust")
        check_sweep(run, flags)
    return flags, seed


def check_sweep(run: RunFolder, flags: list[str]) -> None:
    """Hold all that the trials of a search may be given against the list of known classes.

    Raises:
        DataError: something is not on it.
    """
    from optuna.distributions import CategoricalDistribution

    from scripts.run.sweep import flags_of, read_sweep

    source = run.path / "sweep.yaml"
    sweep = read_sweep(source)
    choices = [
        flag
        for key, kind in sweep.space.items()
        for value in (kind.choices if isinstance(kind, CategoricalDistribution) else ["0"])
        for flag in flags_of({key: json.loads(str(value))})
    ]
    check_flags([*sweep.flags, *flags, *flags_of(sweep.fixed), *choices], source, run.path)


def main(args: list[str]) -> int:
    """Search, or go on with a search."""
    parser = Parser(prog="leeml tune", description=__doc__)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="such as configs/sweeps/hw1_covid.yaml")
    parser.add_argument("--trials", type=int, help="of the whole search (default: run_cap of the file, else 20)")
    parser.add_argument("--run_dir", type=Path, help="folder of the search (default: runs/<homework>/tune/<time>)")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --run_dir")
    parser.add_argument("--trust", action="store_true", help="with --resume: allow classes that leeml does not know")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the sampler (default: 0); of the fits: --seed_everything"
    )
    parser.epilog = "All other flags go to each fit, such as --data.root DIR or --trainer.max_epochs 20."
    own, flags = parser.parse_known_args(args[1:])
    check_optuna()
    from scripts.run.sweep import read_sweep

    run = RunFolder(own.run_dir.expanduser().absolute()) if own.run_dir else None
    made = False
    if own.resume:
        if run is None or not (run.path / "study.db").is_file():
            raise UsageError("--resume needs --run_dir, the folder of a search that was begun (it holds study.db)")
        if own.sweep or flags:
            raise UsageError("--resume takes the sweep file and flags that the search was begun with: leave them out")
        flags, seed = read_asked(run, own.trust)
        run.own()
    else:
        if own.sweep is None:
            raise UsageError("tune needs a sweep file, such as configs/sweeps/hw1_covid.yaml")
        source, seed = Path(find_config(own.sweep)), own.seed
        read_sweep(source)
        run = run or new_run([f"configs/{source.stem}/tune.yaml"])
        made = not run.path.exists()
        begin(run, source.read_text(encoding="utf-8"), flags, seed)
    sweep = read_sweep(run.path / "sweep.yaml")
    total = own.trials or sweep.most or 20
    total = min(total, sweep.most) if sweep.method == "grid" and sweep.most else total
    study = None
    try:
        study = open_study(run, sweep)
        while (done := len(ended_trials(study))) < total:
            print(f"\nleeml tune: trial {done + 1} of {total}", file=sys.stderr, flush=True)
            run_trial(sweep, study, run, flags, seed)
            keep_best(study, run)
        report(study, sweep, run, flags)
        if failed := [t.user_attrs["failed"] for t in study.trials if "failed" in t.user_attrs]:
            if len(failed) == len(ended_trials(study)):
                raise DataError(f"{run.path}: all {len(failed)} trials failed; the last: {failed[-1]}")
            print(f"  failed {len(failed)} of {total} trials, by numbers that are not finite")
    except Exception:
        if not own.resume and (study is None or not ended_trials(study)):
            discard(run, made)
        raise
    finally:
        run.free()
    return 0
