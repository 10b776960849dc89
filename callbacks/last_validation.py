"""What a run keeps is judged: a validation where the fit ended before its first, and the pictures' own of best.ckpt."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info


def keeper_of(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that keeps best.ckpt, where the run has one."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)


class LastValidation(Callback):
    """Validates once where a fit ends before its first validation, and keeps these weights as best.ckpt."""

    def __init__(self) -> None:
        self.judged = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that it happened."""
        self.judged = self.judged or not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate if this was the end and nothing was judged; what watches a score comes after this."""
        loops = trainer.fit_loop
        out_of_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        final = trainer.should_stop or out_of_steps or trainer.current_epoch + 1 == trainer.max_epochs
        if self.judged or not final or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        keeper = keeper_of(trainer)
        if keeper is not None and keeper.best_model_path:  # of the part before a resume
            return
        if not trainer.enable_validation:
            rank_zero_info("this run was not judged: it has no validation")
            return
        connector = trainer._logger_connector
        first = connector._first_loop_iter
        loops.epoch_loop._batches_that_stepped -= 1  # as for Lightning's own validations: the step that was made last
        trainer.validating = True
        loops.epoch_loop.val_loop.run()
        trainer.training = True
        loops.epoch_loop._batches_that_stepped += 1
        connector._first_loop_iter = first
        connector.epoch_end_reached()
        if self.judged:
            rank_zero_info("the run ended before its first validation, so its last state was judged")


@contextmanager
def kept_weights(trainer: Trainer, module: LightningModule) -> Iterator[str]:
    """The weights of best.ckpt in the module, after a validation of their own; afterwards those it had before.

    Where the last validation judged these very weights, or several processes train, nothing is changed.

    Yields:
        Whose weights they are, in words.
    """
    keeper = keeper_of(trainer)
    best = Path(keeper.best_model_path) if keeper is not None and keeper.best_model_path else None
    if best is None or not best.is_file() or trainer.world_size > 1:
        yield "last state"
        return
    kept = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
    step = kept["global_step"]
    if step == trainer.global_step:
        yield f"best.ckpt, step {step}"
        return
    before = {name: value.detach().clone() for name, value in module.state_dict().items()}
    training, device = module.training, module.device
    rank_zero_info(f"judging best.ckpt (step {step}) once more, for the pictures")
    quiet = Trainer(
        accelerator=trainer.accelerator, devices=1, precision=trainer.precision, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, default_root_dir=trainer.default_root_dir,
    )  # fmt: skip
    quiet.limit_val_batches = trainer.limit_val_batches  # as an argument it would be told in a line of its own
    try:
        module.load_state_dict(kept["state_dict"])
        quiet.validate(module, dataloaders=trainer.val_dataloaders, verbose=False)
        module.to(device)
        yield f"best.ckpt, step {step}"
    finally:
        module.load_state_dict(before)
        module.to(device).train(training)
        module.trainer = trainer
