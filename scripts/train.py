"""fit, validate, test and predict: LightningCLI, with one folder a run and short errors."""

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint, RunCheckpointIO
from callbacks.figures import Figures
from callbacks.finite import FiniteNumbers, NotFiniteError, Policy
from callbacks.last_validation import LastValidation
from callbacks.memory import MemoryNeeded
from callbacks.progress import RunProgress
from callbacks.samples import Samples
from callbacks.submission import Submission
from callbacks.time_spent import TimeSpent
from callbacks.wandb_record import log_scores
from datamodules.base import HomeworkData
from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from modules.base import HomeworkModule
from modules.pictures.captions import explain
from scripts.cli.config_parser import ConfigParser, check_nulls, find_own, known_classes
from scripts.cli.lightning_features import check_trainer, explain_callback, listed
from scripts.cli.mistakes import Parser, UsageError
from scripts.cli.summary import show_summary
from scripts.cli.yaml_files import check_yaml, read_yaml
from scripts.run.checkpoint import checkpoint_config, load_checkpoint, run_config, typed_names
from scripts.run.device import settle_device
from scripts.run.folder import RunFolder, agreed
from scripts.run.records import RunCSVLogger, RunRecord, close_log, open_log
from scripts.run.resume import Changes, check_averaging, check_data, optimizer_changes
from scripts.run.trusted import ONE_CALL
from scripts.run.wandb_run import WANDB_NAMES, settle_wandb

NOISE = (
    ".*does not have many workers",
    "LightningCLI's args parameter",
    ".*LeafSpec.*deprecated",
    "Couldn't infer",
    "The dirpath",
)


