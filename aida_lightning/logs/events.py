"""TensorBoard's event files, record by record."""

import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
from fsspec.core import url_to_fs
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

# A record is the length of an event, the length's checksum, the event, and the event's checksum.
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_ATTEMPT = re.compile(r"\.attempt-(\d+)$")


class EventsError(ValueError):
    """No suitable run was found; the message says what was searched for, and where."""


class DamagedEventsWarning(UserWarning):
    """An event file lost events in its middle; the message names the file and the events read."""


def event_files(folder: str | Path) -> list[str]:
    """List the event files in a folder, in the order in which TensorBoard reads them.

    Args:
        folder: path of a folder, or its address on any file system that fsspec knows; a folder that
            does not exist has no files.
    """
    filesystem, path = url_to_fs(str(folder))
    if not filesystem.isdir(path):
        return []
    files = [file["name"] for file in filesystem.ls(path, detail=True) if file["type"] == "file"]
    return sorted(
        filesystem.unstrip_protocol(file) for file in files if "tfevents" in Path(file).name
    )


def attempt_of(file: str | Path) -> int:
    """Return the number of the attempt that wrote an event file, from its name; 0 without one.

    Example:
        >>> attempt_of("events.out.tfevents.1700000000.host.1.0.attempt-2")
        2
    """
    match = _ATTEMPT.search(Path(file).name)
    return int(match[1]) if match else 0


def next_suffix(folder: str | Path) -> str:
    """Return the suffix of the name of a folder's next event file.

    It counts the attempts at a run, because a clock that is set back would put their files out of
    order.
    """
    return f".attempt-{1 + max(map(attempt_of, event_files(folder)), default=0)}"


def read_events(file: str | Path) -> Iterator[Event]:
    """Read the events of a file in order.

    A last record that was cut off when the run was killed is omitted. If the file is damaged before
    its end, the events with wrong checksums are omitted with a warning, and all others are read.

    Warns:
        DamagedEventsWarning: the file is damaged.
    """
    filesystem, path = url_to_fs(str(file))
    content = memoryview(filesystem.cat_file(path))
    position, count, damaged = 0, 0, False
    suspect = False  # Something was lost: the file was cut off, unless a whole record follows.
    while position + _HEADER.size <= len(content):
        header = content[position : position + _HEADER.size]
        length, checksum = _HEADER.unpack(header)
        if checksum != _masked_checksum(header[:8]):
            damaged |= not suspect  # A cut leaves no whole header with a wrong checksum.
            suspect, position = True, position + 1  # The next record begins at a later byte.
            continue
        begin = position + _HEADER.size
        end = begin + length + _CHECKSUM.size
        is_cut = end > len(content)
        event = None if is_cut else _decode(content[begin : end - 4], content[end - 4 : end])
        if event is None:
            damaged |= not is_cut
            suspect, position = True, begin
            continue
        damaged |= suspect
        position, count = end, count + 1
        yield event
    if damaged:
        warnings.warn(
            f"{path} is damaged: {count} of its events were read, and others are lost. The curves "
            "of this run may lack points",
            DamagedEventsWarning,
            stacklevel=2,
        )


def read_folder(folder: str | Path) -> Iterator[Event]:
    """Read the events of all files in a folder, in the order in which TensorBoard does."""
    for file in event_files(folder):
        yield from read_events(file)


def _decode(record: memoryview, checksum: memoryview) -> Event | None:
    if _CHECKSUM.unpack(checksum) != (_masked_checksum(record),):
        return None
    try:
        return Event.FromString(bytes(record))
    except DecodeError:
        return None


def _masked_checksum(content: memoryview) -> int:
    """Compute the CRC-32C, rotated and shifted as in TensorFlow's records."""
    checksum: int = google_crc32c.value(bytes(content))
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
