"""Loggers other than TensorBoard's, one and several, each with its own separator."""

import csv
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
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


class Recorder:
    """In the place of a client's experiment: it keeps each call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

    def of(self, method):
        return [(args, kwargs) for name, args, kwargs in self.calls if name == method]


class Recorded:
    """Has one of Lightning's loggers, which stays as it is otherwise, call a recorder."""

    experiment = name = save_dir = None
    version, run_id = 0, "run"

    def __init__(self, prefix=""):
        Logger.__init__(self)
        self.experiment, self._prefix = Recorder(), prefix
        self._wandb_init = self._log_batch_kwargs = {}

    def log_hyperparams(self, *args):
        pass

    def log_graph(self, *args):
        pass

    def finalize(self, status):
        pass


Wandb = type("WandbLogger", (Recorded, WandbLogger), {})
MLFlow = type("MLFlowLogger", (Recorded, MLFlowLogger), {})
Comet = type("CometLogger", (Recorded, CometLogger), {})


class CometHistogram:
    def add(self, values, counts):
        self.values, self.counts = values, counts


@pytest.fixture
def clients(monkeypatch):
    """Put stand-ins in the places of the clients' packages, with what is called of them."""
    contents = {
        "wandb": {"Histogram": SimpleNamespace, "Image": lambda picture: picture},
        "mlflow": {},
        "mlflow.entities": {"Metric": SimpleNamespace},
        "comet_ml": {},
        "comet_ml.data_structure": {"Histogram": CometHistogram},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def without_clients(monkeypatch):
    for name in ("wandb", "mlflow", "comet_ml"):
        monkeypatch.setitem(sys.modules, name, None)  # an import raises ImportError


FIGURES = ["stepsizes/std", "stepsizes/mean", "stepsizes/heatmap"]
LAYERS = ["stepsizes/features.weight", "stepsizes/head.weight"]


def test_each_of_several_loggers_gets_the_histograms_and_figures_that_it_can_take(
    tmp_path, clients, caplog
):
    wandb, mlflow, comet = Wandb(), MLFlow(), Comet()
    csv_logger, unknown = CSVLogger(tmp_path, name="", version="csv"), Remembers()
    board = TensorBoardLogger(tmp_path, name="", version="run")
    loggers = [csv_logger, wandb, mlflow, board, comet, unknown]
    with caplog.at_level("INFO"):
        fit(tmp_path, Net(), StepsizeMonitor(histograms=True, figures=True), loggers=loggers)

    logged = [metrics for (metrics,), _ in wandb.experiment.of("log")]
    at = {m["trainer/global_step"]: m for m in logged if LAYERS[0] in m}
    assert sorted(at) == [4, 9]
    assert all([*metrics] == [*LAYERS, "trainer/global_step"] for metrics in at.values())
    (figures,) = [metrics for metrics in logged if FIGURES[0] in metrics]
    assert [*figures] == [*FIGURES, "trainer/global_step"]
    assert figures["trainer/global_step"] == 11

    drawn = [(args[0], args[1].shape, kw) for args, kw in mlflow.experiment.of("log_image")]
    shapes = [figures[name].shape for name in FIGURES]
    expected = [("run", s, {"key": n, "step": 11}) for n, s in zip(FIGURES, shapes, strict=True)]
    assert drawn == expected
    drawn = [(args[1], np.shape(args[0]), kw) for args, kw in comet.experiment.of("log_image")]
    assert drawn == [(n, s, {"step": 11}) for n, s in zip(FIGURES, shapes, strict=True)]

    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"histograms": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == sorted(FIGURES)
    of_comet = comet.experiment.of("log_histogram_3d")
    assert [(args[1], kw["step"]) for args, kw in of_comet] == [(n, s) for s in at for n in LAYERS]
    for (histogram, name), kw in of_comet:
        event = {e.step: e.histogram_value for e in events.Histograms(name)}[kw["step"]]
        edges = [event.min, *event.bucket_limit]
        assert sum(histogram.counts) == event.num == (12 if "features" in name else 3)
        assert [*histogram.counts] == event.bucket
        assert histogram.values == pytest.approx((np.array(edges[1:]) + edges[:-1]) / 2)
        counts, limits = at[kw["step"]][name].np_histogram
        assert [*counts] == event.bucket
        assert [*limits] == edges

    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {*header} == {"epoch", "step", "loss", *names("/")}
    assert {name for _, metrics in unknown.logged for name in metrics} == {*header} - {"step"}
    said = [r.message for r in caplog.records if "only the scalars go to" in r.message]
    assert said == [
        "StepsizeMonitor(histograms=True): only the scalars go to CSVLogger, MLFlowLogger, "
        "Remembers, where no histograms can be logged.",
        "StepsizeMonitor(figures=True): only the scalars go to CSVLogger, Remembers, where no "
        "figures can be logged.",
    ]


@pytest.mark.parametrize("option", ["histograms", "figures"])
def test_where_no_logger_takes_them_training_goes_on_with_one_warning(tmp_path, option):
    monitor = StepsizeMonitor(**{option: True})
    logger = CSVLogger(tmp_path, name="", version="csv")
    with pytest.warns(
        UserWarning,
        match=rf"\({option}=True\): only the scalars go to CSVLogger, where no {option} can be "
        rf"logged. Loggers that support {option}: TensorBoardLogger, Wandb",
    ) as warned:
        fit(tmp_path, Net(), monitor, loggers=[logger], max_epochs=2)
    assert len([w for w in warned if "only the scalars" in str(w.message)]) == 1
    assert names("/") <= {*(tmp_path / "csv" / "metrics.csv").read_text().split("\n")[0].split(",")}


def test_clients_that_are_not_in_use_are_not_imported(tmp_path, without_clients):
    fit(tmp_path, Net(), StepsizeMonitor(histograms=True, figures=True))
    logger = CSVLogger(tmp_path, name="", version="csv")
    fit(tmp_path, Net(), StepsizeMonitor(), loggers=[logger])


@pytest.mark.filterwarnings("ignore:MLFlow only allows:RuntimeWarning")
def test_figures_and_histograms_have_the_loggers_prefix(tmp_path, clients):
    loggers = [Wandb("a"), MLFlow("b:c"), Comet("d")]
    fit(tmp_path, Net(), StepsizeMonitor(histograms=True, figures=True), loggers=loggers)
    wandb, mlflow, comet = (logger.experiment for logger in loggers)
    logged = {name for (metrics,), _ in wandb.of("log") for name in metrics}
    assert {f"a-{name}" for name in (*LAYERS, *FIGURES)} <= logged
    # Its client refuses a figure's key with a colon, which its logger drops from metrics' names.
    keys = [kwargs["key"] for _, kwargs in mlflow.of("log_image")]
    assert keys == [f"b_x3A_c-{name}" for name in FIGURES]
    assert [args[1] for args, _ in comet.of("log_image")] == [f"d_{name}" for name in FIGURES]
    assert {args[1] for args, _ in comet.of("log_histogram_3d")} == {f"d_{n}" for n in LAYERS}


class OddNames(Net):
    """Layers whose names MLflow's logger would make one of, or its client refuse."""

    ODD = ("c:d@e", "层", "注", "a//b", "a/")

    def __init__(self):
        super().__init__()
        self.odd = nn.ModuleDict({name: nn.Linear(4, 3) for name in ("cde", *self.ODD)})

    def loss(self, batch):
        return super().loss(batch) + sum(
            layer(batch[0]).square().mean() for layer in self.odd.values()
        )


@pytest.mark.filterwarnings("error:MLFlow only allows")
def test_names_that_mlflow_would_make_one_of_stay_apart_and_are_told_once(
    tmp_path, clients, caplog
):
    mlflow, wandb = MLFlow(), Wandb()
    csv_logger = CSVLogger(tmp_path, name="", version="csv")
    with caplog.at_level("INFO"):
        fit(tmp_path, OddNames(), StepsizeMonitor(), loggers=[mlflow, wandb, csv_logger])
    batches = [kwargs["metrics"] for _, kwargs in mlflow.experiment.of("log_batch")]
    (first, _) = [b for b in ({m.key: m.value for m in b} for b in batches) if len(b) > 2]
    kept = ["cde", "c_x3A_d_x40_e", "_x5C42_", "_x6CE8_", "a/_x2F_b", "a/"]
    layers = ["features", "head", *(f"odd.{name}" for name in kept)]
    assert {*first} == {f"stepsize_{s}/{x}.weight" for s in ("mean", "std") for x in layers}

    # The others keep all names as they are.
    logged = [metrics for (metrics,), _ in wandb.experiment.of("log")]
    with open(tmp_path / "csv" / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["stepsize_mean/odd.层.weight"]]
    for name, new in zip(("cde", *OddNames.ODD), kept, strict=True):
        value = first[f"stepsize_mean/odd.{new}.weight"]
        assert value == next(
            m[f"stepsize_mean/odd.{name}.weight"] for m in logged if len(m) > 3
        ) == pytest.approx(float(rows[0][f"stepsize_mean/odd.{name}.weight"]))  # fmt: skip

    said = [r.message for r in caplog.records if "names apart" in r.message]
    assert said == [
        "MLFlowLogger would not keep these names apart from others, so it gets "
        "'stepsize_mean/odd.c:d@e.weight' as 'stepsize_mean/odd.c_x3A_d_x40_e.weight', "
        "'stepsize_std/odd.c:d@e.weight' as 'stepsize_std/odd.c_x3A_d_x40_e.weight', "
        "'stepsize_mean/odd.层.weight' as 'stepsize_mean/odd._x5C42_.weight', "
        "'stepsize_std/odd.层.weight' as 'stepsize_std/odd._x5C42_.weight', "
        "'stepsize_mean/odd.注.weight' as 'stepsize_mean/odd._x6CE8_.weight', and 3 more."
    ]