class LeemlCLI(LightningCLI):
    """LightningCLI whose runs have a folder and whose checkpoints never override the user's flags."""

    def __init__(
        self,
        args: list[str],
        run: RunFolder,
        output: str | None = None,
        early_stopping: bool = True,
        trust: bool = False,
        watch: Callback | None = None,
        settle: Callable[[Any], None] | None = None,
    ) -> None:
        self.early_stopping, self.trust, self.watch, self.settle = early_stopping, trust, watch, settle
        self.run, self.output, self.asked = run, output, args[0]
        self.typed_configs = [value for flag, value in pairwise(args) if flag == "--config"]
        known_classes()
        words = [word for word in args if not word.startswith("{")]  # what a run's own configuration holds is not typed
        self.typed = typed_names(words, [config for config in self.typed_configs if not config.startswith("{")])
        find_own(typed_names(args, self.typed_configs) if trust else self.typed)
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            parser_class=ConfigParser,
            parser_kwargs={"prog": "leeml"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            load_from_checkpoint_support=False,  # it ties the optimizer to the whole CLI, which EMA would copy
            auto_configure_optimizers=False,
            trainer_defaults={"use_distributed_sampler": False, "devices": 1},  # more by --trainer.devices or ddp.yaml
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that is wanted: every further parser costs a tenth of a second."""
        return {self.asked: LightningCLI.subcommands()[self.asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder's own flags, and the checkpoint that is always kept."""
        parser.add_argument(
            "--run_dir", type=str | None, help="Folder of the run (default runs/<homework>/<level>/<time>)."
        )
        parser.add_argument("--resume", type=bool, default=False, help="Resume the interrupted run in --run_dir.")
        parser.add_argument(
            "--output", type=str | None, help="File that predict writes (default: submission.csv, or .txt, of the run)."
        )
        parser.add_argument(
            "--trust", type=bool, default=False, help="Allow the run to use classes and files that leeml does not know."
        )
        parser.add_argument(
            "--budget",
            type=str | None,
            help="Time that fit may take, such as 12m: steps and schedules are set from it.",
        )
        parser.add_argument(
            "--nonfinite", type=Policy, default="stop", help="What to do about a step whose numbers are not finite."
        )
        for key, kind in WANDB_NAMES.items():
            parser.add_argument(f"--wandb.{key}", type=kind | None, help=f"{key.capitalize()} of the W&B run.")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        for action in parser._actions:
            if action.dest == "trainer.precision":  # Lightning knows no "auto"; settle_device does
                action._typehint = Literal["auto"] | action._typehint  # type: ignore[attr-defined]
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )

    def _parse_ckpt_path(self) -> None:
        """Flags and configs win over a checkpoint's hyper-parameters (Lightning does it the other way round)."""

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the run: folders, the monitored metric, W&B without questions."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        check_nulls(config)
        if config.get("budget") is not None:  # a typed one is taken off the line before
            raise UsageError("budget: belongs on the command line of fit or kfold, as --budget 12m", "budget")
        module, data = (_class(config[part].class_path) for part in ("model", "data"))
        ours = issubclass(module, HomeworkModule)
        if ours:
            if lacks := [name for name in ("homework", "monitor") if not hasattr(module, name)]:
                raise DataError(
                    f"{module.__name__} does not set {' and '.join(lacks)}: see HomeworkModule, modules/base.py"
                )
            config.checkpoint.monitor = config.checkpoint.monitor or module.monitor
            config.checkpoint.mode = module.mode
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(self.run.checkpoints)
        if config.trainer.default_root_dir is not None:
            raise UsageError(
                "trainer.default_root_dir: name the run's folder with --run_dir", "trainer.default_root_dir"
            )
        config.trainer.default_root_dir = str(self.run.path)
        if self.settle is not None:
            self.settle(config)
        if issubclass(data, HomeworkData):
            for key in ("root", "dir"):
                if value := config.data.init_args.get(key):
                    config.data.init_args[key] = str(Path(value).expanduser().absolute())
        if self.subcommand in ("validate", "test"):
            config.verbose = False  # the summary has the scores
        if self.subcommand == "fit":
            names = {key: config.pop(f"wandb.{key}") for key in WANDB_NAMES}
            settle_wandb(config.trainer.logger, self.run, module.homework if ours else module.__name__, names)
        settle_device(config.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks and loggers that every run has."""
        assert self.subcommand is not None
        fit = self.subcommand == "fit"
        given = self._get(self.config_init, "trainer")
        loggers = given.get("logger")
        if fit and loggers is not False:
            extra = loggers if isinstance(loggers, list) else [] if isinstance(loggers, bool | None) else [loggers]
            loggers = [RunCSVLogger(self.run.path), *extra]
        else:
            loggers = False
        check_trainer(given)
        if not isinstance(self.datamodule, HomeworkData):
            given["use_distributed_sampler"] = True  # only ours share their rows out over ranks themselves
        chosen = listed(given.get("callbacks"))
        bar = given.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in chosen)
        if given.get("enable_model_summary") is None and not any(isinstance(c, ModelSummary) for c in chosen):
            given["enable_model_summary"] = False  # RunProgress says it in a line
        if self.watch is not None and not any(isinstance(c, ProgressBar) for c in chosen):
            given["enable_progress_bar"] = False
        seen: list[Callback] = [Figures(explain), *([RunProgress()] if bar else [])]
        always: list[Callback] = [FiniteNumbers(self._get(self.config_init, "nonfinite"))]
        always += seen if self.watch is None else [self.watch]
        if fit:
            always += [
                RunRecord(self.run, self.saved_config(), self._resumed(), self.typed_configs),
                Samples(),
                *([LastValidation()] if self.watch is None else []),
                TimeSpent(),
                *([MemoryNeeded()] if given.get("fast_dev_run") else []),
                *([LearningRateMonitor("step")] if loggers else []),
            ]
            given["plugins"] = [*listed(given.get("plugins")), RunCheckpointIO()]
        if self.subcommand == "predict":
            always.append(Submission(self.output))
        if not self.early_stopping:
            chosen = [callback for callback in chosen if not isinstance(callback, EarlyStopping)]
        given["callbacks"] = [*chosen, *always]
        try:
            trainer = super().instantiate_trainer(logger=loggers, **kwargs)
            if fit and self.watch is None:
                trainer.callbacks.append(LastCheckpoint(self.run.checkpoints / "last.ckpt"))  # type: ignore[attr-defined]
            return trainer
        except MisconfigurationException as error:
            if "backend found" in str(error) or "not available on your machine" in str(error):
                accelerator = given.get("accelerator")
                raise MisconfigurationException(
                    f"trainer.accelerator is {accelerator}, but this machine has none that torch can use ({error}); "
                    "leave out configs/presets/gpu.yaml or say --trainer.accelerator cpu"
                ) from None
            raise

    def instantiate_classes(self) -> None:
        """Values that a class does not take are the user's mistake."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError) as error:
            first: BaseException = error
            while first.__cause__ is not None:  # jsonargparse wraps what a constructor said
                first = first.__cause__
            if isinstance(first, DataError | MisconfigurationException):
                raise first from None
            raise DataError(f"{first} (LEEML_DEBUG=1 shows where)") from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise DataError(f"seed_everything: {error}") from None

    def _run_subcommand(self, subcommand: str) -> None:
        """As Lightning's; before the first training step a wrong value is the likely cause of an error."""
        try:
            super()._run_subcommand(subcommand)
        except (DataError, MisconfigurationException, OSError):
            raise
        except Exception as error:
            explain_callback(error)
            if not isinstance(error, ValueError | ArithmeticError):
                raise
            if self.trainer.fit_loop.epoch_loop.batch_progress.total.ready:
                raise
            raise DataError(f"{error} (while setting up {subcommand}; LEEML_DEBUG=1 shows where)") from error

    def saved_config(self) -> dict[str, Any]:
        """The resolved configuration, without what belongs to one call only."""
        assert self.subcommand is not None
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        config = yaml.safe_load(text)
        for key in ONE_CALL:
            config.pop(key, None)
        config["checkpoint"]["dirpath"] = config["trainer"]["default_root_dir"] = None
        return config

    def _resumed(self) -> Path | None:
        path = self.config[self.subcommand].get("ckpt_path")
        return Path(path) if path else None

    def _known_model(self) -> dict[str, Any] | None:
        """Give the model the facts of the checkpoint, so that the data can be held against them; returns it."""
        path = self.config_init[self.subcommand].get("ckpt_path")
        checkpoint = load_checkpoint(Path(path)) if path else None
        if checkpoint is not None:
            try:
                self.model.on_load_checkpoint(checkpoint)
            except MisconfigurationException as error:
                raise DataError(f"{path}: {error}; use the config, or the --run_dir, that it came from") from None
            except KeyError as error:
                raise DataError(f"{path}: its facts lack {error}: of another version of leeml; train again") from None
            found, expected = checkpoint["state_dict"], self.model.state_dict()
            wrong = sorted(k for k in {*found, *expected} if _shape(found, k) != _shape(expected, k))
            if not isinstance(self.model, HomeworkModule) and not expected:
                wrong = []  # its network is built later
            if wrong:
                raise DataError(
                    f"{path}: its weights do not fit the model: {wrong[0]} is {_shape(found, wrong[0])} in the file, "
                    f"{_shape(expected, wrong[0])} in the model; leave out the --model flags that differ from its own"
                )
        return checkpoint

    def _find_data(self) -> None:
        if isinstance(self.datamodule, HomeworkData):
            self.datamodule.locate()

    def before_validate(self) -> None:
        """Read nothing and write nothing before it is clear that there is data."""
        self._find_data()
        self._known_model()

    before_test = before_predict = before_validate

    def before_fit(self) -> None:
        """The same, hold the checkpoint's state against the flags, then begin the run's folder."""
        self._find_data()
        checkpoint, path = self._known_model(), self._resumed()
        if checkpoint is not None and path is not None:
            check_averaging(path, checkpoint, self.trainer)
            check_data(path, checkpoint, self.saved_config()["data"])
            changes: Changes = []
            if isinstance(self.model, HomeworkModule):
                changes = optimizer_changes(path, self.model, self.trust, self.typed)
            for record in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(record, RunRecord):
                    record.changes = changes
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.run.create()
            self.run.clear(rest=self._resumed() is None)
            open_log(self.run)


def _shape(state: dict[str, Any], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "absent"


def _class(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def find_config(text: str) -> str:
    """A config's path: as typed, else in the project; a misspelt one gets the nearest as a suggestion."""
    if text.lstrip().startswith("{"):
        return text
    for path in (Path(text), PROJECT / text):
        if path.is_file():
            check_yaml(path)
            return str(path)
    known = [str(p.relative_to(PROJECT)) for p in sorted((PROJECT / "configs").rglob("*.yaml"))]
    near = difflib.get_close_matches(text, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise UsageError(f"{text}: no such config file; {hint}")


def own_flags() -> Parser:
    """The flags that are settled before LightningCLI sees the rest."""
    parser = Parser(prog="leeml fit", add_help=False)
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--resume", nargs="?", const="true", default="false")
    parser.add_argument("--output")
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--ckpt_path", type=str)
    parser.add_argument("--trust", action="store_true")
    return parser


class Plan(NamedTuple):
    """What a command line comes to, with everything found that it leaves open."""

    subcommand: str
    configs: list[str]
    """Files, or the text of one that a checkpoint holds; a later one wins."""
    flags: list[str]
    """All others that LightningCLI takes."""
    ckpt_path: str | None
    run: RunFolder
    output: str | None
    """File that predict writes, where the user names one."""

    @property
    def line(self) -> list[str]:
        """The arguments that LightningCLI parses."""
        configs = [part for config in self.configs for part in ("--config", config)]
        return [self.subcommand, *configs, *self.flags, *(["--ckpt_path", self.ckpt_path] if self.ckpt_path else [])]


def plan(args: list[str]) -> Plan:
    """Find what the user left open: the configs of a run, its folder, its checkpoint."""
    subcommand, known = args[0], ("fit", "validate", "test", "predict")
    assert subcommand in known
    own, rest = own_flags().parse_known_args(args[1:])
    flags = {a.split("=")[0] for a in rest}
    configs = [find_config(c) for c in own.config]
    run = RunFolder(own.run_dir.absolute()) if own.run_dir else None
    ckpt = own.ckpt_path
    typed = typed_names(rest, configs)
    if subcommand == "fit":
        if own.resume.lower() == "true":
            if run is None:
                raise UsageError("--resume needs --run_dir, the folder of the run to resume")
            if run.config.is_file() or not configs:
                configs = [run_config(run, subcommand, typed, own.trust), *configs]
            ckpt = _resumed_from(run, ckpt)
        elif run is not None and run.taken():
            run.own()  # says so where it is in progress
            run.free()
            raise DataError(f"{run.path}: holds a run already; add --resume to resume it, or choose another --run_dir")
        elif not configs and not {"--model", "--data"} & flags:
            raise UsageError("fit needs an experiment, such as --config configs/hw1_covid/medium.yaml; see configs/")
    else:
        if run is None and ckpt is None:
            raise UsageError(f"{subcommand} needs a trained run: --run_dir runs/..., or --ckpt_path FILE")
        stored = None
        if ckpt in (None, "best", "last"):
            if run is None:
                raise UsageError(f"--ckpt_path {ckpt} needs --run_dir, the folder of the run it is in")
            stored = run_config(run, subcommand, typed, own.trust)
            path = run.checkpoint(ckpt) if ckpt else run.kept()
            if ckpt is None and path.stem == "last":
                print("leeml: this run has no best.ckpt, as no epoch was validated: last.ckpt it is", file=sys.stderr)
            ckpt = str(path)
        if stored is None and run is not None and run.config.is_file():
            stored = run_config(run, subcommand, typed, own.trust)
        elif stored is None and not configs:
            stored = checkpoint_config(Path(ckpt), subcommand, typed, own.trust)
        configs = [*([stored] if stored else []), *configs]
        if run is None:
            folder = Path(ckpt).absolute().parent
            run = RunFolder(folder.parent if folder.name == "checkpoints" else folder)
    if flags & {"--data.root", "--data.edition"} and "--data.dir" not in flags:
        rest = [*rest, "--data.dir", "null"]  # a folder of the run's config would win over the flag
    if run is None:
        run = new_run(configs)
    return Plan(subcommand, configs, rest, ckpt, run, own.output)


def _resumed_from(run: RunFolder, ckpt: str | None) -> str | None:
    """The checkpoint that --resume goes on from; None where the run ended before its first."""
    if ckpt is not None:
        return str(run.checkpoint(ckpt)) if ckpt in ("best", "last") else ckpt
    for name in ("last", "best"):
        if (run.checkpoints / f"{name}.ckpt").is_file():
            return str(run.checkpoint(name))
    if run.scores.is_file():  # it ended, and somebody deleted its checkpoints
        return str(run.checkpoint("last"))
    print(f"leeml: {run.path}: ended before its first checkpoint, so it starts over", file=sys.stderr)
    return None


def new_run(configs: list[str], suffix: str = "") -> RunFolder:
    """The folder of a run that was given none, named after its first config."""
    if inherited := os.environ.get("LEEML_RUN_DIR"):  # a further process of the same run
        return RunFolder(Path(inherited))
    first = Path(configs[0]).absolute() if configs else Path("custom")
    homework = first.parent.name if first.parent.parent.name == "configs" else "custom"
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return agreed(RunFolder.new(homework, first.stem + suffix), rank, world)


ONCE = ("Seed set to", "GPU available", "trainer.precision auto")
NEVER = (
    "Tip:",
    "Restoring states",
    "Loaded model weights",
    "TPU available",
    "Detected KeyboardInterrupt",
)  # leeml says itself that it was stopped
_said: set[str] = set()


def _worth_saying(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning tells something; what each fit of a command repeats is said once."""
    message = record.getMessage()
    if any(part in message for part in NEVER):
        return False
    again = message in _said
    if message.startswith(ONCE):
        _said.add(message)
    return not again


def run_cli(
    args: list[str],
    early_stopping: bool = True,
    again: str = "",
    notes: dict[Path, str] | None = None,
    watch: Callback | None = None,
    settle: Callable[[Any], None] | None = None,
) -> LeemlCLI:
    """Run fit, validate, test or predict; what went wrong before training leaves nothing behind.

    Args:
        args: The subcommand and its flags.
        early_stopping: Whether EarlyStopping of the config counts.
        again: Command that resumes the run after an interruption (default: fit --resume).
        notes: Texts of files to write when the run's folder is made.
        watch: Sees the fit in place of the bar, the pictures and last.ckpt.
        settle: Changes the configuration before anything is made from it.
    """
    for noise in NOISE if args[0] == "fit" else (*NOISE, "Be aware that when using `ckpt_path`"):  # no best is kept
        warnings.filterwarnings("ignore", message=noise)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_worth_saying)
    asks = {"-h", "--help"} & set(args) or any(
        a.startswith(("--print_config", "--data.help", "--model.help")) for a in args
    )
    if asks:
        if args[0] == "fit":
            args = [find_config(a) if before in ("-c", "--config") else a for before, a in pairwise(["", *args])]
        return LeemlCLI(args, RunFolder(Path("runs")))
    planned = plan(args)
    run = planned.run
    run.notes = notes or {}
    fits, fresh, done = args[0] == "fit", not run.path.exists(), False
    first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        if fits:
            os.environ["LEEML_RUN_DIR"] = str(run.path)  # for the processes that DDP starts
            if first:
                run.own()
        trust = "--trust" in args
        cli = LeemlCLI(planned.line, run, planned.output, early_stopping, trust, watch, settle)
        done = not cli.trainer.fast_dev_run  # type: ignore[attr-defined]
        return cli
    except UsageError as error:
        configs = list(planned.configs)
        if configs and configs[0].startswith("{") and run.config.is_file():  # what stands there was checked first
            configs[0] = str(run.config)
        raise error.placed(configs, args) from error.__cause__
    except BaseException as error:
        if fits and first and (run.trained or isinstance(error, KeyboardInterrupt | SystemExit)):
            if isinstance(error, NotFiniteError):  # it says itself how
                pass
            elif run.resumable() or (again and watch is not None):
                print(f"leeml: resume with: {again or f'leeml fit --run_dir {run.path} --resume'}", file=sys.stderr)
            else:
                print("leeml: nothing was saved yet: the same command starts over", file=sys.stderr)
        raise
    finally:
        os.environ.pop("LEEML_RUN_DIR", None)
        close_log()
        if fits and first:
            if fresh and not done and not any(run.checkpoints.glob("*.ckpt")):
                run.remove()
            run.free()


def main(args: list[str]) -> int:
    """Run the subcommand, keep its scores, print the summary.

    Raises:
        UsageError: several runs where one is wanted.
    """
    if args[0] in ("validate", "test") and sum(arg.split("=")[0] == "--run_dir" for arg in args) > 1:
        raise UsageError(f"{args[0]} takes one --run_dir; several runs predict together: leeml ensemble RUN RUN ...")
    cli = run_cli(args)
    if cli.subcommand is None or not cli.trainer.is_global_zero or cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return 0
    scores = show_summary(cli.subcommand, cli.trainer, cli.datamodule, cli.run, cli.output)
    if cli.subcommand == "test" and cli.run.config.is_file():
        log_scores(read_yaml(cli.run.config), cli.run.path, scores)
    return 0


if __name__ == "__main__":
    from scripts.leeml import main as leeml

    sys.exit(leeml())
