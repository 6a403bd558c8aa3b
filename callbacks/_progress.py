"""Where the Trainer stands in its count of steps, and in the epoch."""

from aida_lightning._lightning import Trainer
from aida_lightning._private import accumulates, is_last_batch, steps_taken, updates_logs


def ends_epoch(trainer: Trainer) -> bool:
    """Tell whether the batch that is under way is the last of its epoch."""
    # The Trainer counts the steps of all optimizers.
    ends = 0 <= trainer.max_steps <= trainer.global_step + len(trainer.optimizers)
    return ends or is_last_batch(trainer)


def is_logged(trainer: Trainer) -> bool:
    """Tell whether the Trainer logs its own metrics at the end of the batch that is under way."""
    return updates_logs(trainer) and not accumulates(trainer)


def next_step(trainer: Trainer, in_batch: bool) -> int:
    """Return the step that a run goes on with that is resumed from a checkpoint of this moment.

    Args:
        trainer: the Trainer.
        in_batch: whether a batch has started of the epoch that is under way.
    """
    loop = trainer.fit_loop.epoch_loop
    # Of the batch that is being finished it is counted only after its checkpoints are saved; of one
    # whose checkpoint a run is resumed from, only after the hooks that start the run's training.
    resumes = loop.restarting and (loop.restarted_on_train_batch_end or not loop.restarted_on_last)
    pending = (in_batch or resumes) and not accumulates(trainer)
    return steps_taken(trainer) + pending
