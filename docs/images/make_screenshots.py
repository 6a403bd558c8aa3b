"""Take the documentation's pictures of TensorBoard: train two runs, serve them, and look.

    python docs/images/make_screenshots.py [--epochs 7] [--output docs/images]

It needs the extras `examples` and `browser`, and chromium and chromedriver on the path.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from selenium import webdriver

from aida_lightning import StepsizeMonitor
from aida_lightning.datamodules import DigitsDataModule
from aida_lightning.example_modules import ImageClassifier

# The picture's name, the tab's, and how long the page takes to draw, in seconds.
TABS = {
    "custom_scalars": ("custom_scalars", 8),
    "scalars": ("scalars&tagFilter=stepsize_mean", 8),
    "images": ("images", 8),
    "histograms": ("histograms", 12),
}
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--hide-scrollbars --window-size=1400,1150"
)


def train(folder: str, epochs: int) -> None:
    """Train a narrow VGG11 on the digits by Aida with K=1 and with K=2."""
    for k in (1, 2):
        seed_everything(0, verbose=False)
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=TensorBoardLogger(folder, name="", version=f"Aida_K={k}"),
            callbacks=[StepsizeMonitor(every_n_steps=7, figures=True, histograms=True)],
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=7,
        )
        options = {"k": k, "fused": True}
        module = ImageClassifier("vgg11_x0_25", optimizer="aida", optimizer_options=options)
        trainer.fit(module, DigitsDataModule(batch_size=32))


def take_pictures(folder: str, output: Path) -> None:
    """Open each tab of a TensorBoard over the folder, and save what it shows."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", "0"]
    command += ["--host", "localhost"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    server = subprocess.Popen(command, text=True, **pipes)
    found = (re.search(r"http://localhost:\d+", line) for line in server.stderr or ())
    address = next(match[0] for match in found if match)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ARGUMENTS.split():
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(service=service, options=options)
    try:
        time.sleep(5)  # the server reads the files
        for name, (tab, seconds) in TABS.items():
            browser.get(f"{address}/#{tab}")
            browser.refresh()
            time.sleep(seconds)
            browser.save_screenshot(str(output / f"{name}.png"))
    finally:
        browser.quit()
        server.terminate()


def main() -> None:
    """Train and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(folder, arguments.epochs)
        take_pictures(folder, arguments.output)


if __name__ == "__main__":
    main()
