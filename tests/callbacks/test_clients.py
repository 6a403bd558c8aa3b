"""The clients of W&B, MLflow and Comet, offline: what they stored is read back.

Needs the extra `loggers`.
"""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, WandbLogger
from PIL import Image
from torch import nn
from toy import Net, fit

from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("default::DeprecationWarning"),  # the clients' own
    pytest.mark.filterwarnings("default::ResourceWarning"),
    # Of the figures' legend with such names in it.
    pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning"),
    pytest.mark.filterwarnings("ignore:constrained_layout not applied:UserWarning"),
]
FIGURES = ["stepsizes/std", "stepsizes/mean", "stepsizes/heatmap"]
LONG = "block_" * 14


class OddNames(Net):
    """Layers whose names some client would drop characters of, cut off, or refuse."""

    ODD = ("cde", "c:d@e", "层", "注", "a//b", f"{LONG}1", f"{LONG}2")

    def __init__(self):
        super().__init__()
        self.odd = nn.ModuleDict({name: nn.Linear(4, 3) for name in self.ODD})

    def loss(self, batch):
        odd = sum(layer(batch[0]).square().mean() for layer in self.odd.values())
        return super().loss(batch) + odd


LAYERS = ["features", "head", *(f"odd.{name}" for name in OddNames.ODD)]
SCALARS = [f"stepsize_{s}/{layer}.weight" for layer in LAYERS for s in ("mean", "std")]


@pytest.fixture
def trained(tmp_path):
    """Return a function that trains with a logger, and gives the last numbers logged."""

    def train(logger):
        monitor = StepsizeMonitor(every_n_steps=3, histograms=True, figures=True)
        metrics = fit(tmp_path, OddNames(), monitor, loggers=[logger]).callback_metrics
        return {name: metrics[name].item() for name in SCALARS}

    return train


def wandb_records(path):
    """Yield the records of a ``.wandb`` file, which is a log of LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def test_wandb_stores_scalars_histograms_and_figures_under_their_own_names(
    tmp_path, trained, monkeypatch
):
    wandb = pytest.importorskip("wandb", reason="needs the extra `loggers`")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    last = trained(logger)
    logger.experiment.finish()
    wandb.teardown()  # its process has then written all
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = [  # by name, and by the parts of what has some
        {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]
    step = ("trainer/global_step",)
    scalars = [row for row in rows if (SCALARS[0],) in row]
    assert [row[step] for row in scalars] == [2, 5, 8, 11]
    assert {name: scalars[-1][name,] for name in SCALARS} == pytest.approx(last)

    histograms = [row for row in rows if ("stepsizes/head.weight", "values") in row]
    assert [row[step] for row in histograms] == [2, 5, 8, 11]
    for layer in LAYERS:
        for row in histograms:
            kind, counts, edges = (
                row[f"stepsizes/{layer}.weight", part] for part in ("_type", "values", "bins")
            )
            assert (kind, sum(counts)) == ("histogram", 3 if layer == "head" else 12)
            assert len(edges) == len(counts) + 1

    (figures,) = [row for row in rows if (FIGURES[0], "path") in row]
    assert figures[step] == 11
    for name in FIGURES:
        assert is_drawn(Image.open(path.parent / "files" / figures[name, "path"]))


def test_mlflow_stores_scalars_and_figures_and_keeps_names_apart(tmp_path, trained):
    pytest.importorskip("mlflow", reason="needs the extra `loggers`")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLFlowLogger(tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri())
    with pytest.warns(UserWarning, match="go to MLFlowLogger, where no histograms can be logged"):
        last = trained(logger)

    client = logger.experiment
    stored = client.get_run(logger.run_id).data.metrics
    changed = {
        "odd.c:d@e": "odd.c_x3A_d_x40_e",
        "odd.层": "odd._x5C42_",
        "odd.注": "odd._x6CE8_",
        "odd.a//b": "odd.a/_x2F_b",
    }
    for name, value in last.items():
        tag, _, layer = name.removesuffix(".weight").partition("/")
        name = f"{tag}/{changed.get(layer, layer)}.weight"
        assert stored[name] == pytest.approx(value)
        assert [m.step for m in client.get_metric_history(logger.run_id, name)] == [2, 5, 8, 11]
    assert len([name for name in stored if "stepsize" in name]) == len(SCALARS)

    files = [file.path for file in client.list_artifacts(logger.run_id, "images")]
    for name in FIGURES:
        kind = name.partition("/")[2]
        (file,) = [f for f in files if f"{kind}+step+11" in f.replace("%", "+") and "png" in f]
        assert is_drawn(Image.open(client.download_artifacts(logger.run_id, file, str(tmp_path))))


def test_comet_stores_scalars_histograms_and_figures_and_keeps_long_names_apart(
    tmp_path, trained, monkeypatch
):
    pytest.importorskip("comet_ml", reason="needs the extra `loggers`")
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    logger = CometLogger(offline_directory=str(tmp_path))
    last = trained(logger)
    logger.experiment.end()
    (path,) = tmp_path.glob("*.zip")
    scalars, histograms, figures = {}, {}, {}
    with zipfile.ZipFile(path) as archive:
        for line in archive.read("messages.json").decode().splitlines():
            message = json.loads(line)["payload"]
            if "stepsize" in (metric := message.get("metric", {})).get("metricName", ""):
                scalars.setdefault(metric["metricName"], {})[metric["step"]] = metric["metricValue"]
            kind, of = message.get("upload_type"), message.get("additional_params")
            if kind == "histogram3d":
                histogram = json.loads(archive.read(message["file_path"]))
                histograms.setdefault(of["fileName"], {})[of["step"]] = histogram
            if kind == "visualization":
                picture = archive.read(message["file_path"])
                figures[of["figName"], of["step"]] = Image.open(io.BytesIO(picture))
    assert len(scalars) == len(SCALARS)
    assert len(histograms) == len(LAYERS)
    for name, value in last.items():
        if LONG not in name:
            assert scalars[name][11] == pytest.approx(value)
    for of in (*scalars.values(), *histograms.values()):
        assert [*of] == [2, 5, 8, 11]
    for layer in (layer for layer in LAYERS if LONG not in layer):
        for histogram in histograms[f"stepsizes/{layer}.weight"].values():
            counted = sum(count for _, count in histogram["index_values"])
            assert counted == (3 if layer == "head" else 12)
    assert [*figures] == [(name, 11) for name in FIGURES]
    assert all(map(is_drawn, figures.values()))


def is_drawn(image):
    pixels = np.asarray(image.convert("RGB"))
    return pixels.shape[0] > 300 and pixels.std() > 5
