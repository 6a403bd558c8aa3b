"""Runs are read back from event files: exact values, resumed runs, labels and epochs."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.logs.curves import Curve, epochs_at, read_scalars
from aida_lightning.logs.events import next_suffix


def write(folder: Path, tag: str, points: dict[int, float], suffix: str = "") -> None:
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for step, value in points.items():
            writer.add_scalar(tag, value, step)


def curve(points: dict[int, float]) -> Curve:
    return Curve(np.array(list(points)), np.array(list(points.values()), dtype=np.float64))


def as_dict(curve: Curve) -> dict[int, float]:
    return dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def test_every_point_is_read_exactly(tmp_path):
    points = {step: step / 4 for step in range(25_000)}
    write(tmp_path, "loss", points)
    assert as_dict(read_scalars(tmp_path)["loss"]) == points


def test_a_double_precision_scalar_keeps_its_digits(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("bytes", 78_007_465, 0, new_style=True, double_precision=True)
    assert as_dict(read_scalars(tmp_path)["bytes"]) == {0: 78_007_465}


def test_nan_and_infinity_are_points_like_others(tmp_path):
    write(tmp_path, "loss", {0: 1.0, 1: math.nan, 2: math.inf})
    values = read_scalars(tmp_path)["loss"].values
    assert np.isnan(values[1])
    assert values[2] == math.inf


def test_tags_keep_the_order_of_their_first_appearance(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(2):
            for tag in ("z", "b", "a"):
                writer.add_scalar(tag, 0.0, step)
    assert list(read_scalars(tmp_path)) == ["z", "b", "a"]


def test_seconds_leave_out_the_time_between_an_interruption_and_the_going_on(tmp_path):
    with SummaryWriter(str(tmp_path), filename_suffix=".attempt-1") as writer:
        began = time.time()
        for step in range(4):  # killed after step 3, the checkpoint was at 2
            writer.add_scalar("loss", 1.0, step, walltime=began + 10 * (step + 1))
    with SummaryWriter(str(tmp_path), purge_step=2, filename_suffix=".attempt-2") as writer:
        again = time.time()
        for step in (2, 3):
            writer.add_scalar("loss", 1.0, step, walltime=again + 7 * (step - 1))
    seconds = read_scalars(tmp_path)["loss"].seconds
    np.testing.assert_allclose(seconds, [10, 20, 27, 34], atol=2)


def test_files_that_a_run_wrote_at_once_have_one_beginning(tmp_path):
    for suffix, tag, late in ((".a", "loss", 10), (".b", "accuracy", 15)):
        with SummaryWriter(str(tmp_path), filename_suffix=suffix) as writer:
            writer.add_scalar(tag, 1.0, 0, walltime=time.time() + late)
    scalars = read_scalars(tmp_path)
    assert scalars["loss"].seconds == pytest.approx([10], abs=2)
    assert scalars["accuracy"].seconds == pytest.approx([15], abs=2)


def test_a_resumed_run_replaces_what_the_killed_one_logged_after_the_checkpoint(tmp_path):
    with SummaryWriter(str(tmp_path), filename_suffix=".first") as writer:
        for step in range(9, 120, 10):  # killed at 120, the checkpoint was at 100
            writer.add_scalar("stepsize_mean/w", 1.0, step)
        writer.add_scalar("hp_metric", -1, 0)
        writer.add_scalar("val_loss", 5.0, 79)
        writer.add_scalar("val_loss", 6.0, 115)
    with SummaryWriter(str(tmp_path), filename_suffix=".second") as writer:
        writer.add_scalar("hp_metric", -1, 0)
        for step in range(104, 160, 10):  # the resumed run reads at other steps
            writer.add_scalar("stepsize_mean/w", 2.0, step)
        writer.add_scalar("val_loss", 4.0, 159)
    scalars = read_scalars(tmp_path)
    expected = {step: 1.0 for step in range(9, 100, 10)}
    expected |= {step: 2.0 for step in range(104, 160, 10)}
    assert as_dict(scalars["stepsize_mean/w"]) == expected
    # 115 is no point of the resumed run, although it has not logged this tag in between.
    assert as_dict(scalars["val_loss"]) == {79: 5.0, 159: 4.0}
    assert as_dict(scalars["hp_metric"]) == {0: -1.0}


def test_steps_that_go_back_within_one_file_are_a_resumed_run_too(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in [(0, 1.0), (1, 1.0), (2, 1.0), (1, 2.0), (1, 3.0)]:
            writer.add_scalar("loss", value, step)
    assert as_dict(read_scalars(tmp_path)["loss"]) == {0: 1.0, 1: 3.0}


def test_two_files_with_different_tags_are_merged_whole(tmp_path):
    write(tmp_path, "train", {0: 1.0, 5: 2.0}, ".one")
    write(tmp_path, "test", {0: 3.0}, ".two")
    scalars = read_scalars(tmp_path)
    assert as_dict(scalars["train"]) == {0: 1.0, 5: 2.0}
    assert as_dict(scalars["test"]) == {0: 3.0}


def test_a_last_record_that_was_cut_off_is_left_out(tmp_path):
    write(tmp_path, "loss", {0: 1.0, 1: 2.0, 2: 3.0})
    (file,) = tmp_path.glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-7])
    assert as_dict(read_scalars(tmp_path)["loss"]) == {0: 1.0, 1: 2.0}


def test_an_empty_event_file_is_no_error(tmp_path):
    write(tmp_path, "loss", {0: 1.0})
    (tmp_path / "events.out.tfevents.1.killed-at-once").touch()
    assert as_dict(read_scalars(tmp_path)["loss"]) == {0: 1.0}


def test_epochs_are_exact_where_metrics_are_logged_at_the_end_of_each():
    epoch = curve({49: 0, 89: 0, 99: 1, 149: 1, 179: 1, 199: 2, 269: 2})
    np.testing.assert_array_equal(
        epochs_at(np.array([0, 44, 89, 179, 269]), epoch), [1 / 90, 0.5, 1, 2, 3]
    )


def test_epochs_are_exact_although_the_last_was_cut_short():
    epoch = curve({89: 0, 99: 1, 149: 1, 179: 1, 199: 2})
    np.testing.assert_array_equal(epochs_at(np.array([89, 199]), epoch), [1, 200 / 90])


def test_epochs_follow_from_step_metrics_alone():
    steps = range(49, 4500, 50)
    epoch = curve({step: step // 90 for step in steps})
    np.testing.assert_allclose(epochs_at(np.array([89, 4499]), epoch), [1, 50])


def test_epochs_of_different_lengths_are_interpolated_one_by_one():
    epoch = curve({99: 0, 149: 1, 199: 2, 224: 3})
    np.testing.assert_allclose(
        epochs_at(np.array([49, 99, 124, 149, 199, 224]), epoch), [0.5, 1, 1.5, 2, 3, 3.5]
    )


def test_a_resumed_run_that_notes_its_step_replaces_only_what_came_from_there_on(tmp_path):
    with SummaryWriter(str(tmp_path), filename_suffix=".first") as writer:
        for step in range(8):
            writer.add_scalar("loss", 1.0, step)
        writer.add_scalar("val_loss", 1.0, 3)
    with SummaryWriter(str(tmp_path), purge_step=6, filename_suffix=".second") as writer:
        writer.add_scalar("loss", 2.0, 7)  # logs less often, so that step 6 has no point
    scalars = read_scalars(tmp_path)
    assert as_dict(scalars["loss"]) == {**dict.fromkeys(range(6), 1.0), 7: 2.0}
    assert as_dict(scalars["val_loss"]) == {3: 1.0}


@pytest.mark.parametrize("back", [60, 86_400])
def test_attempts_are_in_their_order_whatever_the_clock_says(tmp_path, monkeypatch, back):
    now = time.time()
    for value, clock in ((1.0, now), (2.0, now - back), (3.0, now - 2 * back)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with SummaryWriter(
            str(tmp_path), purge_step=2 * int(value), filename_suffix=next_suffix(tmp_path)
        ) as writer:
            for step in range(2 * int(value), 8):
                writer.add_scalar("loss", value, step)
    expected = {2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 3.0, 7: 3.0}
    assert as_dict(read_scalars(tmp_path)["loss"]) == expected
