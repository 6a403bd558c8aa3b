"""The figures are drawn from event files alone, of any run that had the monitor."""

import errno
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.commands import main
from aida_lightning.figures.draw import draw_figures
from aida_lightning.figures.heatmap import heatmap
from aida_lightning.figures.metric import metric_curves
from aida_lightning.figures.plotting import Look, optimizer_colors
from aida_lightning.figures.stepsizes import fig1, fig2, fig4, fig6
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.metric import Metric
from aida_lightning.logs.runs import read_monitored_runs, read_runs

STEPS_AN_EPOCH = 4


def write_run(
    folder: Path, layers: int = 11, level: float = 10.0, spread: float = 0.5, epochs: int | None = 2
) -> None:
    """Layer `n` has mean `level * n` and a std of `spread` times that, at every step."""
    with SummaryWriter(str(folder)) as writer:
        for step in range(STEPS_AN_EPOCH * (epochs or 1)):
            for layer in range(1, layers + 1):
                for name in (f"net.{layer}.weight", f"net.{layer}.bias"):
                    writer.add_scalar(f"stepsize_mean/{name}", level * layer, step)
                    writer.add_scalar(f"stepsize_std/{name}", spread * level * layer, step)
            if epochs is not None and step % STEPS_AN_EPOCH == STEPS_AN_EPOCH - 1:
                writer.add_scalar("epoch", step // STEPS_AN_EPOCH, step)


def panels(figure: Figure) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    return {
        axis.get_title(): [(line.get_xdata(), line.get_ydata()) for line in axis.get_lines()]
        for axis in figure.axes
        if axis.get_visible()
    }


def assert_is_a_picture(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) >= 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_figures_1_and_2_show_the_10_layers_closest_to_the_output(tmp_path):
    write_run(tmp_path / "Aida_K=2/seed_0")
    runs = read_monitored_runs([tmp_path])
    for draw, factor in ((fig1, 5.0), (fig2, 10.0)):
        curves = panels(draw(runs))["Aida K=2"]
        assert [y[0] for _, y in curves] == [factor * layer for layer in range(2, 12)]
        np.testing.assert_array_equal(curves[0][0], np.arange(1, 9) / STEPS_AN_EPOCH)


def test_figures_1_and_2_have_a_panel_an_optimizer_on_one_scale(tmp_path):
    for label in ("Aida", "AdaBelief", "Adam+", "A", "B"):
        write_run(tmp_path / label / "seed_0", layers=3)
    figure = fig2(read_monitored_runs([tmp_path]))
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["A", "AdaBelief", "Adam+", "Aida", "B"]
    assert len({axis.get_ylim() for axis in shown}) == 1


def test_figure_6_shows_layers_2_6_and_11_of_eleven(tmp_path):
    write_run(tmp_path / "Aida/seed_0")
    write_run(tmp_path / "Adam+/seed_0", level=1.0)
    shown = panels(fig6(read_monitored_runs([tmp_path])))
    assert list(shown) == ["layer 2: net.2", "layer 6: net.6", "layer 11: net.11"]
    assert [y[0] for _, y in shown["layer 6: net.6"]] == [6.0, 3.0, 60.0, 30.0]


@pytest.mark.parametrize(("layers", "shown"), [(1, [1]), (2, [1, 2]), (5, [1, 3, 5])])
def test_figure_6_takes_first_middle_and_last_of_fewer(tmp_path, layers, shown):
    write_run(tmp_path / "run", layers=layers)
    titles = list(panels(fig6(read_monitored_runs([tmp_path]))))
    assert titles == [f"layer {number}: net.{number}" for number in shown]


def test_seeds_are_averaged_where_they_have_points(tmp_path):
    write_run(tmp_path / "Aida/seed_0", layers=1, level=10.0, epochs=2)
    write_run(tmp_path / "Aida/seed_1", layers=1, level=20.0, epochs=1)
    ((_, y),) = panels(fig2(read_monitored_runs([tmp_path])))["Aida"]
    np.testing.assert_allclose(y, [15.0] * 4 + [10.0] * 4)


@pytest.mark.parametrize("draw", [fig1, fig2, fig4, fig6])
def test_a_single_reading_is_a_point(tmp_path, draw):
    with SummaryWriter(str(tmp_path / "one")) as writer:
        for name in ("mean", "std"):
            for step, value in enumerate((math.nan, 1.0)):
                writer.add_scalar(f"stepsize_{name}/a.weight", value, step)
    write_run(tmp_path / "several", layers=1)
    for run, points in (("one", {*"ox"} if draw is fig6 else {"o"}), ("several", {"", "None"})):
        lines = draw(read_monitored_runs([tmp_path / run])).axes[0].get_lines()
        assert {line.get_marker() for line in lines} <= points


def test_steps_are_the_axis_where_a_run_has_no_epochs(tmp_path):
    write_run(tmp_path / "run", layers=1, epochs=None)
    figure = fig2(read_monitored_runs([tmp_path]))
    assert figure.axes[0].get_xlabel() == "optimizer step"
    np.testing.assert_array_equal(panels(figure)["run"][0][0], range(STEPS_AN_EPOCH))


def test_the_axis_is_epochs_otherwise(tmp_path):
    write_run(tmp_path / "run", layers=1)
    axis = fig2(read_monitored_runs([tmp_path])).axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "mean of the adaptive stepsizes")


