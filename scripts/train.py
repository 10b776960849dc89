"""fit, validate, test and predict: LightningCLI, with one folder a run and short errors."""

import argparse
import difflib
import importlib
import json
import logging
import os
import pkgutil
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks
import datamodules
import modules
from callbacks.figures import Figures
from callbacks.progress import RunProgress
from callbacks.submission import Submission
from datamodules.base import PROJECT, HomeworkData
from datamodules.errors import DataError
from modules.base import HomeworkModule
from scripts.run_folder import RunCSVLogger, RunFolder, RunRecord, load_checkpoint, log_to_file
from scripts.summary import show_summary

log = logging.getLogger("leeml")


class Parser(LightningArgumentParser):
    """Says a mistake in one line and suggests the nearest key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Print and exit with code 2; inner parsers raise, as jsonargparse tries one type after the other."""
        if not self.exit_on_error:
            super().error(message, ex)
        text = " ".join(message.split())
        for word in [w.strip("'\".") for w in text.split() if "'" in w or '"' in w]:
            known = [a.dest for a in self._actions]
            if word not in known and (near := difflib.get_close_matches(word, known, 1, 0.75)):
                text += f" (did you mean {near[0]}?)"
                break
        print(f"leeml: error: {text[:600]}", file=sys.stderr)
        sys.exit(2)


def known_classes() -> None:
    """Import all that configs may name by short names."""
    for package in (modules, datamodules, callbacks):
        for found in pkgutil.iter_modules(package.__path__):
            if not found.ispkg:
                importlib.import_module(f"{package.__name__}.{found.name}")


