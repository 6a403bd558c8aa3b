"""Parts of packed layers in the monitor: their tags, charts, choices, errors and checkpoints."""

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from toy import Net, fit, read

from aida_lightning._lightning import MisconfigurationException
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.callbacks._layers import WatchedLayers
from aida_lightning.figures.layers import pick_layers
from aida_lightning.figures.plotting import Look
from aida_lightning.logs.custom_scalars import last_layout
from aida_lightning.logs.runs import read_monitored_runs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
QKV = {"*.in_proj_weight": ["q", "k", "v"], "*.weight_ih*": 4}


class Packed(Net):
    def __init__(self, name="aida"):
        super().__init__(name)
        self.attention, self.lstm = nn.MultiheadAttention(4, 2), nn.LSTM(4, 4)

    def loss(self, batch):
        x = self.lstm(batch[0])[0]
        return super().loss([self.attention(x, x, x, need_weights=False)[0]])


NAMES = [
    *("attention.in_proj_weight", *(f"attention.in_proj_weight[{part}]" for part in "qkv")),
    *("lstm.weight_ih_l0", *(f"lstm.weight_ih_l0[{part}]" for part in range(4))),
]


def test_parts_are_layers_in_tags_charts_and_choices(tmp_path):
    monitor = StepsizeMonitor(
        parts=QKV, histograms=True, figures=True, custom_scalars=["*_weight[q]"]
    )
    trainer = fit(tmp_path, Packed(), monitor)
    means = [tag.partition("/")[2] for tag in read(tmp_path) if tag.startswith("stepsize_mean/")]
    assert {*NAMES} <= {*means}
    assert f"stepsize_std/{NAMES[1]}" in trainer.callback_metrics
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert f"stepsizes/{NAMES[1]}" in events.Tags()["histograms"]
    layout = {category.title: category for category in last_layout(trainer.logger).category}
    bands = layout["stepsize_mean ± stepsize_std"]
    assert [chart.title for chart in bands.chart] == [NAMES[1]]
    charts = [chart for category in layout.values() for chart in category.chart]
    lines = [tag for chart in charts for tag in chart.multiline.tag]
    assert any(r"in_proj_weight\[q\]" in line for line in lines)
    (run,) = read_monitored_runs([tmp_path / "run"])
    for wanted, expected in (("*in_proj_weight[q]", NAMES[1:2]), ("*ih_l0[[]*", NAMES[5:])):
        chosen = pick_layers([run], Look(layers=[wanted]), [])
        assert [*chosen.values()] == expected


def test_a_glob_that_matches_first_chooses_and_the_default_has_no_parts(tmp_path):
    parts = {"attention.*": 2, "*_weight": "rows"}
    fit(tmp_path / "parts", Packed(), StepsizeMonitor(parts=parts))
    fit(tmp_path / "none", Packed(), StepsizeMonitor())
    logged, plain = read(tmp_path / "parts"), read(tmp_path / "none")
    assert {tag: logged[tag] for tag in plain} == plain
    assert not any("[" in tag for tag in plain)
    assert {tag.partition("[")[2] for tag in logged if "in_proj_weight[" in tag} == {"0]", "1]"}


def test_max_layers_counts_the_parts(tmp_path):
    monitor = StepsizeMonitor(max_layers=5, parts={"*.in_proj_weight": "rows"})
    with pytest.warns(UserWarning, match="found 18 layers and logs 5 of them"):
        fit(tmp_path, Packed(), monitor)
    assert sum(tag.startswith("stepsize_mean/") for tag in read(tmp_path)) == 5


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"*.in_proj": 3}, r"no layer that matches '\*.in_proj'"),
        ({"*in_proj_bias": 3}, "divides by .* only layers that `layers` does not choose"),
        (
            {"*in_proj_weight": 5},
            r"parts\['\*in_proj_weight'\] cannot divide the layer 'attention.in_proj_weight' of "
            r"shape \[12, 4\]: the number of parts, 5, must divide the size of dimension 0, 12",
        ),
    ],
)
def test_an_error_names_the_glob_the_layer_and_its_shape(tmp_path, parts, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, Packed(), StepsizeMonitor(parts=parts))


def test_a_monitor_with_parts_resumes(tmp_path):
    assert StepsizeMonitor(parts=QKV).state_key != StepsizeMonitor().state_key
    checkpoint = ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1)
    for epochs, saved in ((1, None), (2, tmp_path / "saved" / "epoch=0.ckpt")):
        monitor = StepsizeMonitor(every_n_steps=5, parts=QKV)
        fit(
            tmp_path, Packed(), monitor, checkpoint,
            enable_checkpointing=True, ckpt_path=saved, max_epochs=epochs,
        )  # fmt: skip
    assert sorted(read(tmp_path)[f"stepsize_mean/{NAMES[1]}"]) == [4, 9, 14, 19]


def test_a_logged_step_brings_all_parts_to_the_host_at_once(tmp_path, monkeypatch):
    seen, tolist = [], torch.Tensor.tolist

    def counted(tensor):
        seen.append(tensor)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    counts = []
    for place, parts in enumerate((None, QKV, {"*": "rows"})):
        seen.clear()
        fit(tmp_path / str(place), Packed(), StepsizeMonitor(parts=parts, health=False))
        counts.append(len(seen))
    assert counts[0] == counts[1] == counts[2] > 0


def test_a_lazy_layer_is_divided_once_it_has_a_shape(tmp_path):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.features = nn.LazyLinear(3)

    fit(tmp_path, Lazy(), StepsizeMonitor(parts={"features.weight": "rows"}))
    assert "stepsize_mean/features.weight[2]" in read(tmp_path)


def test_parts_follow_their_layer():
    module = Packed()
    trainer = type("Trainer", (), {"optimizers": [module.configure_optimizers()]})()
    assert [*WatchedLayers(trainer, module, ["attention.in*t", "lstm.weight_ih*"], 99, QKV)()
            .values()] == NAMES  # fmt: skip


@pytest.mark.parametrize("value", ['["q", "k", "v"]', "4", '{"q": 8, "k": 2, "v": 2}', "rows"])
def test_the_parts_of_a_file_of_lightning_cli_are_those_of_the_argument(value):
    parser = ArgumentParser()
    parser.add_class_arguments(StepsizeMonitor, "monitor")
    parsed = parser.parse_args(["--monitor.parts", f'{{"*.in_proj_weight": {value}}}'])
    expected = yaml.safe_load(value)
    assert StepsizeMonitor(parts=parsed.monitor.parts).parts == {"*.in_proj_weight": expected}
