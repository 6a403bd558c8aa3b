"""TensorBoard's real page in a headless Chromium; skipped where there is none, or no Selenium."""

import time
from itertools import pairwise

import pytest
from chromium import chromium, needs_chromium
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard_server import Server

from aida_lightning.callbacks._bands import Bands
from aida_lightning.callbacks._pictures import log_histograms
from aida_lightning.logs.custom_scalars import show
from aida_lightning.logs.writing import log_scalars
from aida_lightning.measuring._statistics import Point, scalars_of

pytestmark = needs_chromium
# All elements of a name, in the page's order, through the shadow roots of its components.
FIND = """
const found = [];
const visit = (root) => {
  for (const element of root.querySelectorAll('*')) {
    if (element.tagName.toLowerCase() === arguments[0]) found.push(element);
    if (element.shadowRoot) visit(element.shadowRoot);
  }
};
visit(document);
"""


def at_the_ceiling(step):
    """Return a point of stepsizes that differ by what is rounded, more so at later steps."""
    low, high = 316.22770, 316.22775 + step * 3e-5
    numbers = {"min": low, "max": high, "mean": high, "variance": 0.0, "histogram": [1] * 128}
    return Point("", "layer", numbers, {})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Open the Custom Scalars tab of two runs of 30 layers and a histogram."""
    folder = tmp_path_factory.mktemp("page")
    for run in ("a", "b"):
        logger, bands = TensorBoardLogger(folder, name="", version=run), Bands()
        for step in range(3):
            points = [
                Point("", f"layers.{i}.weight", {}, {"stepsize_mean": i + 1.0, "stepsize_std": 0.5})
                for i in range(30)
            ]
            scalars = scalars_of(points) | bands.edges(points)
            log_scalars(logger, scalars, step)
            show(logger, scalars)
            log_histograms(logger, [at_the_ceiling(step)], step)
        logger.finalize("success")
    server = Server(folder)
    server.when(lambda runs: len(runs.get("b", ())) == 2 * 30 + 2 * 12, "scalars/tags")
    with chromium() as driver:
        driver.get(f"{server.url}/#custom_scalars")
        yield driver
    server.close()


def when_found(page, name, script="return found;"):
    for _ in range(100):
        if found := page.execute_script(FIND + script, name):
            return found
        time.sleep(0.2)
    raise TimeoutError(name)


def test_bands_are_in_the_networks_order_and_those_of_the_last_layers_among_them(page):
    titles = when_found(
        page, "tf-custom-scalar-margin-chart-card", "return found.map((card) => card.title);"
    )
    numbers = [int(title.split(".")[1]) for title in titles]
    assert len(numbers) == 12
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, 29)


def test_the_first_category_alone_is_open_and_none_has_more_than_twelve_charts(page):
    categories = when_found(
        page,
        "tf-category-paginated-view",
        "return found.map((c) => [c.category.name, c.category.items.length, c.opened]);",
    )
    assert categories[0] == ["stepsize_mean ± stepsize_std", 12, True]
    assert all(count <= 12 for _, count, _ in categories)
    assert not any(is_open for _, _, is_open in categories[1:])


def test_ticks_of_a_histogram_at_the_ceiling_do_not_touch(page):
    page.get(page.current_url.partition("#")[0] + "#histograms")
    page.refresh()
    boxes = when_found(
        page,
        "text",
        """
        const ticks = found.filter((text) => /^3\\d\\d/.test(text.textContent));
        return ticks.map((text) => {
            const box = text.getBoundingClientRect();
            return [box.top, box.left, box.right];
        });
        """,
    )
    drawn = sorted((top, left, right) for top, left, right in boxes if right > left)
    assert len(drawn) >= 2 * 3  # runs, and ticks at least
    for (top, _, right), (next_top, left, _) in pairwise(drawn):
        assert next_top > top or left > right + 2
