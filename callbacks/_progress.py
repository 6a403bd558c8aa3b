"""Where the Trainer stands in its count of steps, and in the epoch."""

from aida_lightning._lightning import Trainer


def ends_epoch(trainer: Trainer) -> bool:
    """Tell whether the batch that is under way is the last of its epoch."""
    # The Trainer counts the steps of all optimizers.
    ends = 0 <= trainer.max_steps <= trainer.global_step + len(trainer.optimizers)
    return ends or trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_logged(trainer: Trainer) -> bool:
    """Tell whether the Trainer logs its own metrics at the end of the batch that is under way."""
    logs: bool = trainer._logger_connector.should_update_logs
    return logs and not trainer.fit_loop._should_accumulate()


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
    pending = (in_batch or resumes) and not loop._should_accumulate()
    return loop._batches_that_stepped + pending
