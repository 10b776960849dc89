"""What a Weights & Biases run holds besides metrics and figures: configuration, best checkpoint, tables."""

import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info


@runtime_checkable
class Tabulates(Protocol):
    """A module that has tables of what it predicted last."""

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Name -> (columns, rows)."""


def has_key() -> bool:
    """Whether wandb finds an API key: in the environment, or for its server in the netrc file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(path).expanduser()).authenticators(server):
                return True
    return False


def log_best(run: Any, keeper: ModelCheckpoint) -> None:
    """Log the best checkpoint, if one was kept, as an artifact of type model (WandbLogger does so only online)."""
    from wandb import Artifact  # a second that only its users should wait

    # a resumed run may lie elsewhere by now, and the keeper remember its old place
    path = Path(keeper.dirpath or "", Path(keeper.best_model_path).name)
    if path.is_file():
        score = None if keeper.best_model_score is None else float(keeper.best_model_score)
        artifact = Artifact(f"model-{run.id}", type="model", metadata={"monitor": keeper.monitor, "score": score})
        artifact.add_file(str(path), skip_cache=True)
        run.log_artifact(artifact, aliases=["best"])


def log_scores(config: Mapping[str, Any], folder: Path, scores: Mapping[str, float]) -> None:
    """Put scores into the summary of the W&B run that a fit began; does nothing where it logged to none.

    Args:
        config: The fit's resolved configuration.
        folder: Where an offline part of the run goes.
        scores: By name.
    """
    loggers = config["trainer"].get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Mapping) or not str(logger.get("class_path", "")).endswith("WandbLogger"):
            continue
        import wandb

        given = logger["init_args"]
        mode: Literal["offline"] | None = None if has_key() else "offline"
        which = {key: given.get(key) for key in ("id", "project", "entity", "name", "group")}
        with wandb.init(**which, resume="allow", dir=folder, mode=mode, reinit="finish_previous") as run:
            run.summary.update(dict(scores))


class WandbRecord(Callback):
    """Completes and ends the W&B run of a fit; does nothing where there is no WandbLogger.

    The run gets <trainer.default_root_dir>/config.yaml as its config, the best checkpoint as an artifact of type
    model (offline too), and the module's `tables`. It ends with the fit, so that a next one starts its own.
    """

    def _loggers(self, trainer: Trainer) -> list[WandbLogger]:
        return [log for log in trainer.loggers if isinstance(log, WandbLogger)] if trainer.is_global_zero else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the configuration; every callback's on_fit_start is over by now, so that it is written."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        for logger in self._loggers(trainer):
            if path.is_file():
                logger.experiment.config.update(yaml.safe_load(path.read_text(encoding="utf-8")), allow_val_change=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log tables and the best checkpoint, and say where the run is to be seen."""
        for logger in self._loggers(trainer):
            run = logger.experiment
            for name, (columns, rows) in (pl_module.tables() if isinstance(pl_module, Tabulates) else {}).items():
                logger.log_table(key=name, columns=columns, data=rows)
            if keeper := next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None):
                log_best(run, keeper)
            if where := f"kept offline; upload it with: wandb sync {Path(run.dir).parent}" if run.offline else run.url:
                rank_zero_info(f"W&B run: {where}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the run when all is logged."""
        self._finish(trainer, "success", 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the run as failed."""
        self._finish(trainer, "failed", 1)

    def _finish(self, trainer: Trainer, status: str, exit_code: int) -> None:
        for logger in self._loggers(trainer):
            import wandb

            logger.finalize(status)  # Lightning's turn comes too late for a run that has ended
            wandb.finish(exit_code)  # not the logger's: where wandb.init failed, that would try again
