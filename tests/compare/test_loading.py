"""Experiments are data: found, read, changed and checked before anything is built."""

from pathlib import Path

import pytest
import yaml
from compare.tiny import EXPERIMENT, TinyClassifier, write_experiment

from aida_lightning.commands import main
from aida_lightning.compare import comparison as comparing
from aida_lightning.compare.loading import (
    find_experiment,
    list_experiments,
    load_experiment,
)
from aida_lightning.compare.methods import Method, UsageError, choose_optimizers

MONITOR = EXPERIMENT["callbacks"][0]["class_path"]
TINY_MODEL, TINY_DATA = (EXPERIMENT[part]["class_path"] for part in ("model", "data"))
DIGITS = "aida_lightning.datamodules.DigitsDataModule"
ISSUED = {
    "digits_vgg11",
    "fig1_2_6_vgg11",
    "fig4_vgg11",
    "fig3_vgg11",
    "fig3_resnet34",
    "table1_vgg11",
    "table1_resnet34",
    "fig7_lstm1",
    "fig7_lstm2",
    "fig7_lstm3",
    "table2_transformer",
    "table2_transformer_code",
    "table3_wgan_gp",
    "tmlr_cifar10",
    "tmlr_cifar100",
}


def test_every_experiment_is_listed_with_a_line(capsys):
    assert main(["compare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == ISSUED
    assert all(len(line) <= 120 for line in lines)
    assert list_experiments()["table1_vgg11"] in lines[[*list_experiments()].index("table1_vgg11")]


def test_classes_are_built_anew_each_time_with_the_optimizer_of_the_run(tmp_path):
    experiment = load_experiment(
        write_experiment(tmp_path), {"model.init_args.width": 5}
    ).experiment
    one, other = (experiment.model(optimizer="aida", optimizer_options={"k": k}) for k in (1, 2))
    assert isinstance(one, TinyClassifier)
    assert one is not other
    assert (one.optimizer_options, other.optimizer_options) == ({"k": 1}, {"k": 2})
    assert one.first.weight.shape == (5, 4)
    assert experiment.data() is not experiment.data()


def test_defaults_are_written_out_and_the_whole_loads_again(tmp_path):
    loaded = load_experiment(write_experiment(tmp_path))
    assert loaded.config["model"]["init_args"]["width"] == 6
    assert loaded.config["trainer"]["init_args"]["devices"] == 1
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(loaded.config))
    assert load_experiment(str(again)).config == loaded.config


def test_a_null_that_is_not_the_classs_default_is_written_out(tmp_path):
    monitor = {"class_path": MONITOR, "init_args": {"max_layers": None}}
    loaded = load_experiment(write_experiment(tmp_path, callbacks=[monitor]))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(loaded.config))
    (callback,) = load_experiment(str(again)).experiment.callbacks
    assert callback().max_layers is None


def test_several_devices_get_a_strategy_that_a_comparison_can_have(tmp_path):
    loaded = load_experiment(write_experiment(tmp_path), {"trainer.devices": "2"})
    options = loaded.config["trainer"]["init_args"]
    assert (options["devices"], options["strategy"]) == ("2", "ddp_spawn")


def test_a_model_whose_steps_leave_parameters_out_gets_a_strategy_that_finds_them():
    loaded = load_experiment("table3_wgan_gp", {"trainer.devices": 2}, sample=True)
    strategy = loaded.config["trainer"]["init_args"]["strategy"]
    assert strategy == "ddp_spawn_find_unused_parameters_true"


def test_changes_are_noted_and_the_sample_is_one(tmp_path):
    path = write_experiment(tmp_path)
    loaded = load_experiment(path, {"trainer.max_epochs": 7}, sample=True)
    assert loaded.experiment.changes == {"trainer.max_epochs": "7", "data": "sample"}
    assert loaded.experiment.data().batch_size == 30
    assert loaded.config["trainer"]["init_args"]["max_epochs"] == 7


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        (["--set", "metric.name=val_accuracy"], {}),
        (
            ["--set", "metric.name=val_loss"],
            {"metric.name": "val_loss", "metric.title": "null", "metric.percent": "null"},
        ),
        (["--data", "cifar10:root=data,download=true"], {"data.download": "true"}),
        (["--data", "cifar10", "--batch_size", "7"], {"data.batch_size": "7"}),
        (
            ["--data", "digits"],
            {
                "data.class_path": DIGITS,
                "data.batch_size": "32",
                "data.val_fraction": "0.2",
                "data.seed": "0",
            },
        ),
        (["--weight_decay", "0.0005"], {}),
        (["--weight_decay", "0.1"], {"optimizer_options.weight_decay": "0.1"}),
        (["--epochs", "200", "--model", "vgg11"], {}),
    ],
)
def test_a_change_to_what_the_file_has_is_none(monkeypatch, given, noted):
    loaded = []
    monkeypatch.setattr(comparing, "compare", lambda *given: loaded.append(given[0]) or [])
    main(["compare", "table1_vgg11", *given])
    changes = loaded[0].experiment.changes
    assert {key: str(value).lower() for key, value in changes.items()} == {
        key: value.lower() for key, value in noted.items()
    }


