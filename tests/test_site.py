"""The built site in a headless Chromium; skipped where there is none, or no Selenium or MkDocs."""

import functools
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chromium import chromium, needs_chromium

pytest.importorskip("material", reason="needs the extra `docs`")
pytestmark = needs_chromium
ROOT = Path(__file__).parents[1]
# What is wider than the page, or than a box that cuts it off; what a box scrolls sideways counts as
# the box. A box that scrolls up and down hides what it has, and is found too.
STICKING_OUT = """
const width = document.documentElement.clientWidth;
const outside = (element) => {
  let edges = element.getBoundingClientRect();
  for (let box = element; box !== document.documentElement; box = box.parentElement) {
    const overflow = getComputedStyle(box).overflowX;
    if (overflow === 'visible') continue;
    const limits = box.getBoundingClientRect();
    if (['auto', 'scroll'].includes(overflow)) edges = limits;
    else if (edges.right > limits.right + 1) return true;
  }
  return edges.left < -1 || edges.right > width + 1;
};
const scrollsDown = (element) =>
  ['auto', 'scroll'].includes(getComputedStyle(element).overflowY) &&
  element.scrollHeight > element.clientHeight;
const found = [...document.querySelectorAll('article *')]
  .filter((element) => element.checkVisibility() && (outside(element) || scrollsDown(element)))
  .map((element) => `${element.tagName}: ${element.textContent.trim().slice(0, 40)}`);
const all = document.documentElement.scrollWidth;
return all > width ? [`the page is ${all} wide`, ...found] : found;
"""


class Quiet(SimpleHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site and serve it; give its address and the paths of its pages."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_sticks_out_of_a_page(site, browser, width):
    address, pages = site
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    sticking_out = {}
    for page in pages:
        browser.get(f"{address}/{page}")
        assert browser.execute_script("return innerWidth") == width
        if found := browser.execute_script(STICKING_OUT):
            sticking_out[page] = found
    assert sticking_out == {}


def test_a_page_asks_no_other_host_for_anything(site, browser):
    address, pages = site
    asked = "return performance.getEntriesByType('resource').map((entry) => entry.name);"
    for page in pages:
        browser.get(f"{address}/{page}")
        names = browser.execute_script(asked)
        assert any(name.endswith(".css") for name in names)
        assert [name for name in names if not name.startswith(f"{address}/")] == [], page


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("logger", "loggers/"),
        ("wandb", "loggers/"),
        ("MLflow", "loggers/"),
        ("learning rate sweep", "experiments/"),
        ("HParams", "experiments/"),
        ("YAML", "experiments/"),
        ("config file", "lightning/"),
        ("what a YAML file may do", "promises/"),
        ("resume", "promises/"),
        ("checkpoint", "promises/"),
        ("SLURM", "clusters/"),
        ("cluster", "clusters/"),
    ],
)
def test_the_search_finds_the_page_that_tells_of_it(site, browser, query, page):
    address, _ = site
    browser.get(f"{address}/?q={query.replace(' ', '%20')}")
    links = "return [...document.querySelectorAll('a.md-search-result__link')].map((a) => a.href);"
    for _ in range(100):
        if found := browser.execute_script(links):
            break
        time.sleep(0.1)
    pages = [link.removeprefix(f"{address}/").partition("?")[0].partition("#")[0] for link in found]
    assert page in list(dict.fromkeys(pages))[:3]
