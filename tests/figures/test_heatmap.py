"""The heatmap has a row per layer, a column per point, and a logarithmic scale per statistic."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.commands import main
from aida_lightning.figures.heatmap import heatmap
from aida_lightning.figures.plotting import Look
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import read_monitored_runs


def write(folder, layers, spread=0.5, steps=(0, 10, 20), start=0):
    """Layer `n` has mean `n * (1 + step)` and a std of `spread` times that."""
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            for n in range(start + 1, layers + 1):
                mean = float(n * (1 + step))
                writer.add_scalar(f"stepsize_mean/net.{n}.weight", mean, step)
                writer.add_scalar(f"stepsize_std/net.{n}.weight", spread * mean, step)


def grids(figure: Figure):
    """The colour grids of the panels, row by row."""
    return [axis.collections[0] for axis in figure.axes if axis.get_label() != "<colorbar>"]


def test_rows_are_layers_columns_are_points_and_colours_their_values(tmp_path):
    write(tmp_path / "Aida/seed_0", 40)
    mean, std, ratio = grids(heatmap(read_monitored_runs([tmp_path])))
    expected = np.outer(np.arange(1, 41), [1, 11, 21])
    assert mean.get_array().shape == (40, 3)
    np.testing.assert_allclose(mean.get_array(), expected)
    np.testing.assert_allclose(std.get_array(), expected / 2)
    np.testing.assert_allclose(ratio.get_array(), np.full((40, 3), 0.5))
    assert isinstance(mean.norm, LogNorm)
    assert (mean.norm.vmin, mean.norm.vmax) == (1, 840)


def test_optimizers_share_a_rows_scale_and_seeds_are_averaged(tmp_path):
    write(tmp_path / "Aida/seed_0", 2, spread=0.5)
    write(tmp_path / "Aida/seed_1", 2, spread=1.5)
    write(tmp_path / "Adam/seed_0", 2, spread=4.0)
    figure = heatmap(read_monitored_runs([tmp_path]))
    _, _, adam_std, aida_std, *_ = grids(figure)
    np.testing.assert_allclose(aida_std.get_array()[:, 0], [1, 2])
    np.testing.assert_allclose(adam_std.get_array()[:, 0], [4, 8])
    assert aida_std.norm.vmin == adam_std.norm.vmin == 1
    assert aida_std.norm.vmax == adam_std.norm.vmax == 2 * 21 * 4
    assert [axis.get_title() for axis in figure.axes[:2]] == ["Adam", "Aida"]


def test_a_layer_that_joins_late_and_a_deviation_of_zero_are_left_out(tmp_path):
    write(tmp_path / "run", 1, spread=0.0)
    write(tmp_path / "run", 2, spread=0.0, steps=(20,), start=1)
    figure = heatmap(read_monitored_runs([tmp_path]))
    means = figure.axes[0].collections[0].get_array()
    assert means.mask.tolist() == [[False, False, False], [True, True, False]]
    texts = [text.get_text() for axis in figure.axes[:3] for text in axis.texts]
    assert texts == ["no standard deviation above 0", "no standard deviation / mean above 0"]


def test_layers_are_named_with_few_ticks_and_can_be_chosen(tmp_path):
    write(tmp_path / "run", 300, steps=(0,))
    runs = read_monitored_runs([tmp_path])
    labels = [label.get_text() for label in heatmap(runs).axes[0].get_yticklabels()]
    assert len(labels) == 20
    assert (labels[0], labels[-1]) == ("1  net.1", "300  net.300")
    chosen = heatmap(runs, Look(layers=["net.7.weight", "9"])).axes[0].get_yticklabels()
    assert [label.get_text() for label in chosen] == ["7  net.7", "9  net.9"]


def test_runs_without_stepsizes_are_refused(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("update_ratio/net.1.weight", 1.0, 0)
    with pytest.raises(EventsError, match="no run has adaptive stepsizes"):
        heatmap(read_monitored_runs([tmp_path]))


def test_the_command_draws_it(tmp_path):
    write(tmp_path / "logs/run", 3)
    command = ["figures", str(tmp_path / "logs"), "--figures", "heatmap", "--formats", "svg"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "<image" in (tmp_path / "out/heatmap.svg").read_text()  # not a path per cell
