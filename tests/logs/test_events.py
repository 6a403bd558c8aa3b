"""Event files are read whole, cut or damaged."""

import struct
import warnings

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.events import DamagedEventsWarning, event_files, read_events

POINTS = {step: step / 4 for step in range(6)}


@pytest.fixture
def file(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in POINTS.items():
            writer.add_scalar("loss", value, step)
    (path,) = tmp_path.glob("*tfevents*")
    return path


def records(content):
    """Give where each record begins and ends; the first has the file's version."""
    position, found = 0, []
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        found.append((position, position + length + 16))
        position = found[-1][1]
    return found


def points(path):
    scalars = read_scalars(path.parent)
    return dict(zip(scalars["loss"].steps.tolist(), scalars["loss"].values.tolist(), strict=True))


def test_the_events_are_those_of_tensorboards_own_reader(file):
    theirs = [*LegacyEventFileLoader(str(file)).Load()]
    assert [*read_events(file)] == theirs
    assert len(theirs) == 1 + len(POINTS)


@pytest.mark.parametrize("place", ["length", "its checksum", "event", "event's checksum"])
@pytest.mark.parametrize("index", [1, 3, 6])
def test_a_flipped_bit_costs_one_event_and_is_named(file, place, index):
    content = bytearray(file.read_bytes())
    begin, end = records(content)[index]
    offset = {"length": begin, "its checksum": begin + 8, "event": begin + 12}.get(place, end - 1)
    content[offset] ^= 1
    file.write_bytes(content)
    with pytest.warns(DamagedEventsWarning, match=r"tfevents.* is damaged: 6 of its events"):
        found = points(file)
    assert found == {step: value for step, value in POINTS.items() if step != index - 1}


def test_bytes_that_are_lost_cost_no_event_but_their_own(file):
    content = file.read_bytes()
    (begin, end), (_, last) = records(content)[2], records(content)[-1]
    file.write_bytes(content[: begin + 14] + content[begin + 20 : last])
    with pytest.warns(DamagedEventsWarning, match="6 of its events were read"):
        assert points(file) == {step: value for step, value in POINTS.items() if step != 1}
    file.write_bytes(content[: end - 3] + content[end:])
    with pytest.warns(DamagedEventsWarning, match="6 of its events were read"):
        assert points(file) == {step: value for step, value in POINTS.items() if step != 1}


def test_a_hole_of_zeros_costs_the_events_in_it(file):
    content = bytearray(file.read_bytes())
    (begin, _), (_, end) = records(content)[2], records(content)[3]
    content[begin + 5 : end - 5] = bytes(end - begin - 10)
    file.write_bytes(content)
    with pytest.warns(DamagedEventsWarning, match="5 of its events were read"):
        assert points(file) == {0: 0.0, 3: 0.75, 4: 1.0, 5: 1.25}


def test_a_cut_at_any_byte_costs_the_last_record_without_a_warning(file):
    content = file.read_bytes()
    ends = [end for _, end in records(content)]
    for size in range(ends[0], len(content) + 1):
        file.write_bytes(content[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len([*read_events(file)]) == sum(end <= size for end in ends)


def test_only_event_files_are_listed_in_the_order_in_which_tensorboard_reads_them(tmp_path):
    for name in ("b.tfevents.2", "a.tfevents.3", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tfevents").mkdir()
    names = [path.rpartition("/")[2] for path in event_files(tmp_path)]
    assert names == ["a.tfevents.3", "b.tfevents.2"]
    assert event_files(tmp_path / "nothing") == []
    assert names == [path.rpartition("/")[2] for path in event_files(f"file://{tmp_path}")]
