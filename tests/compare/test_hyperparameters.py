"""A comparison in TensorBoard's HParams tab: a row per run, with its options and its metric."""

import json

import pytest
from compare import tiny
from compare.tiny import write_experiment
from tensorboard_server import Server

from aida_lightning.compare.comparison import compare
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.hyperparameters import Hyperparameters
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import choose_optimizers
from aida_lightning.logs.curves import read_scalars
from aida_lightning.logs.events import read_folder

OPTIMIZERS = ["aida:lr=0.01/0.1", "sgd:lr=0.1,momentum=0.5,nesterov=true"]
EVERY_STATUS = ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_FAILURE"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three optimizers with two seeds; the comparison was stopped in its third run and went on."""
    folder = tmp_path_factory.mktemp("hyperparameters")
    loaded = load_experiment(write_experiment(folder, figures=None), {"seeds": [0, 1]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.Kill, "on_train_batch_end", press_ctrl_c_in_the_second_epoch)
        assert compare(loaded, OPTIMIZERS, folder / "out")[-1].status == "interrupted"
    results = compare(loaded, OPTIMIZERS, folder / "out")
    assert [result.status for result in results] == 6 * ["completed"]
    return folder / "out", results


def press_ctrl_c_in_the_second_epoch(self, trainer, *_):
    if trainer.logger.name.startswith("SGD") and trainer.global_step == 6:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder[0])
    yield server
    server.close()


def test_the_columns_are_the_options_and_the_metric_of_all_runs(server):
    request = json.dumps({"experimentName": ""})
    answer = server.when(
        lambda found: "hparamInfos" in found, "hparams/experiment", request=request
    )
    columns = {info["name"]: info for info in answer["hparamInfos"]}
    assert [name for name, info in columns.items() if info.get("differs")] == [
        "optimizer", "optimizer.lr", "optimizer.momentum", "optimizer.nesterov", "seed"
    ]  # fmt: skip
    assert {name: info["type"] for name, info in columns.items()} == {
        "optimizer": "DATA_TYPE_STRING",
        "optimizer.lr": "DATA_TYPE_FLOAT64",
        "optimizer.momentum": "DATA_TYPE_FLOAT64",
        "optimizer.nesterov": "DATA_TYPE_BOOL",
        "seed": "DATA_TYPE_FLOAT64",
        "data": "DATA_TYPE_STRING",
        "data.batch_size": "DATA_TYPE_FLOAT64",
        "data.root": "DATA_TYPE_STRING",
        "model": "DATA_TYPE_STRING",
        "model.lr_scheduler": "DATA_TYPE_STRING",
        "model.lr_scheduler_options.gamma": "DATA_TYPE_FLOAT64",
        "model.lr_scheduler_options.step_size": "DATA_TYPE_FLOAT64",
        "model.width": "DATA_TYPE_FLOAT64",
    }
    (metric,) = answer["metricInfos"]
    assert (metric["name"]["tag"], metric["displayName"]) == ("val_accuracy", "validation accuracy")


def test_each_run_is_a_row_with_its_options_and_the_last_value_of_its_metric(server, folder):
    request = {
        "experimentName": "",
        "allowedStatuses": EVERY_STATUS,
        "colParams": [{"metric": {"group": "", "tag": "val_accuracy"}, "order": "ORDER_DESC"}],
        "startIndex": 0,
        "sliceSize": 100,
    }
    answer = server.when(
        lambda found: sum("metricValues" in g for g in found.get("sessionGroups", ())) == 6,
        "hparams/session_groups",
        request=json.dumps(request),
    )
    rows = {group["name"]: group for group in answer["sessionGroups"]}
    results = {f"{r.label}, seed {r.seed}, in {folder[0]}": r for r in folder[1]}
    assert rows.keys() == results.keys()
    for name, group in rows.items():
        result, values = results[name], group["hparams"]
        assert (values["optimizer"], values["seed"]) == (result.optimizer, result.seed)
        assert values["optimizer.lr"] == result.options["lr"]
        assert values["model"] == "compare.tiny.TinyClassifier"
        assert values.get("optimizer.momentum") == result.options.get("momentum")
        (session,) = group["sessions"]
        assert session["status"] == "STATUS_SUCCESS"
        (metric,) = group["metricValues"]
        assert metric["value"] == pytest.approx(result.last)
    accuracies = [group["metricValues"][0]["value"] for group in answer["sessionGroups"]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_curves_have_neither_more_points_nor_more_tags(folder):
    path, results = folder
    for result in results:
        run = run_folder(path, result.label, result.seed)
        tags = {value.tag for event in read_folder(run) for value in event.summary.value}
        assert {tag for tag in tags if tag.startswith("_hparams_/")} == {
            "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"
        }  # fmt: skip
        scalars = read_scalars(run)
        assert not [tag for tag in scalars if "hparam" in tag]
        assert scalars["val_accuracy"].steps.tolist() == [3, 7]


def test_the_column_of_the_seeds_knows_those_that_choose(tmp_path):
    loaded = load_experiment(write_experiment(tmp_path, seeds=[0], tune_seeds=[9]))
    choice = choose_optimizers(loaded.experiment.optimizers)[0]
    callback = Hyperparameters(loaded, choice, 9)
    assert {run["seed"] for run in callback._all} == {0, 9}
