"""Histograms, and Figures 1 and 2, in the event files."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import Net, TwoOptimizers, fit

from aida_lightning import Aida, stepsize
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.callbacks._pictures import (
    HISTOGRAM_MEASURES,
    MOST_STEPS,
    History,
    log_histograms,
)
from aida_lightning.figures import stepsizes as stepsizes_figures
from aida_lightning.logs.pictures import WRITERS, Writer
from aida_lightning.measuring._layer import MEASURES, LayerStep, to_host
from aida_lightning.measuring._statistics import Point

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def events(folder):
    accumulator = EventAccumulator(
        str(folder / "run"), size_guidance={"images": 0, "histograms": 0}
    )
    accumulator.Reload()
    return accumulator


class Drawn(Callback):
    """Keeps the stepsizes of each layer at each step."""

    def __init__(self):
        self.at = {}

    def on_train_batch_end(self, trainer, module, *args):
        (optimizer,) = trainer.optimizers
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for name, param in module.named_parameters():
            s = stepsize(optimizer, optimizer.param_groups[0], optimizer.state[param])
            self.at[name, step] = s.double().flatten().numpy()


@pytest.mark.parametrize("name", ["aida", "laida"])
def test_histograms_have_every_stepsize_in_its_bin(tmp_path, name):
    stepsizes = Drawn()
    fit(tmp_path, Net(name), StepsizeMonitor(histograms=True), stepsizes)
    accumulator = events(tmp_path)
    assert sorted(accumulator.Tags()["histograms"]) == [
        "stepsizes/features.weight",
        "stepsizes/head.weight",
    ]
    for layer in ("features.weight", "head.weight"):
        logged = accumulator.Histograms(f"stepsizes/{layer}")
        assert [event.step for event in logged] == [4, 9]
        for event in logged:
            expected, found = stepsizes.at[layer, event.step], event.histogram_value
            assert found.num == sum(found.bucket) == len(expected)
            assert found.sum == pytest.approx(expected.sum())
            assert found.sum_squares == pytest.approx(np.square(expected).sum())
            assert found.bucket_limit[-1] == found.max
            if expected.max() < 1.001 * expected.min():  # one value
                assert found.bucket_limit == [found.min]
                assert expected == pytest.approx(found.min, rel=1e-3)
            else:
                assert (found.min, found.max) == pytest.approx((expected.min(), expected.max()))
                below = np.searchsorted(np.sort(expected), found.bucket_limit, side="right")
                assert np.abs(np.cumsum(found.bucket) - below).max() <= 1  # an element at an edge


def histogram(stepsizes, logger):
    """Log a layer's histogram to a logger as the monitor does."""
    layer = LayerStep(None, {}, {}, None, None, 0.0)
    layer.__dict__["stepsizes"] = torch.as_tensor(stepsizes)
    (numbers,) = to_host([{name: MEASURES[name].take(layer) for name in HISTOGRAM_MEASURES}])
    log_histograms(logger, [Point("", "layer", numbers, {})], 0)


@pytest.fixture
def logged(monkeypatch):
    """Give a function from stepsizes to the histogram that a logger of another kind is given."""
    found = {}

    class Takes(CSVLogger):
        pass

    monkeypatch.setitem(
        WRITERS, Takes, Writer(histograms=lambda logger, named, step: found.update(named))
    )
    return lambda stepsizes: histogram(stepsizes, Takes("")) or found["stepsizes/layer"]


