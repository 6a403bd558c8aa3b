"""A killed comparison goes on where it was, as if nothing had happened."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from compare.tiny import EXPERIMENT, TinyClassifier, write_experiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aida_lightning.compare import comparison as comparing
from aida_lightning.compare.comparison import compare
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import UsageError
from aida_lightning.compare.settings import settings_digest
from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.metric import Metric

RUN = "Aida_K=2/seed_0"
SCRIPT = """
import sys
import zipfile
from aida_lightning.compare.comparison import compare
from aida_lightning.compare.loading import load_experiment
compare(load_experiment(sys.argv[1]), ["Aida K=2"], sys.argv[2], keep_checkpoints=True)
"""


def run(path, output, **options):
    return compare(load_experiment(path), ["Aida K=2"], output, **options)


def tensors(value, name=""):
    """All tensors and numbers of a checkpoint's weights and optimizers, by name."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in tensors(value[key], f"{name}.{key}").items()}
    if isinstance(value, list):
        return tensors(dict(enumerate(value)), name)
    return {name: value}


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folders of an unbroken run of 3 epochs of 4 steps, and of one killed in its third."""
    folder = tmp_path_factory.mktemp("resume")
    trainer = {**EXPERIMENT["trainer"], "max_epochs": 3}
    path = write_experiment(folder, trainer=trainer)
    tests = Path(__file__).parents[1]
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, str(folder / "broken")],
        env={**os.environ, "TINY_KILLED_AT": "10", "PYTHONPATH": str(tests)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == 9, killed.stderr
    # TensorBoard orders event files by the second in their names, which may be the next one's too.
    (events,) = (folder / "broken" / RUN).glob("*tfevents*")
    second = events.name.split(".")[3]
    events.rename(events.with_name(events.name.replace(second, str(int(second) - 60), 1)))
    before = read_scalars(folder / "broken" / RUN)
    (result,) = run(path, folder / "broken", keep_checkpoints=True)
    run(path, folder / "unbroken", keep_checkpoints=True)
    return folder, before, result


def test_a_killed_run_goes_on_from_its_last_checkpoint(pair):
    folder, before, result = pair
    assert before["val_accuracy"].steps.tolist() == [3, 7]
    assert (result.status, result.epochs) == ("completed", 3)
    assert len([*(folder / "broken" / RUN).glob("*tfevents*")]) == 2


def test_its_weights_and_optimizer_states_are_those_of_an_unbroken_run_bit_for_bit(pair):
    folder, *_ = pair
    broken, unbroken = (
        torch.load(folder / name / RUN / "last.ckpt", weights_only=True)
        for name in ("broken", "unbroken")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        one, other = tensors(broken[part]), tensors(unbroken[part])
        assert one.keys() == other.keys() != set()
        for name, value in one.items():
            equal = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert equal(value, other[name]), name
    assert broken["optimizer_states"][0]["state"][0]["step"] == 12


def test_its_curves_have_no_gap_and_no_point_twice_in_tensorboard_or_here(pair):
    folder, *_ = pair
    broken, unbroken = (scalars(folder / name / RUN) for name in ("broken", "unbroken"))
    assert broken.keys() == unbroken.keys()
    assert len(broken["stepsize_mean/first.weight"]) == 12
    assert len(broken["train_accuracy"]) == 3
    for tag, points in unbroken.items():
        assert broken[tag] == points, tag
    here = read_scalars(folder / "broken" / RUN)
    assert here["optimizer_state_bytes"].steps.tolist() == [0]  # a tensor to TensorBoard
    for tag, points in unbroken.items():
        curve, points = here[tag], dict(points)  # Lightning logs the epoch beside each metric
        assert curve.steps.tolist() == [*points]
        np.testing.assert_array_equal(curve.values, [*points.values()])


def test_a_finished_run_is_not_run_again(pair, monkeypatch, capsys):
    folder, *_ = pair
    monkeypatch.setattr(comparing, "train_run", lambda *_: pytest.fail("it trains"))
    (result,) = run(str(folder / "broken" / "config.yaml"), folder / "broken")
    assert result.status == "completed"
    assert "not run again" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train_loss", "a name that nobody logs"])
def test_a_finished_run_is_measured_again_by_another_metric(tmp_path, monkeypatch, name):
    first = Metric(name, better="min")
    path = write_experiment(tmp_path, figures=None, metric=asdict(first))
    run(path, tmp_path / "out")
    monkeypatch.setattr(comparing, "train_run", lambda *_: pytest.fail("it trains"))
    path = write_experiment(tmp_path, figures=None)
    (result,) = run(path, tmp_path / "out")
    accuracy = read_scalars(tmp_path / "out" / RUN)["val_accuracy"].values
    assert result.metric == "val_accuracy"
    assert (result.best, result.last) == (accuracy.max(), accuracy[-1])
    assert (result.status, result.message) == ("completed", "")


def test_a_finished_run_keeps_its_values_without_its_event_files(tmp_path):
    path = write_experiment(tmp_path, figures=None)
    before = run(path, tmp_path / "out")
    for file in (tmp_path / "out" / RUN).glob("*tfevents*"):
        file.unlink()
    assert run(path, tmp_path / "out") == before


@pytest.mark.parametrize("kept", [0, 100, 300])
def test_a_damaged_event_file_changes_no_number_of_a_finished_run(tmp_path, kept):
    path = write_experiment(tmp_path, figures=None)
    before = run(path, tmp_path / "out")
    (events,) = (tmp_path / "out" / RUN).glob("*tfevents*")
    events.write_bytes(events.read_bytes()[:kept])
    assert run(path, tmp_path / "out") == before


def test_a_finished_run_is_measured_by_a_target_that_came_later(tmp_path, monkeypatch):
    path = write_experiment(tmp_path, figures=None)
    (before,) = run(path, tmp_path / "out")
    monkeypatch.setattr(comparing, "train_run", lambda *_: pytest.fail("it trains"))
    path = write_experiment(tmp_path, figures=None, target={"value": before.best})
    (result,) = run(path, tmp_path / "out")
    curve = read_scalars(tmp_path / "out" / RUN)["val_accuracy"]
    first = curve.values.argmax()
    assert result.steps_to_target == curve.steps[first] + 1
    assert result.epochs_to_target == first + 1
    assert 0 < result.seconds_to_target == curve.seconds[first]
    path = write_experiment(tmp_path, figures=None, target={"value": 0.999})
    (result,) = run(path, tmp_path / "out")
    assert (result.target, result.steps_to_target) == (0.999, None)


@pytest.mark.parametrize("kept", [0, 300])
def test_a_target_that_came_later_changes_no_number_where_event_files_are_not_whole(tmp_path, kept):
    path = write_experiment(tmp_path, figures=None)
    (before,) = run(path, tmp_path / "out")
    (events,) = (tmp_path / "out" / RUN).glob("*tfevents*")
    events.write_bytes(events.read_bytes()[:kept])
    path = write_experiment(tmp_path, figures=None, target={"value": 0.1})
    (result,) = run(path, tmp_path / "out")
    assert "the way to the target is not measured" in result.message
    assert (result.best, result.last, result.status) == (before.best, before.last, "completed")
    assert result.target is None  # so that it does not count as one that never reached it


def test_the_best_value_of_a_finished_run_is_chosen_as_the_metric_says_now(tmp_path):
    path = write_experiment(tmp_path, figures=None)
    run(path, tmp_path / "out")
    path = write_experiment(tmp_path, figures=None, metric={"better": "min"})
    (result,) = run(path, tmp_path / "out")
    assert result.best == read_scalars(tmp_path / "out" / RUN)["val_accuracy"].values.min()


def test_other_optimizers_and_seeds_join_a_finished_comparison(tmp_path):
    path = write_experiment(tmp_path, figures=None)
    run(path, tmp_path / "out")
    loaded = load_experiment(path, {"seeds": [0, 1]})
    results = compare(loaded, ["Aida K=2"], tmp_path / "out")
    assert [result.seed for result in results] == [0, 1]


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path):
    path = write_experiment(tmp_path, figures=None)
    run(path, tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    changed = load_experiment(path, {"optimizer_options.lr": 0.1, "model.init_args.width": 7})
    with pytest.raises(UsageError, match=r"width is 6 there and 7 here; .*lr is 0.01 there"):
        compare(changed, ["Aida K=2"], tmp_path / "out")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_the_folder_follows_from_the_settings_but_not_from_where_the_data_is(tmp_path):
    path = write_experiment(tmp_path)
    digests = {
        key: settings_digest(load_experiment(path, changes).config)
        for key, changes in {
            "": {},
            "root": {"data.init_args.root": "elsewhere"},
            "seeds": {"seeds": [7]},
            "width": {"model.init_args.width": 7},
            "lr": {"optimizer_options.lr": 0.1},
        }.items()
    }
    assert digests[""] == digests["root"] == digests["seeds"]
    assert len(set(digests.values())) == 3


def test_a_failed_run_is_tried_again(tmp_path, monkeypatch):
    path = write_experiment(tmp_path, figures=None)

    def fail(self, *args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TinyClassifier, "training_step", fail)
        (result,) = run(path, tmp_path / "out")
        assert (result.status, result.message) == ("failed", "RuntimeError: out of memory")
    (result,) = run(path, tmp_path / "out")
    assert result.status == "completed"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished comparison of two runs, of which the first kept its checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_experiment(folder, figures=None)
    compare(load_experiment(path), ["Aida K=2", "sgd"], folder / "out", keep_checkpoints=True)
    return folder


@pytest.mark.parametrize("kept", [0, 20, -1], ids=["empty", "cut early", "cut late"])
@pytest.mark.parametrize("name", ["last.ckpt", "result.json", "run.yaml"])
def test_a_damaged_file_stops_its_run_alone_and_is_kept(whole, tmp_path, name, kept):
    shutil.copytree(whole / "out", tmp_path / "out")
    damaged = tmp_path / "out" / RUN / name
    content = damaged.read_bytes()[:kept]
    if name == "run.yaml" and kept == -1:  # valid YAML still
        content = content.rpartition(b"seed")[0]
    if name == "last.ckpt":
        (tmp_path / "out" / RUN / "result.json").unlink()
        (tmp_path / "out" / RUN / ".backup" / name).unlink()
    damaged.write_bytes(content)
    command = [load_experiment(str(whole / "tiny.yaml")), ["Aida K=2", "sgd"], tmp_path / "out"]
    failed, other = compare(*command)
    assert failed.status == "failed"
    assert f"{damaged} cannot be read (" in failed.message
    assert other.status == "completed"
    assert damaged.read_bytes() == content
    damaged.unlink()
    assert [result.status for result in compare(*command)] == ["completed", "completed"]


@pytest.mark.parametrize("damage", ["flipped", "empty", "missing"])
def test_a_damaged_checkpoint_gives_way_to_that_of_the_epoch_before(whole, tmp_path, damage):
    shutil.copytree(whole / "out", tmp_path / "out")
    folder = tmp_path / "out" / RUN
    before = read_scalars(folder)
    (folder / "result.json").unlink()
    content = bytearray((folder / "last.ckpt").read_bytes())
    with zipfile.ZipFile(folder / "last.ckpt") as archive:
        largest = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    content[content.index(largest)] ^= 1  # a byte between the parts is nobody's
    (folder / "last.ckpt").write_bytes(content if damage == "flipped" else b"")
    if damage == "missing":
        (folder / "last.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"last\.ckpt is .*; the previous one is loaded"):
        (result,) = run(str(whole / "tiny.yaml"), tmp_path / "out")
    assert (result.status, result.epochs) == ("completed", 2)
    after = read_scalars(folder)
    assert after.keys() == before.keys()
    for tag, curve in before.items():
        assert after[tag].steps.tolist() == curve.steps.tolist()
        np.testing.assert_array_equal(after[tag].values, curve.values)


def test_the_checkpoint_goes_when_the_run_is_finished_unless_it_is_to_be_kept(tmp_path, pair):
    path = write_experiment(tmp_path, figures=None)
    run(path, tmp_path / "out")
    assert not [*(tmp_path / "out").rglob("*.ckpt*")]
    assert not [*(tmp_path / "out").rglob(".backup")]
    assert [*(pair[0] / "unbroken").rglob("*.ckpt")]


def test_a_comparison_leaves_the_file_that_repeats_it(pair):
    folder, *_ = pair
    written = yaml.safe_load((folder / "broken/config.yaml").read_text())
    assert [method["label"] for method in written["optimizers"]] == ["Aida K=2"]
    assert load_experiment(str(folder / "broken/config.yaml")).config == written
