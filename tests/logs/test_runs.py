"""Runs are found below folders, and their labels derived from their paths alone."""

import pytest
from logs.test_curves import as_dict, write
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import choose_labels, find_runs, read_monitored_runs


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
    assert list(found.values()) == ["a/Aida", "a/Aida", "Adam+", "b/Aida"]


def test_equal_labels_in_folders_of_one_name_are_told_apart_by_their_whole_paths(tmp_path):
    for run in ("a/out/Aida/seed_0", "b/out/Aida/seed_0"):
        write(tmp_path / run, "loss", {0: 1.0})
    found = find_runs([tmp_path / "a/out", tmp_path / "b/out"])
    paths = [(tmp_path / name / "out/Aida").resolve().as_posix() for name in ("a", "b")]
    assert list(found.values()) == paths


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


def test_optimizers_of_one_run_that_share_no_layer_are_one(tmp_path):
    with SummaryWriter(str(tmp_path / "gan")) as writer:
        for name, layer in (("Aida", "critic.weight"), ("Aida-1", "generator.weight")):
            writer.add_scalar(f"{name}/stepsize_mean/{layer}", 1.0, 0)
    (run,) = read_monitored_runs([tmp_path])
    assert (run.label, run.layers) == ("gan", ["critic.weight", "generator.weight"])


def test_the_only_optimizer_of_a_run_that_was_read_has_the_runs_label(tmp_path):
    write(tmp_path / "Aida_K=2/seed_0", "Aida/stepsize_mean/critic.weight", {0: 1.0})
    (run,) = read_monitored_runs([tmp_path])
    assert (run.label, run.layers) == ("Aida K=2", ["critic.weight"])


def test_optimizers_of_one_run_that_share_a_layer_are_runs_of_their_own(tmp_path):
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


def test_a_loggers_prefix_is_read_over(tmp_path):
    write(tmp_path / "run", "pre-stepsize_mean/a.weight", {0: 1.0})
    write(tmp_path / "run", "pre-stepsize_mean_minus_std/a.weight", {0: 1.0})
    (run,) = read_monitored_runs([tmp_path])
    assert run.label == "run"
    assert {tag: [*curves] for tag, curves in run.statistics.items()} == {
        "stepsize_mean": ["a.weight"]
    }


def test_labels_are_chosen_with_blanks_or_underscores():
    labels = ["version_0", "version_1", "Aida K=2"]
    assert choose_labels(labels, ["VERSION_0"]) == ["version_0"]
    assert choose_labels(labels, ["aida_k=2", "*_1"]) == ["version_1", "Aida K=2"]


def test_a_folder_named_as_event_files_are_is_a_folder(tmp_path):
    write(tmp_path / "tfevents/run", "stepsize_mean/a.weight", {0: 1.0})
    (run,) = read_monitored_runs([tmp_path])
    assert run.layers == ["a.weight"]
