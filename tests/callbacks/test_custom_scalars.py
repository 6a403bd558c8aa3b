"""The Custom Scalars tab, as a TensorBoard server gives it to its page."""

import re
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard_server import Server
from torch import nn
from toy import Net, TwoOptimizers, age_events, fit, read

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.logs.custom_scalars import last_layout

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
THEIRS = {"mine": {"the loss": ["Multiline", ["^loss$"]]}}


class Stack(Net):
    """13 layers, of which layers.1 is the start of layers.10, layers.11 and layers.12."""

    def __init__(self):
        super().__init__()
        self.features = self.head = None
        self.layers = nn.ParameterList(torch.ones(2, 1) for _ in range(13))

    def loss(self, batch):
        return sum(
            ((i + 1) * x * batch[0][0, 0] - 1).square().sum() for i, x in enumerate(self.layers)
        )

    def on_train_start(self):
        self.logger.experiment.add_custom_scalars(THEIRS)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom_scalars")
    fit(folder, Stack(), StepsizeMonitor(every_n_steps=4))
    return folder


@pytest.fixture(scope="module", params=["--load_fast=true", "--load_fast=false"])
def server(request, logdir):
    server = Server(logdir, request.param)
    yield server
    server.close()


def series(server, chart):
    """Ask as the page does: for several expressions at once, and for margins by escaped tags."""
    if "multiline" in chart:
        query = "|".join(f"({tag})" for tag in chart["multiline"]["tag"])
    else:
        (edges,) = chart["margin"]["series"]
        query = "|".join(f"({re.escape(edges[n])})" for n in ("value", "lower", "upper"))
    found = server.get("custom_scalars/scalars", run="run", tag=query)
    assert found["regex_valid"]
    return {
        tag: {step: x for _, step, x in points} for tag, points in found["tag_to_events"].items()
    }


def test_the_page_shows_every_layer_once_in_few_charts_beside_the_users(server, logdir):
    layout = server.when(lambda answer: answer, "custom_scalars/layout")
    categories = {category["title"]: category for category in layout["category"]}
    compared = [
        f"{statistic}, {what}"
        for what in ("runs compared, layers 1–6", "runs compared, layers 7–13", "layers compared")
        for statistic in ("stepsize_mean", "stepsize_std")
    ]
    assert sorted(categories) == sorted(["mine", "stepsize_mean ± stepsize_std", *compared])
    ours = [*categories.values()][1:]
    assert ["±" in ours[0]["title"], ours[0].get("closed", False)] == [True, False]
    assert all(category["closed"] for category in ours[1:])
    scalars = read(logdir)
    server.when(lambda runs: len(runs.get("run", ())) == len(scalars), "scalars/tags")
    names = [f"layers.{index}" for index in range(13)]
    for statistic in ("stepsize_mean", "stepsize_std"):
        charts = categories[f"{statistic}, layers compared"]["chart"]
        assert [len(chart["multiline"]["tag"]) for chart in charts] == [4, 4, 5]
        assert charts[0]["title"] == "layers.0 … layers.3"
        lines = [series(server, chart) for chart in charts]
        tags = [f"{statistic}/{name}" for name in names]
        assert [{*chart} for chart in lines] == [{*tags[:4]}, {*tags[4:8]}, {*tags[8:]}]
        for chart in lines:
            for tag, points in chart.items():
                assert points == scalars[tag]
                assert sorted(points) == [3, 7, 11]
        single = [
            chart
            for part in ("layers 1–6", "layers 7–13")
            for chart in categories[f"{statistic}, runs compared, {part}"]["chart"]
        ]
        assert [chart["title"] for chart in single] == names
        assert [[*series(server, chart)] for chart in single] == [[tag] for tag in tags]


def test_the_page_has_a_band_around_each_layers_mean(server, logdir):
    layout = server.when(lambda answer: answer, "custom_scalars/layout")
    server.when(lambda runs: len(runs.get("run", ())) == len(read(logdir)), "scalars/tags")
    (band,) = [c for c in layout["category"] if "±" in c["title"]]
    # The first and the last and evenly between, in the order that the page turns round.
    shown = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]
    assert [chart["title"] for chart in band["chart"]] == [f"layers.{i}" for i in shown[::-1]]
    scalars = read(logdir)
    for chart in band["chart"]:
        found = series(server, chart)
        (edges,) = chart["margin"]["series"]
        value, lower, upper = (found[edges[name]] for name in ("value", "lower", "upper"))
        assert edges["value"] == f"stepsize_mean/{chart['title']}"
        # The page refuses margins at other steps than the value's.
        assert value.keys() == lower.keys() == upper.keys() == {3, 7, 11}
        for step, mean in value.items():
            std = scalars[f"stepsize_std/{chart['title']}"][step]
            assert (lower[step], upper[step]) == pytest.approx((mean - std, mean + std), rel=1e-6)


