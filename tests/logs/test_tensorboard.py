"""What goes into the event files, and how."""

import pytest
from lightning.fabric.loggers import tensorboard
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from toy import Net, TwoOptimizers, fit, read

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.logs.writing import log_hyperparameters, log_success

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def monitors_events(folder):
    """Give the step and the values, by tag, of each event with scalars of the monitor."""
    events = []
    for path in sorted(folder.glob("*tfevents*")):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            values = {v.tag: v.simple_value for v in event.summary.value if "stepsize" in v.tag}
            if values:
                events.append((event.step, values))
    return events


@pytest.fixture(params=["torch.utils.tensorboard", "tensorboardX"])
def package(request, monkeypatch):
    """Have Lightning choose one of the packages with a SummaryWriter."""
    pytest.importorskip(request.param)
    available = request.param != "tensorboardX"
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", available)
    return request.param


def test_a_logged_step_is_one_event(tmp_path, package):
    trainer = fit(tmp_path, TwoOptimizers(["aida", "adam"], every=1), StepsizeMonitor())
    assert type(trainer.logger.experiment).__module__.startswith(package)
    events = monitors_events(tmp_path / "run")
    assert [step for step, _ in events] == [4, 9]
    edges = ("z_stepsize_band/lower", "z_stepsize_band/upper")
    for _, values in events:
        assert values.keys() == {
            f"{prefix}/{statistic}/{layer}"
            for prefix, layer in (("Aida", "head.weight"), ("Adam", "features.weight"))
            for statistic in ("stepsize_mean", "stepsize_std", *edges)
        }


def test_hyperparameters_are_a_row_of_plain_values_under_columns_of_all_runs(tmp_path, package):
    logger = TensorBoardLogger(tmp_path, name="", version="run", prefix="a")
    rows = [{"lr": 0.1, "k": 1, "nesterov": True}, {"lr": "auto", "k": 1}]
    log_hyperparameters(logger, "one", rows[0], rows, {"loss": "the loss"})
    log_success(logger)
    logger.finalize("success")
    accumulator = EventAccumulator(str(tmp_path / "run")).Reload()
    found = {
        tag: HParamsPluginData.FromString(content)
        for tag, content in accumulator.PluginTagToContent("hparams").items()
    }
    experiment = found["_hparams_/experiment"].experiment
    assert [(info.name, info.type, info.differs) for info in experiment.hparam_infos] == [
        ("lr", api_pb2.DATA_TYPE_STRING, True),
        ("k", api_pb2.DATA_TYPE_FLOAT64, False),
        ("nesterov", api_pb2.DATA_TYPE_BOOL, True),
    ]
    (metric,) = experiment.metric_infos
    assert (metric.name.tag, metric.display_name) == ("a-loss", "the loss")
    row = found["_hparams_/session_start_info"].session_start_info
    assert (row.group_name, row.hparams["lr"].number_value) == ("one", 0.1)
    assert row.hparams["nesterov"].bool_value is True
    end = found["_hparams_/session_end_info"].session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS


def test_tags_and_values_are_those_that_lightning_would_have_written(tmp_path, package):
    written = []
    for one_by_one in (False, True):
        folder = tmp_path / str(one_by_one)
        logger = TensorBoardLogger(folder, name="", version="run", prefix="a b")
        if one_by_one:  # someone else's way to log, which is used then
            type_ = type("Own", (TensorBoardLogger,), {"log_metrics": overridden})
            logger = type_(folder, name="", version="run", prefix="a b")
        fit(folder, Net(), StepsizeMonitor(), loggers=[logger])
        written.append({t: v for t, v in read(folder).items() if "stepsize" in t})
    assert written[0] == written[1]
    clean = "a_b" if package == "tensorboardX" else "a b"
    assert sorted(written[0][f"{clean}-stepsize_mean/head.weight"]) == [4, 9]


def overridden(self, metrics, step=None):
    TensorBoardLogger.log_metrics(self, metrics, step)


def test_a_logger_with_a_log_metrics_of_its_own_is_asked(tmp_path):
    logged = []

    class Own(TensorBoardLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, *metrics))

    fit(tmp_path, Net(), StepsizeMonitor(), loggers=[Own(tmp_path, name="", version="run")])
    assert [entry[0] for entry in logged if "stepsize_mean/head.weight" in entry] == [4, 9]


def test_scalars_mirrored_to_comet_go_the_way_that_mirrors_them(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    logger = TensorBoardLogger(tmp_path, name="", version="run", comet_config={"disabled": None})
    fit(tmp_path, Net(), StepsizeMonitor(custom_scalars=False), loggers=[logger])
    assert [len(values) for _, values in monitors_events(tmp_path / "run")] == [1] * 8
