"""Parameter groups among the options of a comparison's optimizers."""

import json
from pathlib import Path

import pytest
import yaml
from compare.tiny import write_experiment

from aida_lightning.commands import main
from aida_lightning.compare.choices import parse_method, pick_methods
from aida_lightning.compare.comparison import compare
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.hyperparameters import hyperparameters
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import Method, UsageError, choose_optimizers
from aida_lightning.compare.settings import run_settings

GROUPS = {"*.bias": {"weight_decay": 0.0}, "first.*": {"lr": 1e-4, "betas": [0.8, 0.9]}}
AS_TEXT = 'aida:k=1,groups={"*.bias":{"weight_decay":0.0},"first.*":{"lr":1e-4}},lr=1e-3'


def test_groups_are_read_on_the_command_line_and_may_be_swept():
    groups = {"*.bias": {"weight_decay": 0.0}, "first.*": {"lr": 1e-4}}
    method = parse_method(AS_TEXT)
    assert method.options == {"k": 1, "groups": groups, "lr": 1e-3}
    swept = parse_method("aida:groups=layer_decay:0.65/layer_decay:0.75/no_decay_1d")
    assert swept.grid == {"groups": ["layer_decay:0.65", "layer_decay:0.75", "no_decay_1d"]}


def test_labels_of_groups_name_folders():
    texts = [AS_TEXT, "sgd:groups=no_decay_1d", "sgd:groups=layer_decay:0.5"]
    chosen = choose_optimizers(pick_methods([], texts))
    folders = [run_folder(Path(), choice.label, 0).parent.name for choice in chosen]
    assert folders == [
        "Aida_K=1_groups=(-.bias_weight_decay=0.0,_first.-_lr=0.0001)_lr=0.001",
        "SGD_groups=no_decay_1d",
        "SGD_groups=layer_decay-0.5",
    ]


def test_partitions_are_read_on_the_command_line_and_may_be_swept():
    texts = ["ladam:partition=2/3/rows", "aida:partition=[2,4]", "setadam:partition=null"]
    chosen = choose_optimizers(pick_methods([], texts))
    assert [(choice.label, choice.options["partition"]) for choice in chosen] == [
        ("LAdam partition=2", 2),
        ("LAdam partition=3", 3),
        ("LAdam partition=rows", "rows"),
        ("Aida partition=(2, 4)", (2, 4)),
        ("SETAdam partition=None", None),
    ]
    with pytest.raises(UsageError, match="aida:partition=columns: Invalid partition: 'columns'"):
        choose_optimizers([Method("aida", {"partition": "columns"})])


def test_options_of_a_pattern_are_refused_before_any_training():
    for options, message in (
        ({"groups": {"*.bias": {"wd": 0.0}}}, r"'\*.bias': Aida has no option 'wd'; its options"),
        ({"groups": {"*.bias": {"lr": -1.0}}}, r"'\*.bias': Invalid learning rate: -1.0"),
        ({"groups": "nodecay"}, "Invalid groups: 'nodecay'"),
    ):
        with pytest.raises(UsageError, match=message):
            choose_optimizers([Method("aida", options)])
    with pytest.raises(UsageError, match="Fromage has no option 'weight_decay'"):
        choose_optimizers([Method("fromage", {"groups": "no_decay_1d"})])


def test_groups_for_all_optimizers_reach_each_of_them():
    common = {"groups": {"*.bias": {"lr": 0.5}}, "no_decay_1d": True, "weight_decay": 0.1}
    methods = [Method("aida"), Method("fromage"), Method("sgd", {"groups": "no_decay_1d"})]
    assert [choice.options for choice in choose_optimizers(methods, common)] == [
        common,
        {"groups": common["groups"]},
        {**common, "groups": "no_decay_1d"},
    ]


def test_another_order_of_patterns_is_another_setting():
    config = {"model": {}, "data": {}, "trainer": {}}

    def settings(groups):
        (choice,) = choose_optimizers([Method("aida", {"groups": groups}, "Aida")])
        return run_settings(config, choice, 0), hyperparameters(config, choice, 0)

    one, columns = settings(GROUPS)
    other, _ = settings(dict(reversed(GROUPS.items())))
    assert json.dumps(one) != json.dumps(other)
    assert json.loads(columns["optimizer.groups"]) == GROUPS


def test_an_experiment_trains_with_groups_and_a_second_start_finds_its_runs(tmp_path):
    methods = [
        {"name": "aida", "label": "own", "options": {"groups": GROUPS}},
        {"name": "adamw", "label": "preset", "options": {"groups": "no_decay_1d"}},
    ]
    path = write_experiment(tmp_path, figures=None, optimizers=methods)
    out = tmp_path / "out"
    loaded = load_experiment(path)
    results = compare(loaded, None, out)
    assert [result.status for result in results] == ["completed", "completed"]
    assert results[0].options["groups"] == GROUPS
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert [*config["optimizers"][0]["options"]["groups"]] == [*GROUPS]
    before = (out / "own" / "seed_0" / "run.yaml").read_text(encoding="utf-8")
    assert [*yaml.safe_load(before)["optimizer"]["options"]["groups"]] == [*GROUPS]
    assert compare(load_experiment(out / "config.yaml"), None, out) == results
    methods[0]["options"]["groups"] = dict(reversed(GROUPS.items()))
    other = load_experiment(write_experiment(tmp_path, figures=None, optimizers=methods))
    with pytest.raises(UsageError, match=r"optimizer.options.groups is '{\"\*.bias\".* there and"):
        compare(other, None, out)


def test_groups_can_be_set_on_the_command_line(tmp_path):
    path = write_experiment(tmp_path, figures=None)
    set_to = 'optimizer_options.groups={"*.bias": {"lr": 0.0}, "first.*": {"lr": 1e-4}}'
    loaded = load_experiment(path, dict([set_to.split("=", 1)]))
    groups = {"*.bias": {"lr": 0.0}, "first.*": {"lr": 1e-4}}
    assert loaded.experiment.optimizer_options["groups"] == groups
    assert json.loads(loaded.config["changes"]["optimizer_options.groups"]) == groups
    arguments = ["compare", path, "--seeds", "0", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--optimizers", "aida:label=a", "--set", set_to]) == 0
    settings = yaml.safe_load((tmp_path / "out" / "a" / "seed_0" / "run.yaml").read_text())
    assert settings["optimizer"]["options"] == {"lr": 0.01, "groups": groups}


def test_a_pattern_that_matches_no_layer_is_refused_for_every_optimizer(tmp_path):
    methods = [{"name": "sgd"}, {"name": "aida", "options": {"groups": {"heads.*": {}}}}]
    path = write_experiment(tmp_path, figures=None, optimizers=methods)
    with pytest.raises(UsageError, match=r"'heads.\*' matches no layer; the nearest names are"):
        compare(load_experiment(path), None, tmp_path / "out")


def test_partitions_that_fit_the_models_layers_alone_are_tried_without_them(tmp_path):
    """The layers have 6 and 3 rows."""
    sizes = {"first.*": {"partition": [1, 5]}, "head.*": {"partition": 3}}
    methods = [
        {"name": "ladam", "label": "rows", "options": {"partition": "rows"}},
        {"name": "laida", "label": "groups", "options": {"groups": sizes}},
    ]
    path = write_experiment(tmp_path, figures=None, optimizers=methods)
    results = compare(load_experiment(path), None, tmp_path / "out")
    assert [result.status for result in results] == ["completed", "completed"]
    with pytest.raises(ValueError, match="Invalid partition: 'row', it must be"):
        choose_optimizers([Method("aida", {"partition": "row"}, "Aida")])
