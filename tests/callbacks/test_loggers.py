"""Loggers other than TensorBoard's, one and several, each with its own separator."""

import csv

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from toy import Net, TwoOptimizers, fit, read

from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


class Remembers(Logger):
    """A logger in the shape of Lightning's own: it keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.logged = []

    @property
    def name(self):
        return "remembers"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, dict(metrics)))

    @property
    def stepsizes(self):
        return [entry for entry in self.logged if any("stepsize" in name for name in entry[1])]


class LikeMLFlow(Remembers):
    """MLFlowLogger: "/" separates, and its client is given numbers, never tensors or strings."""

    def log_metrics(self, metrics, step=None):
        assert all(type(value) is float for name, value in metrics.items() if "stepsize" in name)
        super().log_metrics(metrics, step)


class LikeNeptune(Remembers):
    """A logger whose groups are separated by something else."""

    @property
    def group_separator(self):
        return "."


def names(separator):
    layers = ("features.weight", "head.weight")
    return {f"stepsize_{s}{separator}{layer}" for s in ("mean", "std") for layer in layers}


@pytest.mark.parametrize(("kind", "separator"), [(LikeMLFlow, "/"), (LikeNeptune, ".")])
def test_a_logged_step_is_one_call_with_the_loggers_separator(tmp_path, kind, separator):
    logger = kind()
    fit(tmp_path, Net(), StepsizeMonitor(), loggers=[logger])
    assert [step for step, _ in logger.stepsizes] == [4, 9]
    for _, metrics in logger.stepsizes:
        assert metrics.keys() == names(separator)


def test_several_optimizers_names_go_first_with_the_separator(tmp_path):
    logger = LikeNeptune()
    fit(tmp_path, TwoOptimizers(["aida", "adam"], every=1), StepsizeMonitor(), loggers=[logger])
    ((_, metrics), _) = logger.stepsizes
    assert metrics.keys() == {
        f"{optimizer}.stepsize_{statistic}.{layer}.weight"
        for optimizer, layer in (("Aida", "head"), ("Adam", "features"))
        for statistic in ("mean", "std")
    }


def test_several_loggers_get_the_same_numbers(tmp_path):
    others = [LikeMLFlow(), LikeNeptune()]
    loggers = [
        TensorBoardLogger(tmp_path, name="", version="run"),
        CSVLogger(tmp_path, name="", version="csv"),
        *others,
    ]
    fit(tmp_path, Net(), StepsizeMonitor(), loggers=loggers)
    scalars = read(tmp_path)
    with open(tmp_path / "csv" / "metrics.csv", encoding="utf-8") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row[names("/").pop()]}
    for name in names("/"):
        assert sorted(scalars[name]) == [4, 9]
        for step, value in scalars[name].items():
            assert float(rows[step][name]) == pytest.approx(value, rel=1e-6)
            for logger in others:
                metrics = dict(logger.stepsizes)[step]
                own_name = name.replace("/", logger.group_separator)
                assert metrics[own_name] == pytest.approx(value, rel=1e-6)


def test_a_csv_has_a_row_per_logged_step(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="csv")
    fit(tmp_path, Net(), StepsizeMonitor(every_n_steps=4), loggers=[logger])
    with open(tmp_path / "csv" / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["stepsize_mean/head.weight"]]
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    assert names("/") <= rows[0].keys()
