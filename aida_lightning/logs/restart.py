"""The removal of points that a killed run logged after the checkpoint that is resumed from."""

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
    """Make TensorBoard drop what a killed run logged after the checkpoint that is resumed from.

    Nothing is dropped if that would hide more than it should. This is so if a number had been
    logged at such a late step before the checkpoint was saved, by code that counts something other
    than steps, or if none of the points are going to be logged again, such as the test of a
    finished run.

    Args:
        logger: logger of the resumed run, in the folder of the killed one.
        next_step: first step that is going to be logged again.
        saved_at: time when the checkpoint was saved, in seconds as returned by ``time.time``.
        ours: parts of tags that will be logged again, in addition to those logged before the
            checkpoint.
    """
    later: list[tuple[int, float, str]] = []
    before: set[str] = set()
    logger.experiment.flush()
    for event in read_folder(logger.log_dir):
        if event.session_log.status == SessionLog.START:  # An earlier resumption dropped them.
            later = [entry for entry in later if entry[0] < event.step]
        elif event.step >= next_step:
            later += [(event.step, event.wall_time, value.tag) for value in event.summary.value]
        else:
            before.update(value.tag for value in event.summary.value)
    for step, wall_time, tag in later:
        if wall_time <= saved_at:
            rank_zero_warn(
                f"StepsizeMonitor keeps the points in {logger.log_dir} that were logged after the "
                "checkpoint that this run resumes from, so they will appear twice in TensorBoard: "
                f"{tag!r} was logged at step {step} before the checkpoint of step {next_step} was "
                "saved, and would be dropped as well."
            )
            return
    # The Trainer logs the epoch beside everything.
    dropped = {tag for _, _, tag in later if not tag.endswith(tags.EPOCH)}
    if dropped & before or any(name in tag for tag in dropped for name in ours):
        log_restart(logger, next_step)