def test_edges_are_logged_of_the_layers_that_have_a_band(tmp_path):
    fit(tmp_path, Stack(), StepsizeMonitor(custom_scalars=["layers.1", "layers.1[12]"]))
    shown = ["layers.12", "layers.11", "layers.1"]
    assert layout_of(tmp_path)["stepsize_mean ± stepsize_std"] == shown
    edges = {tag for tag in read(tmp_path) if tag.startswith("z_stepsize_band/")}
    assert edges == {f"z_stepsize_band/{end}/{n}" for end in ("lower", "upper") for n in shown}


def test_a_glob_that_matches_no_layer_is_told_with_the_nearest(tmp_path):
    monitor = StepsizeMonitor(custom_scalars=["layers.0", "layer.12", "layers.*"])
    with pytest.warns(UserWarning, match="custom_scalars") as told:
        fit(tmp_path, Stack(), monitor)
    (message,) = [str(one.message) for one in told if "custom_scalars" in str(one.message)]
    assert "matches 'layer.12'" in message
    assert message.endswith("the nearest names are: layers.12, layers.2, layers.1")


def test_categories_of_an_earlier_version_give_way_and_those_of_users_stay(tmp_path):
    theirs = {
        "stepsize_mean": {"layers.0 … layers.3": ["Multiline", ["^stepsize_mean/layers.0$"]]},
        "stepsize_mean, mine": {"a": ["Multiline", ["^stepsize_mean/layers.0$"]]},
    }

    class Earlier(Stack):
        def on_train_start(self):
            self.logger.experiment.add_custom_scalars(theirs)

    fit(tmp_path, Earlier(), StepsizeMonitor())
    first, *others = layout_of(tmp_path)
    assert first == "stepsize_mean, mine"
    assert "stepsize_mean" not in others


def layout_of(folder, **options):
    """Return the titles that TensorBoard serves of a run, of categories and their charts."""
    logger = TensorBoardLogger(folder, name="", version="run", **options)
    layout = last_layout(logger)
    return {c.title: [chart.title for chart in c.chart] for c in layout.category}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("option", ["--load_fast=true", "--load_fast=false"])
def test_the_page_shows_no_point_of_a_resumed_run_twice(tmp_path, option):
    class Stops(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 10:
                raise RuntimeError("stopped")

    checkpoint = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=4, save_top_k=-1)
    callbacks = [StepsizeMonitor(every_n_steps=1), checkpoint]
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, Net(), *callbacks, Stops(), enable_checkpointing=True)
    age_events(tmp_path)
    path = tmp_path / "saved" / "step=8.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")
        fit(tmp_path, Net(), *callbacks, ckpt_path=path, enable_checkpointing=True)
    server = Server(tmp_path, option)
    try:
        tag = "stepsize_mean/head.weight"
        server.when(lambda runs: tag in runs.get("run", ()), "scalars/tags")
        points = server.when(lambda p: len(p) >= 12, "scalars/scalars", run="run", tag=tag)
        assert [step for _, step, _ in points] == list(range(12))
    finally:
        server.close()


MONITORS = [
    "stepsize_mean ± stepsize_std",
    "stepsize_mean, runs compared", "stepsize_std, runs compared",
    "stepsize_mean, layers compared", "stepsize_std, layers compared",
]  # fmt: skip


def test_several_optimizers_have_categories_of_their_own(tmp_path):
    fit(tmp_path, TwoOptimizers(["aida", "aida"], every=1), StepsizeMonitor())
    assert layout_of(tmp_path) == {
        f"{optimizer}/{title}": [f"{layer}.weight"]
        for optimizer, layer in (("Aida", "head"), ("Aida-1", "features"))
        for title in MONITORS
    }