def test_other_data_than_the_samples_are_not_called_the_sample(tmp_path):
    path = write_experiment(
        tmp_path, sample={"data": TINY_DATA, "data.init_args.batch_size": 30, "seeds": [5]}
    )
    changes = {"data": DIGITS, "model.init_args.width": 6}
    noted = load_experiment(path, changes, sample=True).experiment.changes
    assert noted.items() >= {"seeds": "[5]", "data.class_path": DIGITS}.items()
    assert "data" not in noted
    assert "model.width" not in noted


def test_other_data_in_a_comparisons_file_are_not_its_sample(tmp_path):
    sampled = load_experiment(write_experiment(tmp_path), sample=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sampled.config))
    again = load_experiment(str(tmp_path / "config.yaml"), {"data": DIGITS}).experiment
    assert sampled.experiment.changes == {"data": "sample"}
    assert "data" not in again.changes
    assert again.changes["data.class_path"] == DIGITS


@pytest.mark.parametrize("again", [False, True], ids=["a user's file", "a comparison's file"])
@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("optimizer_options", {"eps": 1e-16}, {"eps": 1e-16, "lr": None}),
        ("optimizer_options.lr", 0.5, {"eps": 0.1, "lr": 0.5}),
        ("callbacks", [{"class_path": MONITOR}], {"health": True}),
        ("model", {"class_path": TINY_MODEL}, {"width": 6, "lr_scheduler": None}),
        ("model.init_args", {"width": 5}, {"width": 5, "lr_scheduler": None}),
        ("model.init_args.width", 5, {"width": 5, "lr_scheduler": "StepLR"}),
        ("model.width", 5, {"width": 5, "lr_scheduler": "StepLR"}),
        ("data", TINY_DATA, {"batch_size": 15}),
        ("data.class_path", TINY_DATA, {"batch_size": 7}),
        ("trainer", {"max_epochs": 3}, {"max_epochs": 3, "accelerator": "auto"}),
        ("trainer.init_args", {"max_epochs": 3}, {"max_epochs": 3, "accelerator": "auto"}),
        ("trainer.max_epochs", 3, {"max_epochs": 3, "accelerator": "cpu"}),
        ("metric", {"title": "it"}, {"title": "it", "report": "best"}),
        ("metric.title", "it", {"title": "it", "report": "last"}),
        ("paper", {"source": "it", "epochs": 3}, {"source": "it", "epochs": 3}),
        ("paper.epochs", 3, {"source": "Table 0", "epochs": 3}),
    ],
)
def test_a_change_replaces_its_key_and_keeps_the_others(tmp_path, again, key, value, found):
    path = write_experiment(
        tmp_path,
        callbacks=EXPERIMENT["callbacks"][:1],
        data={"class_path": TINY_DATA, "init_args": {"batch_size": 7}},
        optimizer_options={"eps": 0.1, "lr": 0.01},
        metric={"report": "last"},
    )
    if again:
        Path(path).write_text(yaml.safe_dump(load_experiment(path).config))
    part = load_experiment(path, {key: value}).config[key.partition(".")[0]]
    part = part[0] if isinstance(part, list) else part
    options = part.get("init_args", part)
    assert {name: options.get(name) for name in found} == found


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("paper.epochs", "x", "\"epochs\": Expected a <class 'int'>. Got value: x "),
        ("paper.epoch", 3, "Option 'epoch' is not accepted .*; did you mean: epochs"),
        ("paper", {"epochs": 3}, "the following arguments are required: source "),
    ],
)
def test_a_bad_change_of_the_paper_is_refused(tmp_path, key, value, message):
    with pytest.raises(UsageError, match=f'Parser key "paper": .*{message}'):
        load_experiment(write_experiment(tmp_path), {key: value})


def test_other_optimizers_of_the_same_number_are_others(tmp_path):
    changed = '[{"name": "laida"}, {"name": "adam"}]'
    loaded = load_experiment(write_experiment(tmp_path), {"optimizers": changed})
    assert loaded.experiment.optimizers == [Method("laida"), Method("adam")]


