"""Runs are read back from event files: exact values, resumed runs, labels and epochs."""

import math
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.experiments.events import (
    Curve,
    EventsError,
    epochs_at,
    find_runs,
    read_monitored_runs,
    read_scalars,
)


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


@pytest.mark.parametrize(
    ("logdir", "labels"),
    [
        ("", ["Aida K=1", "AdaBelief-L wd=0.1", "other/lightning_logs/version_3"]),
        ("a", ["Aida K=1", "AdaBelief-L wd=0.1"]),
        ("a/Aida_K=1", ["Aida K=1"]),
        ("a/Aida_K=1/seed_2", ["Aida K=1"]),
        ("other/lightning_logs", ["version_3"]),
        ("other/lightning_logs/version_3", ["version_3"]),
    ],
)
def test_labels_come_from_the_folders_alone(tmp_path, logdir, labels):
    for run in (
        "a/Aida_K=1/seed_2",
        "a/Aida_K=1/seed_10",
        "a/AdaBelief-L_wd=0.1/seed_0",
        "other/lightning_logs/version_3",
    ):
        write(tmp_path / run, "loss", {0: 1.0})
    assert set(find_runs([tmp_path / logdir]).values()) == set(labels)


def test_equal_labels_in_two_comparisons_are_told_apart(tmp_path):
    for run in ("a/Aida/seed_0", "a/Aida/seed_1", "b/Aida/seed_0", "b/Adam+/seed_0"):
        write(tmp_path / run, "loss", {0: 1.0})
    assert list(find_runs([tmp_path]).values()) == ["a/Aida", "a/Aida", "Adam+", "b/Aida"]
    found = find_runs([tmp_path / "a", tmp_path / "b"])
    both = [(tmp_path / name / "Aida").resolve().as_posix() for name in ("a", "b")]
    assert list(found.values()) == [both[0], both[0], "Adam+", both[1]]


def test_seeds_are_in_the_order_of_their_numbers(tmp_path):
    for seed in (10, 9, 1):
        write(tmp_path / f"Aida/seed_{seed}", "loss", {0: 1.0})
    names = [run.name for run in find_runs([tmp_path])]
    assert names == ["seed_1", "seed_9", "seed_10"]


def test_layers_are_read_from_input_to_output_with_their_statistics(tmp_path):
    with SummaryWriter(str(tmp_path / "Aida/seed_0")) as writer:
        for layer, value in (("net.10.weight", 3.0), ("net.9.weight", 4.0)):
            writer.add_scalar(f"stepsize_mean/{layer}", value, 0)
            writer.add_scalar(f"stepsize_std/{layer}", value / 2, 0)
    (run,) = read_monitored_runs([tmp_path])
    assert run.label == "Aida"
    assert run.layers == ["net.10.weight", "net.9.weight"]
    assert as_dict(run.mean["net.9.weight"]) == {0: 4.0}
    assert as_dict(run.std["net.9.weight"]) == {0: 2.0}


def test_several_optimizers_of_one_run_are_runs_of_their_own(tmp_path):
    with SummaryWriter(str(tmp_path / "gan")) as writer:
        for name in ("Aida", "Adam"):
            writer.add_scalar(f"{name}/stepsize_mean/critic.weight", 1.0, 0)
    assert [run.label for run in read_monitored_runs([tmp_path])] == ["gan Aida", "gan Adam"]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(EventsError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_a_folder_without_event_files_is_named(tmp_path):
    with pytest.raises(EventsError, match=r"no TensorBoard event files \(\*tfevents\*\)"):
        read_monitored_runs([tmp_path])


def test_runs_without_the_monitor_are_refused_with_what_would_help(tmp_path):
    write(tmp_path, "loss", {0: 1.0})
    with pytest.raises(EventsError, match=r"stepsize_mean/<layer>.*StepsizeMonitor\(\)"):
        read_monitored_runs([tmp_path])


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