def test_two_monitors_of_a_run_share_its_layout(tmp_path):
    monitors = [StepsizeMonitor("head.*", 3), StepsizeMonitor("features.*", 5, statistics="max")]
    fit(tmp_path, Net(), *monitors)
    assert layout_of(tmp_path) == {
        "stepsize_mean ± stepsize_std": ["head.bias", "head.weight"],
        "stepsize_mean, runs compared": ["head.weight", "head.bias"],
        "stepsize_std, runs compared": ["head.weight", "head.bias"],
        "stepsize_max, runs compared": ["features.weight", "features.bias"],
        "stepsize_mean, layers compared": ["head.weight … head.bias"],
        "stepsize_std, layers compared": ["head.weight … head.bias"],
        "stepsize_max, layers compared": ["features.weight … features.bias"],
    }


@pytest.mark.filterwarnings("ignore:The provided params to be froze.*:UserWarning")
def test_layers_that_join_in_later_are_added(tmp_path):
    class Finetuned(Net):
        def __init__(self):
            super().__init__()
            self.backbone, self.features = self.features, nn.Identity()

        def loss(self, batch):
            return self.head(self.backbone(batch[0]).tanh()).square().mean()

    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    fit(tmp_path, Finetuned(), StepsizeMonitor(), finetuning, max_epochs=2)
    layout = layout_of(tmp_path)
    assert layout["stepsize_mean ± stepsize_std"] == ["backbone.weight", "head.weight"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_layout_survives_resuming_and_is_not_doubled(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1)
    fit(tmp_path, Stack(), StepsizeMonitor(), checkpoint, enable_checkpointing=True)
    first = layout_of(tmp_path)
    for folder in (tmp_path, tmp_path / "elsewhere"):
        fit(
            folder,
            Stack(),
            StepsizeMonitor(),
            checkpoint,
            enable_checkpointing=True,
            ckpt_path=tmp_path / "saved" / "epoch=0.ckpt",
            max_epochs=2,
        )
        assert layout_of(folder) == first
        assert [title for title in first if "±" in title or title == "mine"] == [
            "mine", "stepsize_mean ± stepsize_std"
        ]  # fmt: skip


def test_a_prefix_of_the_logger_is_a_part_of_the_tags(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run", prefix="a.b")
    fit(tmp_path, Net(), StepsizeMonitor(), loggers=[logger])
    band, category, *_ = last_layout(logger).category
    (expression,) = category.chart[0].multiline.tag[:1]
    assert [t for t in read(tmp_path) if re.match(expression, t)] == [
        "a.b-stepsize_mean/features.weight"
    ]
    assert band.chart[0].margin.series[0].lower == "a.b-z_stepsize_band/lower/head.weight"


class Alike(Net):
    """Has a layer whose name is matched by another's when that is taken for an expression."""

    def __init__(self):
        super().__init__()
        self.head_weight = nn.Parameter(torch.ones(2, 2))

    def loss(self, batch):
        return super().loss(batch) + self.head_weight.square().sum()


def test_the_expression_of_a_line_finds_its_own_layer_alone(tmp_path):
    fit(tmp_path, Alike(), StepsizeMonitor(statistics="mean"))
    *_, category = last_layout(TensorBoardLogger(tmp_path, name="", version="run")).category
    tags = [tag for tag in read(tmp_path) if tag.startswith("stepsize")]
    found = [[t for t in tags if re.match(line, t)] for line in category.chart[0].multiline.tag]
    assert sorted(found) == [[tag] for tag in sorted(tags)]
    assert len(found) == 3


def test_the_ratios_of_the_second_moment_have_charts(tmp_path):
    fit(tmp_path, Net("adam"), StepsizeMonitor(statistics=["snr", "snr_rows"]))
    assert [*layout_of(tmp_path)] == [
        "snr, runs compared", "snr_rows, runs compared",
        "snr, layers compared", "snr_rows, layers compared",
    ]  # fmt: skip


def test_it_can_be_switched_off(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(custom_scalars=False))
    assert layout_of(tmp_path) == {}
    assert not any("band" in tag for tag in read(tmp_path))


class CountsLayouts(Callback):
    def on_train_start(self, trainer, module):
        self.written = []
        write = trainer.logger.experiment._get_file_writer().event_writer.add_event
        trainer.logger.experiment._get_file_writer().event_writer.add_event = lambda event: (
            self.written.extend(v.tag for v in event.summary.value),
            write(event),
        )


def test_it_is_written_once(tmp_path):
    counter = CountsLayouts()
    fit(tmp_path, Net(), StepsizeMonitor(every_n_steps=1), counter)
    assert counter.written.count("custom_scalars__config__") == 1
    assert counter.written.count("stepsize_mean/head.weight") == 12
