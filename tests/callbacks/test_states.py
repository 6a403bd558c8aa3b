"""The table of what the optimizers keep, which the monitor writes beside the ratios of it."""

import statistics

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import Net, TwoOptimizers, fit, read

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.figures.advice import advise
from aida_lightning.logs.states import LayerState, read_states

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def texts(folder):
    events = EventAccumulator(str(folder / "run"), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    }


def test_the_table_tells_what_the_optimizer_keeps_of_all_its_layers_and_is_written_once(tmp_path):
    fit(tmp_path, Net("adam", amsgrad=True), StepsizeMonitor("head.weight", 1, statistics="snr"))
    assert read_states(tmp_path / "run") == {
        # the momentum, two second moments and the number of steps, of 4 bytes each
        None: {
            "features.weight": LayerState("Adam", (3, 4), 3 * 48 + 4, 48),
            "features.bias": LayerState("Adam", (3,), 3 * 12 + 4, 12),
            "head.weight": LayerState("Adam", (1, 3), 3 * 12 + 4, 12),
            "head.bias": LayerState("Adam", (1,), 3 * 4 + 4, 4),
        }
    }
    ((tag, (text,)),) = texts(tmp_path).items()
    assert tag == "optimizer_state/text_summary"
    assert text.splitlines()[:3] == [
        "| Optimizer | Layer | Shape | State (bytes) | Second moment (bytes) |",
        "| --- | --- | --- | --- | --- |",
        "| Adam | features.weight | 3 × 4 | 148 | 48 |",
    ]


def test_each_of_several_optimizers_has_a_table(tmp_path):
    monitor = StepsizeMonitor("*", 1, statistics=["mean", "snr"])
    with pytest.warns(UserWarning, match="logs no snr for LAdam"):
        fit(tmp_path, TwoOptimizers(["ladam", "aida"], every=1), monitor)
    tables = read_states(tmp_path / "run")
    assert {name: [*table] for name, table in tables.items()} == {
        "LAdam": ["head.weight", "head.bias"], "Aida": ["features.weight", "features.bias"]
    }  # fmt: skip
    assert tables["LAdam"]["head.weight"].second_moment_bytes == 0
    assert tables["Aida"]["features.weight"].second_moment_bytes == 48


def test_a_layer_that_joins_later_is_in_a_later_table(tmp_path):
    class Joins(Net):
        def loss(self, batch):
            hidden = batch[0][:, :3] if self.global_step < 6 else self.features(batch[0])
            return self.head(hidden).square().mean()

    fit(tmp_path, Joins("adam"), StepsizeMonitor("*", 1, statistics="snr_rows"))
    ((_, tables),) = texts(tmp_path).items()
    assert [len(text.splitlines()) - 2 for text in tables] == [2, 4]
    assert len(read_states(tmp_path / "run")[None]) == 4


def test_without_the_ratios_there_is_no_table(tmp_path):
    fit(tmp_path, Net("adam"), StepsizeMonitor(every_n_steps=1))
    assert texts(tmp_path) == {}
    assert read_states(tmp_path / "run") == {}


def test_half_precision_counts_its_own_bytes(tmp_path):
    module = Net("adam").to(torch.bfloat16)
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1, statistics="snr"), precision="bf16-true")
    state = read_states(tmp_path / "run")[None]["features.weight"]
    assert (state.state_bytes, state.second_moment_bytes) == (2 * 24 + 4, 24)


def test_the_advice_is_that_of_what_the_monitor_logged(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=1, statistics=["snr", "snr_rows"])
    fit(tmp_path, TwoOptimizers(["adam", "aida"], every=1), monitor)
    scalars = read(tmp_path)
    found = {advice.label: advice for advice in advise([tmp_path])}
    assert [*found] == ["run Adam", "run Aida"]
    for name, layer in (("Adam", "head"), ("Aida", "features")):
        advice = found[f"run {name}"]
        assert (advice.optimizer, advice.steps, [*advice.layers]) == (
            name, 12, [f"{layer}.weight", f"{layer}.bias"]
        )  # fmt: skip
        weight, bias = advice.layers.values()
        snr, snr_rows = (
            statistics.median(scalars[f"{name}/{tag}/{layer}.weight"].values())
            for tag in ("snr", "snr_rows")
        )
        assert (weight.snr, weight.snr_rows) == pytest.approx((snr, snr_rows))
        assert (bias.snr, bias.average) == (None, "nothing")  # not measured by default
