"""Names as the clients of MLflow and Comet keep them: distinct, and whole where they can be."""

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger

from aida_lightning.logs.names import kept_names


def logger_of(cls, prefix=""):
    logger = cls.__new__(cls)
    Logger.__init__(logger)
    logger._prefix = prefix
    return logger


@given(st.lists(st.text("a_xF3A:/.层 -", max_size=9), unique=True, min_size=2))
def test_no_two_names_become_one_or_are_refused_by_mlflow(names):
    kept = kept_names(logger_of(MLFlowLogger), names)
    assert [*kept] == names
    assert len({*kept.values()}) == len(names)
    for name in filter(None, kept.values()):
        # What Lightning's logger keeps of it, and what the client's validation asks of a path.
        assert re.sub("[^a-zA-Z0-9_/. -]+", "", name) == name
        assert posixpath.normpath(name) == name != "."
        assert not name.startswith(("..", "/"))


@pytest.mark.parametrize("cls", [MLFlowLogger, CometLogger, CSVLogger])
def test_usual_names_stay_as_they_are(cls):
    names = ["stepsize_mean/features.0.weight", "Aida-1/update_ratio/a b.w_x", "a_x3_", "a..b"]
    if cls is MLFlowLogger:
        names.remove("a_x3_")  # reads as an escape
    assert kept_names(logger_of(cls), names) == {name: name for name in names}


@pytest.mark.parametrize(("cls", "longest"), [(CometLogger, 100), (MLFlowLogger, 250)])
@pytest.mark.parametrize("prefix", ["", "a prefix"])
def test_names_that_are_too_long_differ_and_keep_their_ends(cls, longest, prefix):
    names = [f"stepsize_mean/{'block.' * 50}{i}.weight" for i in range(300)]
    short = ["stepsize_mean/head.weight"]
    kept = [*kept_names(logger_of(cls, prefix), names + short).values()]
    assert kept[-1:] == short
    assert len({*kept}) == 301
    for name in kept[:-1]:
        assert len(f"{prefix}-{name}" if prefix else name) in (longest, longest - 1)
        assert name.startswith("stepsize_mean/block.")
        assert name.endswith(".weight")


def test_what_is_told_once_is_not_told_again(caplog):
    logger = logger_of(MLFlowLogger)
    with caplog.at_level("INFO"):
        for names in (["a:"], ["a:", "b"], ["a:", "b:"]):
            kept_names(logger, names)
    assert [record.message.partition("it gets ")[2] for record in caplog.records] == [
        "'a:' as 'a_x3A_'.",
        "'b:' as 'b_x3A_'.",
    ]
