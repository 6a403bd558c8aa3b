"""Names with options, as a user writes them."""

import pytest

from aida_lightning.experiments.choices import UsageError, choose_optimizers, parse_choice


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("aida", "aida", {}),
        ("aida:k=1", "aida", {"k": 1}),
        ("adam+:lr=3e-4, eps=1e-10", "adam+", {"lr": 3e-4, "eps": 1e-10}),
        ("x:betas=[0.9,0.99],b=(1,2)", "x", {"betas": (0.9, 0.99), "b": (1, 2)}),
        ("x:a=true,b=None,c=some text", "x", {"a": True, "b": None, "c": "some text"}),
        ("cifar10:root=/data/a=b", "cifar10", {"root": "/data/a=b"}),
        ({"name": "aida", "k": 1, "betas": [0.9, 0.99]}, "aida", {"k": 1, "betas": (0.9, 0.99)}),
    ],
)
def test_a_name_and_its_options_are_read(text, name, options):
    choice = parse_choice(text)
    assert (choice.name, choice.options, choice.label) == (name, options, None)


def test_a_label_is_no_option():
    for text in ("aida:k=1,label=mine", {"name": "aida", "k": 1, "label": "mine"}):
        choice = parse_choice(text)
        assert (choice.options, choice.label) == ({"k": 1}, "mine")


@pytest.mark.parametrize("text", ["aida:k", "aida:=1", {"k": 1}, {"name": 3}])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match=r"option|name"):
        parse_choice(text)


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
    (chosen,) = choose_optimizers([text])
    assert (chosen.label, chosen.folder) == (label, folder)
    assert chosen.folder.replace("_", " ") == chosen.label


def test_weight_decay_reaches_every_optimizer_that_takes_it_and_has_none_of_its_own():
    chosen = choose_optimizers(["aida", "adabelief:weight_decay=0.1", "fromage"], 5e-4)
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
        (["aida", "aida:k=1,label=aida"], "two are called 'aida'"),
        (["aida:label=a/b"], "'a/b' cannot name a folder"),
    ],
)
def test_a_bad_request_is_refused_with_what_is_wrong(texts, message):
    with pytest.raises(UsageError, match=message):
        choose_optimizers(texts)