CEILING = 316.22775
GENERATOR = torch.Generator().manual_seed(0)
NORMAL = torch.randn(20_000, generator=GENERATOR)
KINDS = {
    "at the ceiling or below": torch.where(NORMAL > -0.5, CEILING, CEILING + 50 * NORMAL),
    "over seven decades": (3 * NORMAL).exp(),
    "nearly alike": 100 + 0.2 * NORMAL,
    "gaps": torch.tensor([1.0, 1.0, 30.0, 31.0, 1e8]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bins_grow_with_the_stepsizes_and_count_each_one(logged, kind):
    stepsizes = KINDS[kind].double().sort().values.numpy()
    found = logged(KINDS[kind])
    edges, counts = np.array(found.edges), np.array(found.counts)
    low, high = stepsizes[[0, -1]]
    assert sum(counts) == len(stepsizes)
    assert edges[[0, -1]] == pytest.approx([low, high])
    # float32 tells elements at an edge from others no better
    below = np.searchsorted(stepsizes, edges[1:], side="right")
    assert np.abs(np.cumsum(counts) - below).max() <= 2
    # With elements in it a bin is a small part of the range of magnitudes, however wide that is.
    widths = np.log(edges[1:] / edges[:-1])
    assert widths[counts > 0].max() <= max(np.log(high / low) / 128, 2e-3) * (1 + 1e-9)
    assert widths[:-1].min() >= 1e-3
    assert not ((counts[1:] == 0) & (counts[:-1] == 0)).any()


@pytest.mark.parametrize("spread", [0.0, 2e-6, 5e-4])
def test_stepsizes_that_are_alike_but_for_rounding_are_one_peak(tmp_path, logged, spread):
    stepsizes = CEILING * (1 - spread * torch.rand(1000, generator=GENERATOR))
    found = logged(stepsizes)
    assert found.counts == [1000]
    low, high = found.edges
    assert low < stepsizes.min() <= stepsizes.max() < high < 1.002 * low
    board = TensorBoardLogger(tmp_path, name="", version="run")
    histogram(stepsizes, board)
    board.finalize("success")
    (event,) = events(tmp_path).Histograms("stepsizes/layer")
    peak = event.histogram_value
    # TensorBoard draws one of no width as a peak; ticks between two that are near would collide.
    assert (peak.min, peak.max, peak.bucket_limit, peak.bucket) == (
        *(2 * [float(f"{stepsizes.mean():.4g}")]),
        [peak.max],
        [1000],
    )


def test_stepsizes_of_which_one_is_not_positive_have_no_histogram(tmp_path, logged):
    with pytest.raises(KeyError):
        logged([0.0, 1.0])


@pytest.mark.parametrize("stepsizes", [[1e-200, 1e150], [1e160, 1e160]])
def test_stepsizes_whose_ratio_or_square_overflows_have_a_histogram(tmp_path, logged, stepsizes):
    stepsizes = torch.tensor(stepsizes, dtype=torch.float64)
    assert sum(logged(stepsizes).counts) == 2
    board = TensorBoardLogger(tmp_path, name="", version="run")
    histogram(stepsizes, board)
    board.finalize("success")
    (event,) = events(tmp_path).Histograms("stepsizes/layer")
    assert event.histogram_value.num == 2


def test_figures_are_drawn_at_the_end_of_each_epoch(tmp_path):
    monitor = StepsizeMonitor(figures=True, every_n_steps=2)
    fit(tmp_path, TwoOptimizers(["aida", "aida"], every=1), monitor, max_epochs=2)
    accumulator = events(tmp_path)
    assert sorted(accumulator.Tags()["images"]) == [
        "stepsizes/heatmap", "stepsizes/mean", "stepsizes/std"
    ]  # fmt: skip
    for tag in ("stepsizes/mean", "stepsizes/std", "stepsizes/heatmap"):
        images = accumulator.Images(tag)
        assert [image.step for image in images] == [11, 23]
        pictures = [
            np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) for image in images
        ]
        assert all(picture.shape[0] > 300 and picture.std() > 5 for picture in pictures)
        assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


def test_figures_show_what_was_logged(tmp_path, monkeypatch):
    drawn = []

    def fig(runs, *args):
        from matplotlib.figure import Figure

        drawn.append(runs)
        return Figure()

    monkeypatch.setattr("aida_lightning.figures.stepsizes.fig1", fig)
    monkeypatch.setattr("aida_lightning.figures.stepsizes.fig2", fig)
    fit(tmp_path, Net(), StepsizeMonitor(figures=True, logging_interval="epoch"), max_epochs=3)
    assert len(drawn) == 6
    (run,) = drawn[-1]
    assert run.label == "Aida"
    assert (run.epoch.steps.tolist(), run.epoch.values.tolist()) == ([11, 23, 35], [0, 1, 2])
    accumulator = events(tmp_path)
    for tag in ("stepsize_mean", "stepsize_std"):
        assert [*run.statistics[tag]] == ["features.weight", "head.weight"]
        for layer, curve in run.statistics[tag].items():
            logged = accumulator.Scalars(f"{tag}/{layer}")
            assert curve.steps.tolist() == [event.step for event in logged]
            assert curve.values.tolist() == pytest.approx([event.value for event in logged])


def test_a_long_history_keeps_evenly_spaced_steps():
    history = History()
    for step in range(5 * MOST_STEPS):
        history.add([Point("", "layer", {"mean": step, "variance": 4.0}, {})], step, step // 10)
    assert MOST_STEPS // 2 <= len(history.steps) < MOST_STEPS
    assert {b - a for a, b in pairwise(history.steps)} == {8}
    assert [m["", "layer"] for m in history.moments] == [(step, 2.0) for step in history.steps]
    assert history.epochs == [step // 10 for step in history.steps]


def test_stepsizes_that_are_not_finite_have_no_histogram(tmp_path):
    module = Net("adam", eps=0.0)
    module.features.weight.register_hook(torch.zeros_like)  # 1 / sqrt(0)
    monitor = StepsizeMonitor(every_n_steps=1, histograms=True, health=False)
    fit(tmp_path, module, monitor, max_steps=1)
    assert events(tmp_path).Tags()["histograms"] == ["stepsizes/head.weight"]


def test_a_fast_run_of_the_users_script_is_none_the_worse(tmp_path):
    monitor = StepsizeMonitor(histograms=True, figures=True)
    fit(tmp_path, Net(), monitor, fast_dev_run=True)  # puts a DummyLogger in the logger's place


def test_an_epoch_of_which_nothing_was_sampled_has_no_figures(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(figures=True, every_n_steps=20), max_epochs=2)
    images = events(tmp_path).Images("stepsizes/mean")  # an epoch has 12 steps
    assert [image.step for image in images] == [23]


def test_optimizers_of_one_class_are_titled_by_the_options_that_differ(tmp_path, monkeypatch):
    class Different(TwoOptimizers):
        def configure_optimizers(self):
            return [Aida(self.head.parameters(), k=1), Aida(self.features.parameters(), k=2)]

    titles = set()
    draw = stepsizes_figures.fig1
    monkeypatch.setattr(
        stepsizes_figures, "fig1", lambda runs: titles.update(r.label for r in runs) or draw(runs)
    )
    fit(tmp_path, Different(["aida", "aida"], every=1), StepsizeMonitor(figures=True))
    assert titles == {"Aida k=1", "Aida k=2"}