def test_layers_are_counted_in_weight_tensors(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for name in ("conv.weight", "conv.bias", "lstm.weight_ih_l0", "attention.in_proj_weight"):
            writer.add_scalar(f"stepsize_mean/{name}", 1.0, 0)
    titles = list(panels(fig6(read_monitored_runs([tmp_path]))))
    assert titles == [
        "layer 1: conv", "layer 2: lstm.weight_ih_l0", "layer 3: attention.in_proj_weight",
    ]  # fmt: skip


def test_parametrized_weights_are_counted_where_they_are_in_the_network(tmp_path):
    names = ["first.parametrizations.weight.original", "second.weight"]
    names += [f"third.parametrizations.weight.original{index}" for index in (0, 1)]  # weight_norm
    names += ["third.bias"]
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for level, name in enumerate(names):
            writer.add_scalar(f"stepsize_mean/{name}", level, 0)
    shown = panels(fig4(read_monitored_runs([tmp_path])))
    assert [*shown] == ["layer 1: first", "layer 2: second", "layer 3: third"]
    assert [lines[0][1].tolist() for lines in shown.values()] == [[0], [1], [3]]


def test_statistics_that_no_run_has_are_not_drawn(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("stepsize_min/a.weight", 1.0, 0)
    runs = read_monitored_runs([tmp_path])
    for figure, missing in ((fig1, "stepsize_std"), (fig2, "stepsize_mean"), (fig6, "stepsize_")):
        with pytest.raises(EventsError, match=rf"no run has {missing}.*, there are stepsize_min;"):
            figure(runs)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    write_run(tmp_path / "run", layers=1)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EventsError, match=r"output: .*file"):
        draw_figures([tmp_path], tmp_path / "file")


def test_a_picture_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    def denied(self, path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    write_run(tmp_path, layers=1)
    monkeypatch.setattr(Figure, "savefig", denied)
    assert main(["figures", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"error: output: [Errno 13] Permission denied: '{tmp_path / 'fig1.png'}'" in error


def test_all_layers_count_where_none_is_called_a_weight(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for name in ("alpha", "beta"):
            writer.add_scalar(f"stepsize_mean/{name}", 1.0, 0)
    titles = list(panels(fig6(read_monitored_runs([tmp_path]))))
    assert titles == ["layer 1: alpha", "layer 2: beta"]


def test_the_papers_optimizers_keep_their_colours_and_others_get_their_own():
    labels = ["Aida", "Aida K=1", "Aida K=2", "AdaBelief", "Adam+"]
    labels += [f"optimizer {number}" for number in range(7)]
    colors = optimizer_colors(labels)
    assert len(set(colors.values())) == len(labels)
    assert optimizer_colors(["Adam+", "new"])["Adam+"] == colors["Adam+"]


@pytest.mark.parametrize(
    "kinds",
    [
        [{"layers": 1}],
        [{"layers": 2, "spread": 0.0}],
        [
            {"layers": 1, "spread": 0.0},
            {"layers": 3},
            {"layers": 11, "epochs": None},
            {"level": math.nan},
        ],
    ],
    ids=["one layer", "zero throughout", "all kinds together"],
)
def test_any_runs_can_be_drawn(tmp_path, kinds):
    for number, kind in enumerate(kinds):
        write_run(tmp_path / f"optimizer {number}", **kind)
    paths = draw_figures([tmp_path], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["fig1.png", "fig2.png", "fig6.png"]
    for path in paths:
        assert_is_a_picture(path)


def test_twelve_optimizers_can_be_drawn(tmp_path):
    for number in range(12):
        write_run(tmp_path / f"optimizer {number}", layers=2, level=number + 1.0)
    fig1(read_monitored_runs([tmp_path])).savefig(tmp_path / "fig1.png")
    assert_is_a_picture(tmp_path / "fig1.png")


def test_figure_4_shows_the_means_alone(tmp_path):
    write_run(tmp_path / "AdamL/seed_0")
    shown = panels(fig4(read_monitored_runs([tmp_path])))
    assert list(shown) == ["layer 2: net.2", "layer 6: net.6", "layer 11: net.11"]
    assert [y[0] for _, y in shown["layer 6: net.6"]] == [60.0]


@pytest.mark.parametrize(
    "layers",
    [["3", "5"], [3, 5], ["net.3.weight", "*.5.weight"], ["net.3", "net.5"], ["net.[35]"]],
)
def test_layers_are_chosen_by_number_name_or_glob_as_they_are_shown(tmp_path, layers):
    write_run(tmp_path / "run")
    runs = read_monitored_runs([tmp_path])
    assert list(panels(fig6(runs, Look(layers)))) == ["layer 3: net.3", "layer 5: net.5"]
    assert len(panels(fig2(runs, Look(layers)))["run"]) == 2


def test_a_layer_called_by_a_number_has_the_number_of_its_place_first(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for name in ("0.weight", "2.weight", "blocks[1].weight"):
            writer.add_scalar(f"stepsize_mean/{name}", 1.0, 0)
    runs = read_monitored_runs([tmp_path])
    for wanted, title in (
        ("2", "layer 2: 2"), ("0", "layer 1: 0"), ("blocks[1]", "layer 3: blocks[1]"),
    ):  # fmt: skip
        assert [*panels(fig4(runs, Look([wanted])))] == [title]


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("nets.11", "net.11, net.1, net.10"),
        ("net.12.weight", "net.2, net.1, net.11"),
        ("77", "net.7"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(tmp_path, capsys, wanted, nearest):
    write_run(tmp_path / "run")
    for command in ("figures", "summary"):
        assert main([command, str(tmp_path), "--layers", "1", wanted]) == 2
        message = capsys.readouterr().err
        assert f"layers: '{wanted}' is none of the layers 1 to 22, nor does it match" in message
        assert f"the nearest are: {nearest}" in message


def test_runs_of_several_folders_are_compared_and_chosen_by_label(tmp_path):
    for name in ("one/Aida/seed_0", "two/Adam+/seed_0", "two/SGD/seed_0"):
        write_run(tmp_path / name, layers=1)
    folders = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(EventsError, match="'x' matches none of Aida, Adam\\+, SGD"):
        draw_figures(folders, tmp_path / "out", optimizers=["x"])
    paths = draw_figures(
        folders, tmp_path / "out", ["fig6"], ["svg", "pdf"], optimizers=["ad*", "aida"]
    )
    assert [path.name for path in paths] == ["fig6.svg", "fig6.pdf"]
    text = paths[0].read_text()
    assert ">Aida</text>" in text
    assert ">Adam+</text>" in text
    assert ">SGD</text>" not in text
    assert paths[1].read_bytes().startswith(b"%PDF")


def test_axes_are_logarithmic_on_demand(tmp_path):
    write_run(tmp_path / "run", layers=1)
    runs = read_monitored_runs([tmp_path])
    axis = fig6(runs, Look(log_x=True, log_y=True)).axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert fig6(runs, Look(log_y=False)).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("level", [math.nan, math.inf, 0.0])
def test_an_axis_without_positive_values_is_linear_whatever_is_asked_for(tmp_path, level):
    write_run(tmp_path / "Aida/seed_0", level=level)
    figure = fig1(read_monitored_runs([tmp_path]), Look(log_x=True, log_y=True))
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].get_yscale() == "linear"


def test_smoothing_is_tensorboards(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step, value in enumerate([1.0, 1.0, 4.0]):
            writer.add_scalar("stepsize_mean/w", value, step)
    ((_, y),) = panels(fig2(read_monitored_runs([tmp_path]), Look(smooth=0.5)))["run"]
    np.testing.assert_allclose(y, [1.0, 1.0, (0.5 * 4 + 0.25 + 0.125) / 0.875])


def write_accuracy(folder: Path, values: list[float]) -> None:
    with SummaryWriter(str(folder)) as writer:
        for epoch, value in enumerate(values):
            writer.add_scalar("val_accuracy", value, 10 * epoch + 9)
            writer.add_scalar("epoch", epoch, 10 * epoch + 9)


def test_a_metric_is_drawn_over_the_epochs_with_the_spread_of_its_seeds(tmp_path):
    write_accuracy(tmp_path / "vgg/Aida/seed_0", [0.5, 0.7])
    write_accuracy(tmp_path / "vgg/Aida/seed_1", [0.6, 0.9])
    write_accuracy(tmp_path / "resnet/SGD/seed_0", [0.4, 0.5])
    groups = {name: read_runs([tmp_path / name]) for name in ("vgg", "resnet")}
    figure = metric_curves(groups, Metric())
    shown = panels(figure)
    ((x, y),) = shown["vgg"]
    np.testing.assert_allclose(x, [1, 2])
    np.testing.assert_allclose(y, [55, 80])
    (band,) = figure.axes[0].collections
    corners = {tuple(np.round(v, 3).tolist()) for v in band.get_paths()[0].vertices}
    assert {(1, 50), (1, 60), (2, 70), (2, 90)} <= corners
    assert figure.axes[0].get_ylabel() == "validation accuracy in %"
    with pytest.raises(EventsError, match="'fid'"):
        metric_curves(groups, Metric("fid"))


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_the_legend_is_no_wider_than_the_figure(tmp_path, kinds):
    for panel in ("vgg", "resnet"):
        for number in range(kinds):
            name = f"AdaBelief eps=1e-08 lr=0.00{number}"
            write_accuracy(tmp_path / panel / name, [0.5, 0.7])
            write_run(tmp_path / panel / name, layers=1)
    groups = {name: read_runs([tmp_path / name]) for name in ("vgg", "resnet")}
    for figure in (metric_curves(groups, Metric()), fig6(read_monitored_runs([tmp_path / "vgg"]))):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert {f"AdaBelief eps=1e-08 lr=0.00{number}" for number in range(kinds)} <= {
            text.get_text() for text in legend.get_texts()
        }
        assert 0 <= legend.get_window_extent().x0
        assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_folders_of_one_name_have_a_panel_each(tmp_path):
    for name, value in (("one", 0.5), ("two", 0.6)):
        write_accuracy(tmp_path / name / "runs/Aida/seed_0", [value])
    folders = [tmp_path / "one/runs", tmp_path / "two/runs", tmp_path / "one/../one/runs"]
    (path,) = draw_figures(folders, tmp_path / "out", ["fig3"], ["svg"])
    titles = re.findall(r">(\w+/runs)</text>", path.read_text())
    assert titles == ["one/runs", "two/runs"]


def test_figures_1_and_2_show_all_layers_of_a_deeper_network(tmp_path):
    write_run(tmp_path / "Aida/seed_0", layers=30)
    figure = fig2(read_monitored_runs([tmp_path]))
    curves = panels(figure)["Aida"]
    assert [y[0] for _, y in curves] == [10.0 * layer for layer in range(1, 31)]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 12
    assert (names[0], names[-1]) == ("1  net.1", "30  net.30")


def pixels_of(figure: Figure, color: tuple[float, float, float]) -> int:
    """Count the pixels of a colour in the panels."""
    for legend in figure.legends:
        legend.remove()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    return int((np.abs(shown - np.round(255 * np.array(color))).max(axis=-1) < 3).sum())


@pytest.mark.parametrize("draw", [fig1, fig2, fig4, fig6])
def test_two_runs_of_one_label_and_equal_numbers_are_both_seen(tmp_path, draw):
    for folder in ("one", "two"):
        write_run(tmp_path / folder / "Aida/seed_0", layers=1)
    runs = read_monitored_runs([tmp_path / "one", tmp_path / "two"])
    colors = optimizer_colors(["one/Aida", "two/Aida"]).values()
    figure = draw(runs)
    seen = [pixels_of(figure, color) for color in colors]
    assert min(seen) > 0.4 * max(seen) > 40


def test_two_metrics_that_are_equal_are_both_seen(tmp_path):
    for name in ("Aida", "SGD"):
        with SummaryWriter(str(tmp_path / name / "seed_0")) as writer:
            for step in range(5):
                writer.add_scalar("val_accuracy", 0.1 * step, step)
    figure = metric_curves({"": read_runs([tmp_path])}, Metric())
    seen = [pixels_of(figure, color) for color in optimizer_colors(["Aida", "SGD"]).values()]
    assert min(seen) > 0.4 * max(seen) > 40


def test_of_four_runs_the_two_that_coincide_alone_take_turns(tmp_path):
    for label, level in {"A": 10.0, "B": 20.0, "C": 10.0001, "D": 30.0}.items():
        write_run(tmp_path / label / "seed_0", layers=1, level=level)
    figure = fig4(read_monitored_runs([tmp_path]))
    a, b, c, d = figure.axes[0].get_lines()
    assert [line.is_dashed() for line in (a, b, c, d)] == [True, False, True, False]
    (handles,) = [legend.get_lines() for legend in figure.legends]
    assert not any(line.is_dashed() for line in handles)


def test_equal_layers_of_a_run_take_turns(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(3):
            for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
                writer.add_scalar(f"stepsize_mean/{name}.weight", value, step)
    lines = fig2(read_monitored_runs([tmp_path])).axes[0].get_lines()
    assert [line.is_dashed() for line in lines] == [True, True, False]


def test_of_points_in_one_place_each_is_seen(tmp_path):
    for label in ("A", "B", "C"):
        with SummaryWriter(str(tmp_path / label / "seed_0")) as writer:
            writer.add_scalar("stepsize_mean/a.weight", 1.0, 0)
    lines = fig4(read_monitored_runs([tmp_path])).axes[0].get_lines()
    sizes = [line.get_markersize() for line in lines]  # the first is below the others
    assert sizes[0] > sizes[1] + 2 > sizes[2] + 4


def test_text_in_vector_graphics_is_text(tmp_path):
    write_run(tmp_path / "Aida/seed_0", layers=2)
    before = dict(rcParams)
    svg, pdf = draw_figures([tmp_path], tmp_path, ["fig6"], ["svg", "pdf"])
    assert ">layer 1: net.1</text>" in svg.read_text(encoding="utf-8")
    assert b"/CIDFontType2" in pdf.read_bytes()  # TrueType
    assert b"/Type3" not in pdf.read_bytes()  # shapes of letters
    assert dict(rcParams) == before


@pytest.mark.parametrize("draw", [fig1, fig4, heatmap])
def test_a_long_label_is_folded_into_the_figure(tmp_path, draw):
    label = "an optimizer of many options lr=0.001 betas=(0.9,0.999) eps=1e-08 " * 2
    for name in ("Aida", label.strip().replace(" ", "_")):
        write_run(tmp_path / name / "seed_0", layers=3)
    figure = draw(read_monitored_runs([tmp_path]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    titles = [axis.title.get_window_extent() for axis in figure.axes[:2]]
    assert not titles[0].overlaps(titles[1])
    for box in [*titles, *(legend.get_window_extent() for legend in figure.legends)]:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
