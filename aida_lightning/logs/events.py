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
    """No run that can be drawn was found; the message says what was looked for, and where."""


class DamagedEventsWarning(UserWarning):
    """An event file lost events in its middle; the message names the file and what was read."""


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


def attempt_of(file: str | Path) -> int:
    """Read from an event file's name which attempt at the run wrote it; 0 if it does not tell.

    Example:
        >>> attempt_of("events.out.tfevents.1700000000.host.1.0.attempt-2")
        2
    """
    match = _ATTEMPT.search(Path(file).name)
    return int(match[1]) if match else 0


def next_suffix(folder: str | Path) -> str:
    """Return what the name of a folder's next event file has to end with.

    It counts the attempts at a run, whose files a clock that was set back would bring out of order.
    """
    return f".attempt-{1 + max(map(attempt_of, event_files(folder)), default=0)}"


def read_events(file: str | Path) -> Iterator[Event]:
    """Read the events of a file in their order.

    A last record that was cut off when the run was killed is left out. Where the file is damaged
    before its end, the events whose checksums are wrong are left out, all others are read, and a
    warning says so.

    Warns:
        DamagedEventsWarning: the file is damaged.
    """
    filesystem, path = url_to_fs(str(file))
    content = memoryview(filesystem.cat_file(path))
    position, count, damaged = 0, 0, False
    suspect = False  # something was lost: it was a cut, unless a whole record follows
    while position + _HEADER.size <= len(content):
        header = content[position : position + _HEADER.size]
        length, checksum = _HEADER.unpack(header)
        if checksum != _masked_checksum(header[:8]):
            damaged |= not suspect  # a cut leaves no whole header that is wrong
            suspect, position = True, position + 1  # a later byte begins the next record
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
            f"{path} is damaged: {count} of its events were read, others are lost. What is shown "
            "of the run may lack points",
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
    """Compute CRC-32C, rotated and shifted as TensorFlow's records have it."""
    checksum: int = google_crc32c.value(bytes(content))
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
