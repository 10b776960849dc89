"""How far a run has come, in steps that each optimizer makes (Lightning's `global_step` adds up all optimizers)."""

from lightning.pytorch import Trainer


def steps_done(trainer: Trainer) -> int:
    """Batches so far that ended in a step, as metrics.csv counts them: the same for one optimizer and for several."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def steps_in_run(trainer: Trainer) -> float:
    """Such steps in the whole run; infinite, or -1 for a loader without a length, where it has no known end.

    To be asked in `on_train_start`: asking earlier loses a stateful loader's state.
    """
    steps = trainer.estimated_stepping_batches
    if trainer.max_steps != -1:  # with manual optimization it counts the steps of all optimizers together
        steps = min(steps, -(-trainer.max_steps // max(1, len(trainer.optimizers))))
    return steps
