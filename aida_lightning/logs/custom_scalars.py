"""The layout of TensorBoard's Custom Scalars tab, which shows the layers as lines in few charts."""

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

# The lines of a run share one colour and differ only in their markers, of which there are few.
LINES_PER_CHART = 6
# The page loads all charts of a category at once when it is opened.
CHARTS_PER_CATEGORY = 12

T = TypeVar("T")
Path: TypeAlias = tuple[str, ...]

_OURS = re.compile(r"(?P<title>.+?)(, (runs|layers) compared)?(, layers \d+–\d+)?")

# The paths that all monitors of a run have logged, because a run has a single layout.
_shown: WeakKeyDictionary[TensorBoardLogger, dict[Path, None]] = WeakKeyDictionary()


def show(logger: TensorBoardLogger, paths: Iterable[Path]) -> None:
    """Write a layout with charts of all logged numbers, if the layout lacks some of them.

    Categories of someone else's layout are kept and come first.

    Args:
        logger: the logger.
        paths: parts of the names of the numbers, as :func:`log_scalars` accepts them.
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

    In one view, each layer has a chart, whose colours are the runs. In the other, the layers of a
    run share a few charts. No category has more than ``CHARTS_PER_CATEGORY`` charts, and only the
    first one is open.

    Args:
        logger: logger that turns names into tags.
        paths: parts of the names of the numbers to show.
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
    """Make one category per part, with its layers' numbers in the title if there are several."""
    if len(parts) == 1:
        return [Category(title=title, chart=parts[0][1])]
    ends = [*accumulate(len(layers) for layers, _ in parts)]
    return [
        Category(title=f"{title}, layers {end - len(layers) + 1}–{end}", chart=charts)
        for end, (layers, charts) in zip(ends, parts, strict=True)
    ]


def _line_chart(logger: TensorBoardLogger, names: Path, layers: list[str]) -> Chart:
    # TensorBoard matches regular expressions at a tag's start: layers.1 would match layers.10, too.
    tags = [f"^{re.escape(tag)}$" for tag in _tags(logger, [(*names, layer) for layer in layers])]
    title = layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}"
    return Chart(title=title, multiline=MultilineChartContent(tag=tags))


def _margin_chart(logger: TensorBoardLogger, optimizer: Path, layer: str) -> Chart:
    # Unlike line charts, margin charts take plain tags, which TensorBoard's page escapes itself.
    tags = _tags(logger, [(*optimizer, tag, layer) for tag in (MEAN, *MARGINS)])
    series = MarginChartContent.Series(**dict(zip(("value", "lower", "upper"), tags, strict=True)))
    return Chart(title=layer, margin=MarginChartContent(series=[series]))


def _tags(logger: TensorBoardLogger, paths: Iterable[Path]) -> list[str]:
    return tags_of(logger, [logger.group_separator.join(path) for path in paths])


def _chunks(items: list[T], most: int) -> list[list[T]]:
    """Divide a list as evenly as possible into the fewest parts of at most ``most`` items."""
    count = -(-len(items) // most)
    edges = [index * len(items) // count for index in range(count + 1)]
    return [items[start:end] for start, end in pairwise(edges)]


def last_layout(logger: TensorBoardLogger) -> Layout:
    """Read the layout that TensorBoard currently shows for a run, or an empty one without any."""
    logger.experiment.flush()
    layout = Layout()
    for event in read_folder(logger.log_dir):
        for value in event.summary.value:
            if value.tag == metadata.CONFIG_SUMMARY_TAG:
                layout = Layout.FromString(value.tensor.string_val[0])
    return layout