class LeemlCLI(LightningCLI):
    """LightningCLI whose runs have a folder and whose checkpoints never override the user's flags."""

    def __init__(self, args: list[str], run: RunFolder, output: str | None = None) -> None:
        self.run, self.output = run, output
        known_classes()
        super().__init__(
            HomeworkModule,
            HomeworkData,
            save_config_callback=None,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"use_distributed_sampler": False},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder's own flags, and the checkpoint that is always kept."""
        parser.add_argument(
            "--run_dir", type=str | None, help="Folder of the run (default runs/<homework>/<level>/<time>)."
        )
        parser.add_argument("--resume", type=bool, default=False, help="Go on with the interrupted run in --run_dir.")
        parser.add_argument(
            "--output", type=str | None, help="File that predict writes (default: submission.csv of the run)."
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
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
        module = _class(config.model.class_path)
        config.checkpoint.monitor = config.checkpoint.monitor or module.monitor
        config.checkpoint.mode = module.mode
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(self.run.checkpoints)
        config.trainer.default_root_dir = str(self.run.path)
        for key in ("root", "dir"):
            if value := config.data.init_args.get(key):
                config.data.init_args[key] = str(Path(value).expanduser().absolute())

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
        always = [Figures(), RunProgress()]
        if fit:
            always += [RunRecord(self.run, self.saved_config()), *([LearningRateMonitor("step")] if loggers else [])]
        if self.subcommand == "predict":
            always.append(Submission(self.output))
        given["callbacks"] = [*(given.get("callbacks") or []), *always]
        try:
            return super().instantiate_trainer(logger=loggers, **kwargs)
        except MisconfigurationException as error:
            if "backend found" in str(error) or "not available on your machine" in str(error):
                accelerator = given.get("accelerator")
                raise MisconfigurationException(
                    f"trainer.accelerator is {accelerator}, but this machine has none that torch can use ({error}); "
                    "leave out configs/presets/gpu.yaml or say --trainer.accelerator cpu"
                ) from None
            raise

    def saved_config(self) -> dict[str, Any]:
        """The resolved configuration, without what belongs to one call only."""
        assert self.subcommand is not None
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        config = yaml.safe_load(text)
        for key in ("run_dir", "resume", "output", "ckpt_path", "weights_only", "config"):
            config.pop(key, None)
        config["checkpoint"]["dirpath"] = config["trainer"]["default_root_dir"] = None
        return config

    def _known_model(self) -> None:
        """Give the model the facts of the checkpoint, so that the data can be held against them."""
        path = self.config_init[self.subcommand].get("ckpt_path")
        if path:
            checkpoint = load_checkpoint(Path(path))
            try:
                self.model.on_load_checkpoint(checkpoint)
            except MisconfigurationException as error:
                raise DataError(f"{path}: {error}") from None

    def before_fit(self) -> None:
        """Read nothing and write nothing before it is clear that there is data."""
        self.datamodule.locate()
        self._known_model()

    before_validate = before_test = before_predict = before_fit


def _class(path: str) -> type[HomeworkModule]:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def find_config(text: str) -> str:
    """A config's path: as typed, else in the project; a misspelt one gets the nearest as a suggestion."""
    if text.lstrip().startswith("{") or Path(text).is_file():
        return text
    if (PROJECT / text).is_file():
        return str(PROJECT / text)
    known = [str(p.relative_to(PROJECT)) for p in sorted((PROJECT / "configs").rglob("*.yaml"))]
    near = difflib.get_close_matches(text, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise DataError(f"{text}: no such config file; {hint}")


def _own_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--resume", nargs="?", const="true", default="false")
    parser.add_argument("--output")
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--ckpt_path", type=str)
    return parser


def plan(args: list[str]) -> tuple[list[str], RunFolder, str | None]:
    """Turn what the user typed into LightningCLI's arguments, the run's folder and the output file."""
    verb, known_verbs = args[0], ("fit", "validate", "test", "predict")
    assert verb in known_verbs
    own, rest = _own_flags().parse_known_args(args[1:])
    configs = [find_config(c) for c in own.config]
    run = RunFolder(own.run_dir.absolute()) if own.run_dir else None
    ckpt = own.ckpt_path
    if verb == "fit":
        if own.resume.lower() == "true":
            if run is None:
                raise DataError("--resume needs --run_dir, the folder of the run to go on with")
            ckpt = ckpt or str(run.checkpoint("last"))
            configs = [_run_config(run), *configs]
        elif run is not None and run.checkpoints.is_dir():
            raise DataError(
                f"{run.path}: holds a run already; add --resume to go on with it, or choose another --run_dir"
            )
    else:
        if run is None and ckpt is None:
            raise DataError(f"{verb} needs a trained run: --run_dir runs/..., or --ckpt_path FILE")
        if ckpt in (None, "best", "last"):
            if run is None:
                raise DataError(f"--ckpt_path {ckpt} needs --run_dir")
            ckpt = str(run.checkpoint(ckpt or "best"))
        if run is not None and run.config.is_file():
            configs = [_run_config(run), *configs]
        elif not configs:
            configs = [json.dumps(load_checkpoint(Path(ckpt))["config"])]
        if run is None:
            folder = Path(ckpt).absolute().parent
            run = RunFolder(folder.parent if folder.name == "checkpoints" else folder)
    if "--data.root" in " ".join(rest) and "--data.dir" not in " ".join(rest):
        rest = [*rest, "--data.dir", "null"]  # a folder of the run's config would win over the flag
    if run is None:
        run = new_run(configs)
    line = [verb, *(part for c in configs for part in ("--config", c)), *rest]
    return line + (["--ckpt_path", ckpt] if ckpt else []), run, own.output


def _run_config(run: RunFolder) -> str:
    if not run.config.is_file():
        raise DataError(f"{run.path}: no config.yaml here, so this is not the folder of a run")
    return str(run.config)


def new_run(configs: list[str], suffix: str = "") -> RunFolder:
    """The folder of a run that was given none, named after its first config."""
    if inherited := os.environ.get("LEEML_RUN_DIR"):  # a further process of the same run
        return RunFolder(Path(inherited))
    first = Path(configs[0]) if configs else Path("custom")
    homework = first.parent.name if first.parent.parent.name == "configs" else "custom"
    return RunFolder.new(homework, first.stem + suffix)


def run_cli(args: list[str]) -> LeemlCLI:
    """Run fit, validate, test or predict; what went wrong before training leaves nothing behind."""
    if {"-h", "--help", "--print_config"} & set(args) or any(a.startswith("--print_config") for a in args):
        if args[0] == "fit":
            args = [
                find_config(a) if before in ("-c", "--config") else a
                for before, a in zip(["", *args], args, strict=False)
            ]
        return LeemlCLI(args, RunFolder(Path("runs")))
    line, run, output = plan(args)
    fresh = not run.path.exists()
    writes = not any(a.startswith("--trainer.fast_dev_run") for a in line) and args[0] == "fit"
    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    try:
        if writes:
            run.create()
            log_to_file(run)
            os.environ["LEEML_RUN_DIR"] = str(run.path)
        return LeemlCLI(line, run, output)
    except BaseException:
        if fresh and not run.config.is_file() and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            shutil.rmtree(run.path, ignore_errors=True)
        elif run.checkpoints.is_dir() and args[0] == "fit":
            print(f"leeml: go on with: leeml fit --run_dir {run.path} --resume", file=sys.stderr)
        raise
    finally:
        os.environ.pop("LEEML_RUN_DIR", None)


def main(args: list[str]) -> int:
    """Run the verb, keep its scores, print the summary."""
    cli = run_cli(args)
    if cli.subcommand is None or not cli.trainer.is_global_zero or cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return 0
    show_summary(cli)
    return 0


if __name__ == "__main__":
    from scripts.leeml import main as leeml

    sys.exit(leeml())
