"""The layout of TensorBoard's Custom Scalars tab: the layers as lines of few charts."""

import re
from collections.abc import Iterable
from itertools import accumulate, chain, pairwise
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from tensorboard.plugins.custom_scalar import metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from aida_lightning._lightning import TensorBoardLogger
from aida_lightning.logs.events import read_folder
from aida_lightning.logs.tags import MARGINS, MEAN, STD
from aida_lightning.logs.writing import log_layout, tags_of

# The lines of a run have one colour and are told apart by their markers, of which there are few.
LINES_PER_CHART = 6
# The page loads all charts of a category at once when it is opened.
CHARTS_PER_CATEGORY = 12

T = TypeVar("T")
Path: TypeAlias = tuple[str, ...]

_OURS = re.compile(r"(?P<title>.+?)(, (runs|layers) compared)?(, layers \d+–\d+)?")

# All that the monitors of a run log, for its one layout.
_shown: WeakKeyDictionary[TensorBoardLogger, dict[Path, None]] = WeakKeyDictionary()


def show(logger: TensorBoardLogger, paths: Iterable[Path]) -> None:
    """Write a layout that has charts of all numbers logged, if some of them are new to it.

    Categories that someone else's layout has are kept, and come first.

    Args:
        logger: the logger.
        paths: the parts of the names of the numbers, as :func:`log_scalars` takes them.
    """
    shown = _shown.setdefault(logger, {})
    new = dict.fromkeys(path for path in paths if path not in shown)
    if not new:
        return
    shown.update(new)
    ours = build_layout(logger, [*shown])
    titles = {_title(logger, names) for names in _layers_by_names(shown)}
    theirs = [
        category
        for category in last_layout(logger).category
        if not ((match := _OURS.fullmatch(category.title)) and match["title"] in titles)
    ]
    log_layout(logger, Layout(category=[*theirs, *ours.category]))


def build_layout(logger: TensorBoardLogger, paths: Iterable[Path]) -> Layout:
    """Build the bands from mean - std to mean + std, and two views of each statistic.

    In one view each layer has a chart, whose colours are the runs. In the other the layers of a run
    share few charts. No category has more than ``CHARTS_PER_CATEGORY`` charts, and the first one
    alone is open.

    Args:
        logger: the logger, which makes tags of names.
        paths: the parts of the names of the numbers to show.
    """
    bands: list[Category] = []
    runs: list[Category] = []
    layers: list[Category] = []
    for names, members in _layers_by_names(paths).items():
        title = _title(logger, names)
        if names[-1] == MARGINS[0]:
            # The page shows margin charts in the reverse of their order.
            margins = [
                (chunk, [_margin_chart(logger, names[:-1], layer) for layer in reversed(chunk)])
                for chunk in _chunks(members, CHARTS_PER_CATEGORY)
            ]
            bands += _categories(title, margins)
        elif names[-1] != MARGINS[1]:
            single = [
                (chunk, [_line_chart(logger, names, [layer]) for layer in chunk])
                for chunk in _chunks(members, CHARTS_PER_CATEGORY)
            ]
            runs += _categories(f"{title}, runs compared", single)
            shared = [
                ([*chain(*chunks)], [_line_chart(logger, names, chunk) for chunk in chunks])
                for chunks in _chunks(_chunks(members, LINES_PER_CHART), CHARTS_PER_CATEGORY)
            ]
            layers += _categories(f"{title}, layers compared", shared)
    categories = [*bands, *runs, *layers]
    for category in categories[1:]:
        category.closed = True
    return Layout(category=categories)


def _layers_by_names(paths: Iterable[Path]) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for path in paths:
        found.setdefault(path[:-1], []).append(path[-1])
    return found


def _title(logger: TensorBoardLogger, names: Path) -> str:
    """Return the title of a statistic's categories, up to the comma."""
    last = f"{MEAN} ± {STD}" if names[-1] in MARGINS else names[-1]
    return logger.group_separator.join([*names[:-1], last])


def _categories(title: str, parts: list[tuple[list[str], list[Chart]]]) -> list[Category]:
    """Make a category of each part's charts, named by its layers' numbers if there are several."""
    if len(parts) == 1:
        return [Category(title=title, chart=parts[0][1])]
    ends = [*accumulate(len(layers) for layers, _ in parts)]
    return [
        Category(title=f"{title}, layers {end - len(layers) + 1}–{end}", chart=charts)
        for end, (layers, charts) in zip(ends, parts, strict=True)
    ]


def _line_chart(logger: TensorBoardLogger, names: Path, layers: list[str]) -> Chart:
    # Regular expressions, matched from a tag's start on: layers.1 would find layers.10 as well.
    tags = [f"^{re.escape(tag)}$" for tag in _tags(logger, [(*names, layer) for layer in layers])]
    title = layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}"
    return Chart(title=title, multiline=MultilineChartContent(tag=tags))


def _margin_chart(logger: TensorBoardLogger, optimizer: Path, layer: str) -> Chart:
    # Unlike those of lines these are plain tags, which TensorBoard's page escapes by itself.
    tags = _tags(logger, [(*optimizer, tag, layer) for tag in (MEAN, *MARGINS)])
    series = MarginChartContent.Series(**dict(zip(("value", "lower", "upper"), tags, strict=True)))
    return Chart(title=layer, margin=MarginChartContent(series=[series]))


def _tags(logger: TensorBoardLogger, paths: Iterable[Path]) -> list[str]:
    return tags_of(logger, [logger.group_separator.join(path) for path in paths])


def _chunks(items: list[T], most: int) -> list[list[T]]:
    """Divide a list into as few parts as can be of at most so many items, as evenly as can be."""
    count = -(-len(items) // most)
    edges = [index * len(items) // count for index in range(count + 1)]
    return [items[start:end] for start, end in pairwise(edges)]


def last_layout(logger: TensorBoardLogger) -> Layout:
    """Read the layout that TensorBoard shows of a run at present; an empty one if there is none."""
    logger.experiment.flush()
    layout = Layout()
    for event in read_folder(logger.log_dir):
        for value in event.summary.value:
            if value.tag == metadata.CONFIG_SUMMARY_TAG:
                layout = Layout.FromString(value.tensor.string_val[0])
    return layout
