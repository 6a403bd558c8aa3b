"""The Trainer's progress in its count of steps and in the epoch."""

from aida_lightning._lightning import Trainer
from aida_lightning._private import accumulates, is_last_batch, steps_taken, updates_logs


def ends_epoch(trainer: Trainer) -> bool:
    """Tell whether the current batch is the last of its epoch."""
    # The Trainer counts the steps of all optimizers.
    ends = 0 <= trainer.max_steps <= trainer.global_step + len(trainer.optimizers)
    return ends or is_last_batch(trainer)


def is_logged(trainer: Trainer) -> bool:
    """Tell whether the Trainer logs its own metrics at the end of the current batch."""
    return updates_logs(trainer) and not accumulates(trainer)


def next_step(trainer: Trainer, in_batch: bool) -> int:
    """Return the first step of a run that is resumed from a checkpoint saved now.

    Args:
        trainer: the Trainer.
        in_batch: whether a batch of the current epoch has started.
    """
    loop = trainer.fit_loop.epoch_loop
    # The step of the batch that is ending is counted only after its checkpoints are saved. If a run
    # resumes from such a checkpoint, it is counted only after the hooks that start the training.
    resumes = loop.restarting and (loop.restarted_on_train_batch_end or not loop.restarted_on_last)
    pending = (in_batch or resumes) and not accumulates(trainer)
    return steps_taken(trainer) + pending
