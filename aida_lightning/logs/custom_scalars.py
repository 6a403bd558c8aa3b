"""The layout of TensorBoard's Custom Scalars tab: the layers as lines of few charts."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeAlias
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
LINES_A_CHART = 6
# A category with more charts starts closed, for those that are open are all loaded.
OPEN_CHARTS = 12

Path: TypeAlias = tuple[str, ...]

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
    titles = {category.title for category in ours.category}
    theirs = [c for c in last_layout(logger).category if c.title not in titles]
    log_layout(logger, Layout(category=[*theirs, *ours.category]))


def build_layout(logger: TensorBoardLogger, paths: Iterable[Path]) -> Layout:
    """Build one category per statistic, and one of the margins from mean - std to mean + std.

    Args:
        logger: the logger, which makes tags of names.
        paths: the parts of the names of the numbers to show.
    """
    layers: dict[Path, list[str]] = {}
    for path in paths:
        layers.setdefault(path[:-1], []).append(path[-1])
    categories = []
    for names, members in layers.items():
        title = logger.group_separator.join(names)
        if names[-1] == MARGINS[0]:
            title = logger.group_separator.join([*names[:-1], f"{MEAN} ± {STD}"])
            charts = [_margin_chart(logger, names[:-1], layer) for layer in members]
        elif names[-1] != MARGINS[1]:
            charts = [_line_chart(logger, names, chunk) for chunk in _chunks(members)]
        else:
            continue
        categories.append(Category(title=title, chart=charts, closed=len(charts) > OPEN_CHARTS))
    return Layout(category=categories)


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


def _chunks(layers: list[str]) -> list[list[str]]:
    """Divide layers among as few charts as can be, as evenly as can be."""
    count = -(-len(layers) // LINES_A_CHART)
    edges = [index * len(layers) // count for index in range(count + 1)]
    return [layers[start:end] for start, end in pairwise(edges)]


def last_layout(logger: TensorBoardLogger) -> Layout:
    """Read the layout that TensorBoard shows of a run at present; an empty one if there is none."""
    logger.experiment.flush()
    layout = Layout()
    for event in read_folder(logger.log_dir):
        for value in event.summary.value:
            if value.tag == metadata.CONFIG_SUMMARY_TAG:
                layout = Layout.FromString(value.tensor.string_val[0])
    return layout
