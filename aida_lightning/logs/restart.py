"""What a killed run logged after the checkpoint that another goes on from."""

from collections.abc import Collection

from lightning_utilities.core.rank_zero import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import SessionLog

from aida_lightning._lightning import TensorBoardLogger
from aida_lightning.logs import tags
from aida_lightning.logs.events import read_folder
from aida_lightning.logs.writing import log_restart


def drop_orphans(
    logger: TensorBoardLogger, next_step: int, saved_at: float, ours: Collection[str]
) -> None:
    """Have TensorBoard drop what a killed run logged after the checkpoint that is resumed from.

    Nothing is dropped where that would hide more: where something had been logged at such a late
    step before the checkpoint was saved, by someone who counts something else than steps; and
    where nothing of it is going to be logged again, as of the test of a run that had ended.

    Args:
        logger: the logger of the run that goes on, in the folder of the one that was killed.
        next_step: the first step that is going to be logged again.
        saved_at: when the checkpoint was saved, in seconds as ``time.time`` gives them.
        ours: parts of the tags that will be logged again, as those that were before the checkpoint.
    """
    later: list[tuple[int, float, str]] = []
    before: set[str] = set()
    logger.experiment.flush()
    for event in read_folder(logger.log_dir):
        if event.session_log.status == SessionLog.START:  # dropped by an earlier resumption
            later = [entry for entry in later if entry[0] < event.step]
        elif event.step >= next_step:
            later += [(event.step, event.wall_time, value.tag) for value in event.summary.value]
        else:
            before.update(value.tag for value in event.summary.value)
    for step, wall_time, tag in later:
        if wall_time <= saved_at:
            rank_zero_warn(
                f"StepsizeMonitor leaves in {logger.log_dir} what was logged there after the "
                "checkpoint that this run resumes from, which will appear twice in TensorBoard: "
                f"{tag!r} had been logged at step {step} before the checkpoint of step {next_step} "
                "was saved, and would be dropped as well."
            )
            return
    # The Trainer logs the epoch beside everything.
    dropped = {tag for _, _, tag in later if not tag.endswith(tags.EPOCH)}
    if dropped & before or any(name in tag for tag in dropped for name in ours):
        log_restart(logger, next_step)
