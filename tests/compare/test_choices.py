"""Optimizers as a user asks for them."""

from pathlib import Path

import pytest

from aida_lightning.compare.choices import parse_choice, parse_method, pick_methods
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.methods import (
    Method,
    UsageError,
    choose_optimizers,
    method_label,
)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("aida", "aida", {}),
        ("aida:k=1", "aida", {"k": 1}),
        ("adam+:lr=3e-4, eps=1e-10", "adam+", {"lr": 3e-4, "eps": 1e-10}),
        ("x:betas=[0.9,0.99],b=(1,2)", "x", {"betas": (0.9, 0.99), "b": (1, 2)}),
        ("x:a=true,b=None,c=some text", "x", {"a": True, "b": None, "c": "some text"}),
        ("cifar10:root=/data/a=b", "cifar10", {"root": "/data/a=b"}),
    ],
)
def test_a_name_and_its_options_are_read(text, name, options):
    assert parse_choice(text) == (name, options)


@pytest.mark.parametrize("text", ["aida:k", "aida:=1", "aida:k=1,k=2"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match="option"):
        parse_choice(text)


@pytest.mark.parametrize(
    ("text", "options", "grid"),
    [
        ("aida:k=1,lr=1e-4/3e-4/1e-3", {"k": 1}, {"lr": [1e-4, 3e-4, 1e-3]}),
        (
            "adam:betas=(0.9,0.99)/(0.9,0.999), lr=0.1 / 1",
            {},
            {"betas": [(0.9, 0.99), (0.9, 0.999)], "lr": [0.1, 1]},
        ),
        ("aida:lr=0.1", {"lr": 0.1}, {}),
    ],
)
def test_values_with_slashes_between_them_are_a_grid(text, options, grid):
    assert parse_method(text) == Method(text.partition(":")[0], options, None, grid)


def test_the_points_of_a_sweep_stand_for_one_method_and_name_their_folders():
    chosen = choose_optimizers(pick_methods([], ["aida:k=1,lr=1e-4/1e-3", "sgd:lr=0.1/1"]))
    assert [
        (choice.method, run_folder(Path(), choice.label, 0).parent.name) for choice in chosen
    ] == [
        ("Aida K=1", "Aida_K=1_lr=0.0001"),
        ("Aida K=1", "Aida_K=1_lr=0.001"),
        ("SGD", "SGD_lr=0.1"),
        ("SGD", "SGD_lr=1"),
    ]


def test_a_class_of_any_package_is_chosen_by_its_path():
    (chosen,) = choose_optimizers(pick_methods([], ["torch.optim.RMSprop:lr=1e-3,alpha=0.9"]))
    assert (chosen.name, chosen.label) == ("torch.optim.RMSprop", "RMSprop lr=0.001 alpha=0.9")
    assert chosen.options == {"lr": 1e-3, "alpha": 0.9}


@pytest.mark.parametrize(
    ("text", "label", "folder"),
    [
        ("aida", "Aida", "Aida"),
        ("aida:k=1", "Aida K=1", "Aida_K=1"),
        ("ADAM+:lr=3e-4", "Adam+ lr=0.0003", "Adam+_lr=0.0003"),
        ("aida:weight_decay=0.1", "Aida weight decay=0.1", "Aida_weight_decay=0.1"),
        ("aida:label=my_own  one", "my own one", "my_own_one"),
    ],
)
def test_labels_tell_the_options_and_name_the_folder(text, label, folder):
    (chosen,) = choose_optimizers(pick_methods([], [text]))
    found = run_folder(Path(), chosen.label, 0).parent.name
    assert (chosen.label, found) == (label, folder)
    assert found.replace("_", " ") == chosen.label


METHODS = [
    Method("aida", {"k": 2}, "Aida K=2"),
    Method("aida", {"k": 1, "lr": 0.5}, "Aida K=1"),
    Method("sgd", label="SGD"),
]


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        (["aida_k=1"], ["Aida K=1"]),
        (["SGD", "aida*"], ["SGD", "Aida K=2", "Aida K=1"]),
        (["*", "sgd"], ["Aida K=2", "Aida K=1", "SGD"]),
        (["aida", "sgd:lr=3.0"], ["Aida", "SGD lr=3.0"]),
    ],
)
def test_methods_are_picked_by_label_or_glob_and_others_join_by_name(wanted, labels):
    picked = pick_methods(METHODS, wanted)
    assert [method_label(method) for method in picked] == labels