def test_a_change_replaces_what_the_sample_has_of_it(tmp_path):
    path = write_experiment(tmp_path, sample={"data": TINY_DATA, "data.init_args.batch_size": 30})
    data = load_experiment(path, {"data": TINY_DATA}, sample=True).experiment.data()
    assert data.batch_size == 15


@pytest.mark.parametrize("sample", [False, True])
def test_another_metric_has_its_own_title_and_unit(tmp_path, sample):
    path = write_experiment(
        tmp_path,
        metric={"name": "val_accuracy", "title": "top one", "percent": True},
        sample={"metric.name": "val_accuracy", "metric.title": "top one of few"},
    )
    metric = load_experiment(path, {"metric.name": "val_loss"}, sample).experiment.metric
    assert (metric.name, metric.label, metric.in_percent) == ("val_loss", "validation loss", False)
    given = {"metric.name": "val_loss", "metric.title": "loss of few"}
    assert load_experiment(path, given, sample).experiment.metric.label == "loss of few"


def test_a_metric_without_title_is_called_by_its_name(tmp_path):
    path = write_experiment(tmp_path, metric={"name": "fid_proxy"})
    assert load_experiment(path).experiment.metric.label == "fid proxy"


def test_small_numbers_are_numbers_however_they_are_written(tmp_path):
    path = tmp_path / "small.yaml"
    content = {**EXPERIMENT, "optimizers": [{"name": "aida"}]}
    path.write_text(yaml.safe_dump(content) + "\nsample: {optimizer_options: {eps: 1e-16}}\n")
    experiment = load_experiment(str(path), sample=True).experiment
    (choice,) = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    assert choice.options["eps"] == 1e-16


TRAINER = EXPERIMENT["trainer"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"description": None}, "description"),
        ({"colour": 3}, "unknown key 'colour', it must be one of description, model"),
        ({"trainer": {"max_epoch": 3}}, '"trainer": .*max_epoch.*; did you mean: max_epochs'),
        ({"trainer": {"max_epochs": "x"}}, '"trainer": .* "max_epochs": .*Given value: x'),
        ({"model": {"class_path": "nowhere.Model"}}, '"model": .*nowhere'),
        (
            {"model": {"class_path": "torch.nn.Linear"}},
            "model: torch.nn.Linear must be a subclass of LightningModule",
        ),
        (
            {"model": {"class_path": "compare.tiny.TinyClassifier", "init_args": {"wide": 3}}},
            "\"model\": .*'wide' is not accepted; did you mean: width",
        ),
        ({"optimizers": [{"name": 3}]}, '"optimizers": .* "name": .*str.*3'),
        ({"optimizers": [{"nam": "aida"}]}, "\"optimizers\": .*'nam'.*; did you mean: name"),
        ({"metric": {"better": "most"}}, "\"metric.better\": .*'max', 'min'.*most"),
        ({"figures": ["fig9"]}, '"figures": .*fig9'),
        ({"seeds": "many"}, '"seeds": .*many'),
        ({"tune_seeds": "many"}, '"tune_seeds": .*many'),
        ({"target": {"valeu": 0.9}}, "\"target\": .*'valeu'.*; did you mean: value"),
        ({"target": {"value": "high"}}, '"target.*": .*high'),
    ],
)
def test_a_bad_file_is_refused_with_the_file_the_key_and_the_value(tmp_path, changes, message):
    path = write_experiment(tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as error:
        load_experiment(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    for text, message in (("a: [", "cannot be read as YAML"), ("- a", "must be a mapping")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_experiment(str(path))


def test_a_bad_change_is_refused_as_one_of_the_command_line(tmp_path):
    path = write_experiment(tmp_path)
    with pytest.raises(
        UsageError, match=r'tiny.yaml as changed .*: Parser key "metric.better": .*most'
    ):
        load_experiment(path, {"metric.better": "most"})


def test_a_name_that_is_neither_shipped_nor_a_file_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"'table1_vgg12'.*table1_vgg11"):
        find_experiment("table1_vgg12")


def test_an_experiment_without_sample_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"tiny\.yaml: sample: the experiment has no sample"):
        load_experiment(write_experiment(tmp_path, sample=None), sample=True)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("foo", "unrecognized arguments: --foo=1$"),
        ("metric.tittle", "unrecognized arguments: --metric.tittle=1; did you mean: title"),
        ("trainer.max_epoch", "'max_epoch' is not accepted; did you mean: max_epochs"),
        ("model.init_args.wide", "'wide' is not accepted; did you mean: width"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_that_there_are(tmp_path, key, message):
    with pytest.raises(UsageError, match=message):
        load_experiment(write_experiment(tmp_path), {key: 1})
