"""The events that a run has written so far, and what of them a resumed run leaves behind."""

import struct
from collections.abc import Collection, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from aida_lightning.callbacks._tensorboard import log_restart


def read_events(logger: TensorBoardLogger) -> Iterator[Event]:
    """Read the events in a run's folder, in the order in which TensorBoard does.

    TensorBoard's own reader takes a checksum of every record in Python, seconds for a few MB. A
    last record that was cut off when the run was killed is left out.
    """
    logger.experiment.flush()
    filesystem = get_filesystem(logger.log_dir)
    if not filesystem.isdir(logger.log_dir):
        return
    for path in sorted(filesystem.ls(logger.log_dir, detail=False)):
        if "tfevents" in path.rpartition("/")[2]:
            with filesystem.open(path, "rb") as file:
                yield from _records(file)


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
    for event in read_events(logger):
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
    tags = {tag for _, _, tag in later if not tag.endswith("epoch")}
    if tags & before or any(name in tag for tag in tags for name in ours):
        log_restart(logger, next_step)


def _records(file: Any) -> Iterator[Event]:
    """Yield the events of a file: of each the length, its checksum, the event, its checksum."""
    while len(header := file.read(12)) == 12:
        (length,) = struct.unpack("<Q", header[:8])
        record = file.read(length + 4)
        if len(record) < length + 4:
            return
        try:
            yield Event.FromString(record[:-4])
        except DecodeError:
            return