def test_a_picked_method_keeps_its_options():
    assert pick_methods(METHODS, ["AIDA K=1"]) == [METHODS[1]]


def test_a_glob_that_matches_nothing_is_refused_with_the_labels_that_there_are():
    with pytest.raises(UsageError, match=r"'adam\*' matches none of Aida K=2, Aida K=1, SGD"):
        pick_methods(METHODS, ["adam*"])


def test_a_grid_is_every_combination_and_all_stand_for_one_method():
    grid = {"eps": [1e-8, 1e-16], "lr": [0.1, 0.01]}
    chosen = choose_optimizers([Method("adabelief", {"weight_decay": 0.5}, grid=grid)])
    assert [choice.options for choice in chosen] == [
        {"weight_decay": 0.5, "eps": eps, "lr": lr} for eps in grid["eps"] for lr in grid["lr"]
    ]
    assert {choice.method for choice in chosen} == {"AdaBelief weight decay=0.5"}
    assert len({choice.label for choice in chosen}) == 4


def test_weight_decay_reaches_every_optimizer_that_takes_it_and_has_none_of_its_own():
    methods = pick_methods([], ["aida", "adabelief:weight_decay=0.1", "fromage"])
    chosen = choose_optimizers(methods, {"weight_decay": 5e-4})
    assert [choice.options for choice in chosen] == [
        {"weight_decay": 5e-4},
        {"weight_decay": 0.1},
        {},
    ]
    assert chosen[0].label == "Aida"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one"),
        (["adia"], "adia"),
        (["aida:q=3"], "aida:q=3.*'q'"),
        (["aida:lr=-1"], "aida:lr=-1"),
        (["aida", "aida:k=1,label=aida"], "two have the label 'aida'"),
        (["aida:label=a/b"], "'a/b' cannot name a folder"),
        (["aida:label=" + 128 * "é"], "cannot name a folder: it has 256 bytes, .* 255"),
        (["aida:label=config.yaml"], "'config.yaml' is the name of one of the files"),
        (["aida:label=Fig1.png"], "'Fig1.png' is the name of one of the files"),
        (["torch.optim.RMSpop"], "'torch.optim.RMSpop', did you mean: torch.optim.RMSprop"),
        (["torch.nn.Linear"], "torch.nn.Linear must be a subclass of torch.optim.Optimizer"),
        (
            ["compare.tiny.Slow:lr=1"],
            "compare.tiny.Slow:lr=1: the option 'pace' has no default, give one: "
            "compare.tiny.Slow:pace=VALUE",
        ),
        (["aida:lr="], "'aida:lr=' lacks a value of 'lr'"),
        (
            ["aida:lr=0.1/"],
            "'aida:lr=0.1/' lacks a value of 'lr': .* are written lr=VALUE/V",
        ),
        (["aida:lr=1e-3/0.001"], "aida: the grid of 'lr' has 0.001 twice"),
        (["aida:lr=0.1/-1"], "aida:lr=-1"),
        (
            ["sgd:lr=1e-4|1e-3"],
            r"supported between .* \(lr='1e-4\|1e-3' is text; a slash separates numbers to sweep\)",
        ),
        (["aida:label=heatmap.png"], "'heatmap.png' is the name of one of the files"),
        (["aida:label=a\0"], r"'a\\x00' cannot name a folder"),
    ],
)
def test_a_bad_request_is_refused_with_what_is_wrong(texts, message):
    with pytest.raises(UsageError, match=message):
        choose_optimizers(pick_methods([], texts))


def test_an_empty_grid_is_refused():
    with pytest.raises(UsageError, match="grid of 'lr' has no value"):
        choose_optimizers([Method("aida", grid={"lr": []})])


def test_an_option_that_is_in_the_grid_too_is_refused():
    with pytest.raises(UsageError, match="aida: 'lr' is among the options and in the grid"):
        choose_optimizers([Method("aida", {"lr": 1}, grid={"lr": [0.1]})])


def test_a_point_of_a_grid_that_cannot_name_a_folder_is_refused():
    with pytest.raises(UsageError, match=r"lr=0.1' cannot name a folder: it has 257"):
        choose_optimizers([Method("aida", label=250 * "a", grid={"lr": [0.1]})])


def test_the_label_of_a_point_of_a_grid_is_its_folders():
    (chosen,) = choose_optimizers([Method("aida", grid={"weight_decay": [0.1]})])
    assert run_folder(Path(), chosen.label, 0) == Path("Aida_weight_decay=0.1/seed_0")
