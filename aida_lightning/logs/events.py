"""TensorBoard's event files, record by record."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fsspec.core import url_to_fs
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event


class EventsError(ValueError):
    """No run that can be drawn was found; the message says what was looked for, and where."""


def event_files(folder: str | Path) -> list[str]:
    """List the event files in a folder, in the order in which TensorBoard reads them.

    Args:
        folder: a path or the address of a folder on any file system that fsspec knows; one that
            does not exist has no files.
    """
    filesystem, path = url_to_fs(str(folder))
    if not filesystem.isdir(path):
        return []
    files = [file["name"] for file in filesystem.ls(path, detail=True) if file["type"] == "file"]
    return sorted(
        filesystem.unstrip_protocol(file) for file in files if "tfevents" in Path(file).name
    )


def read_events(file: str | Path) -> Iterator[Event]:
    """Read the events of a file in their order.

    A last record that was cut off when the run was killed is left out. TensorBoard's own reader
    computes a checksum of every record in Python, which takes nearly all of its time.
    """
    filesystem, path = url_to_fs(str(file))
    with filesystem.open(path, "rb") as stream:
        yield from _records(stream)


def read_folder(folder: str | Path) -> Iterator[Event]:
    """Read the events of all files in a folder, in the order in which TensorBoard does."""
    for file in event_files(folder):
        yield from read_events(file)


def _records(stream: IO[bytes]) -> Iterator[Event]:
    """Yield the events: of each the file has the length, its checksum, the event, its checksum."""
    while len(header := stream.read(12)) == 12:
        (length,) = struct.unpack("<Q", header[:8])
        record = stream.read(length + 4)
        if len(record) < length + 4:
            return
        try:
            yield Event.FromString(record[:-4])
        except DecodeError:
            return
