"""A metric against the learning rate."""

from pathlib import Path

import numpy as np
import pytest

from aida_lightning.figures.plotting import Look
from aida_lightning.figures.sweep import sweep
from aida_lightning.logs.curves import Curve
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import LoggedRun


def run(label, *values, tag="val_accuracy"):
    curve = Curve(np.arange(len(values)), np.array(values, dtype=np.float64))
    return LoggedRun(label, Path(), {tag: curve})


RUNS = [
    run("Aida K=1 lr=0.001", 0.2, 0.75, 0.5),
    run("Aida K=1 lr=0.0001", 0.25, 0.25),
    run("Aida K=1 lr=0.01", 0.5, np.nan),
    run("Adam lr=0.001 eps=1e-08", 0.5),
    run("Adam lr=0.001 eps=1e-08", 0.7),
    run("Adam lr=0.01 eps=1e-08", 0.4),
    *(run(label, 0.9) for label in ("SGD", "SGD lr=auto", "SGD lr=0.0", "SGD xlr=1", "SGD lr=1x")),
]


def lines(figure):
    """The points of each line by its name in the legend, and the stars."""
    (axis,) = figure.axes
    named = {line.get_label(): line for line in axis.get_lines()}
    stars = [line for line in axis.get_lines() if line.get_marker() == "*"]
    return {
        name: np.asarray(line.get_xydata()).tolist()
        for name, line in named.items()
        if not name.startswith("_")
    }, [tuple(map(float, star.get_xydata()[0])) for star in stars]


def test_each_optimizer_has_a_line_over_its_rates_and_a_star_at_the_best():
    figure = sweep(RUNS, Metric())
    found, stars = lines(figure)
    nan = pytest.approx(np.nan, nan_ok=True)
    assert found == {
        "Aida K=1, best at 0.001": [[0.0001, 25.0], [0.001, 75.0], [0.01, nan]],
        "Adam eps=1e-08, best at 0.001": [[0.001, pytest.approx(60.0)], [0.01, 40.0]],
    }
    assert stars == [(0.001, 75.0), (0.001, pytest.approx(60.0))]
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "linear")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.0001", "0.001", "0.01"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("learning rate", "validation accuracy in %")
    assert len(axis.collections) == 1  # the deviation of Adam's two seeds


def test_less_can_be_better_and_the_last_value_count():
    metric = Metric("val_loss", better="min", report="last")
    runs = [run("SGD lr=1", 1.0, 4.0, tag="val_loss"), run("SGD lr=2", 3.0, 2.0, tag="val_loss")]
    assert lines(sweep(runs, metric)) == ({"SGD, best at 2": [[1, 4], [2, 2]]}, [(2, 2)])


def test_the_best_seed_counts_where_the_metric_says_so():
    runs = [run("SGD lr=1", 0.25), run("SGD lr=1", 0.75)]
    figure = sweep(runs, Metric(over_seeds="best"), Look(log_y=True))
    assert lines(figure)[1] == [(1, 75)]
    assert figure.axes[0].get_yscale() == "log"


@pytest.mark.parametrize(("runs", "name"), [([RUNS[-1]], "val_accuracy"), (RUNS, "val_f1")])
def test_without_rates_or_without_the_metric_there_is_no_figure(runs, name):
    with pytest.raises(EventsError, match=f"no run has a learning rate.* and '{name}'"):
        sweep(runs, Metric(name))
