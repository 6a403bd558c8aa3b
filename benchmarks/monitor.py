"""Time training steps with and without the monitor, and writes of points to TensorBoard.

    python benchmarks/monitor.py [--models vgg11 layers] [--optimizer sgd] [--device cuda]

Each contender trains a copy of one model in its own Trainer. The contenders take turns, one step
each, so that other load on the machine slows all of them alike. A ratio is the median over paired
steps. A step ends when the device has completed it. Steps that are logged and steps in between are
measured separately; an interval of n steps costs one of the former and n - 1 of the latter.

With `--epochs`, each contender also trains whole epochs of VGG11, one after the other and without a
wait between steps, on random pictures in the shape of CIFAR-10.
"""

import argparse
import contextlib
import copy
import json
import logging
import os
import platform
import statistics
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from typing_extensions import override

import aida_lightning
from aida_lightning import StepsizeMonitor, build_optimizer
from aida_lightning._lightning import package_of
from aida_lightning.example_modules import vgg11
from aida_lightning.logs.writing import log_scalars

pl = import_module(package_of())  # the distribution of Lightning that is installed

WITHOUT = "without"
DEFAULT_INTERVAL = 50
EVERYTHING = [
    "mean", "std", "min", "max", "std_over_mean", "median", "q05", "q95", "ceiling_share",
    "effective_mean", "effective_std", "update_ratio", "update_norm", "weight_norm",
    "gradient_norm", "gradient_cosine",
]  # fmt: skip


class Classifier(pl.LightningModule):
    """VGG11 on pictures of 32 × 32 pixels."""

    def __init__(self, optimizer: str = "aida") -> None:
        super().__init__()
        self.network, self.optimizer = vgg11(), optimizer

    @override
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.optimizer, self, fused=True)


class ManyLayers(pl.LightningModule):
    """10,000 layers of 2 × 5 elements, where the count of layers makes the cost."""

    def __init__(self, optimizer: str = "aida") -> None:
        super().__init__()
        self.optimizer = optimizer
        self.layers = nn.ParameterList(torch.ones(2, 5) for _ in range(10_000))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack([*self.layers]).square().sum()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.optimizer, self, fused=True)


MODELS: dict[str, Callable[[str], pl.LightningModule]] = {"vgg11": Classifier, "layers": ManyLayers}
CONTENDERS: dict[str, dict[str, Any] | None] = {
    WITHOUT: None,
    "default interval": {},
    "every step": {"every_n_steps": 1},
    "every step, no charts": {"every_n_steps": 1, "custom_scalars": False},
    "every step, all layers": {"every_n_steps": 1, "max_layers": None},
    "every step, all statistics": {"every_n_steps": 1, "statistics": EVERYTHING},
    "every step, histograms": {"every_n_steps": 1, "histograms": True},
}


class TakesTurns(pl.Callback):
    """Hands over to the next Trainer after every step, and times the steps of its own."""

    def __init__(self, turns: list[threading.Semaphore], place: int) -> None:
        self.turns, self.place = turns, place
        self.seconds: list[float] = []
        self.start = 0.0

    def _wait(self) -> None:
        self.turns[self.place].acquire()
        self.start = time.perf_counter()

    def _hand_over(self) -> None:
        self.turns[(self.place + 1) % len(self.turns)].release()

    @override
    def on_train_start(self, *args: Any) -> None:
        self._wait()

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        # What the Trainer and its callbacks do after a step is part of the step.
        if trainer.global_step:
            settle()
            self.seconds.append(time.perf_counter() - self.start)
            self._hand_over()
            self._wait()

    @override
    def on_train_end(self, *args: Any) -> None:
        self._hand_over()


class TimesEpoch(pl.Callback):
    """Takes the seconds per step of an epoch without its first steps."""

    warm_up = 5

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        if index == self.warm_up:
            settle()
            self.start = time.perf_counter()

    @override
    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        settle()
        steps = trainer.global_step - self.warm_up
        self.seconds = (time.perf_counter() - self.start) / steps


def settle() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def make_trainer(folder: str, name: str, device: str, timer: pl.Callback) -> pl.Trainer:
    """Make the Trainer of a contender."""
    options = CONTENDERS[name]
    monitors = [] if options is None else [StepsizeMonitor(**options)]
    return pl.Trainer(
        accelerator=device,
        devices=1,
        callbacks=[*monitors, timer],
        logger=pl.loggers.TensorBoardLogger(folder, name="", version=name),
        max_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def end_all(failure: threading.ExceptHookArgs) -> None:
    """End the process, where the other contenders would wait for one that failed."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    os._exit(1)


def train_in_turns(
    module: pl.LightningModule,
    contenders: list[str],
    steps: int,
    batch: tuple[Tensor, Tensor],
    device: str,
) -> dict[str, list[float]]:
    """Return each contender's seconds per step, without its last one, all trained in turns."""
    turns = [threading.Semaphore(0) for _ in contenders]
    timers = {name: TakesTurns(turns, place) for place, name in enumerate(contenders)}
    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for name in contenders:
            trainer = make_trainer(folder, name, device, timers[name])
            # The Trainer would take a bare sequence of batches for one of data loaders.
            batches: Any = [batch] * (steps + 1)
            arguments = (copy.deepcopy(module), DataLoader(batches, batch_size=None))
            threads.append(threading.Thread(target=trainer.fit, args=arguments))
        threading.excepthook = end_all
        for thread in threads:
            thread.start()
        turns[0].release()
        for thread in threads:
            thread.join()
    return {name: timer.seconds for name, timer in timers.items()}


def train_epochs(
    contenders: list[str], epochs: int, pictures: int, batch_size: int, optimizer: str, device: str
) -> dict[str, list[float]]:
    """Return each contender's seconds per step, of one epoch after another."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(pictures, 3, 32, 32, generator=generator),
        torch.randint(10, (pictures,), generator=generator),
    )
    # Batches that are cut out of the data at once; of single pictures the loader would take longer
    # than the device.
    sampler = BatchSampler(RandomSampler(data), batch_size, drop_last=True)
    loader = DataLoader(data, batch_size=None, sampler=sampler, pin_memory=device == "cuda")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(epochs):
        for name in contenders:
            timer = TimesEpoch()
            with tempfile.TemporaryDirectory() as folder:
                make_trainer(folder, name, device, timer).fit(Classifier(optimizer), loader)
            seconds[name].append(timer.seconds)
    return seconds


def write_points(count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds and the bytes per point, for points written singly and as one event."""
    found: dict[str, dict[str, list[float]]] = {}
    metrics = {("stepsize_mean", f"model.features.{i}.weight"): i / 7 for i in range(count)}
    joined = {"/".join(parts): number for parts, number in metrics.items()}
    with tempfile.TemporaryDirectory() as folder:
        loggers = {
            name: pl.loggers.TensorBoardLogger(folder, name="", version=name)
            for name in ("add_scalar", "one event")
        }
        for round_ in range(-2, rounds):  # two to warm up
            for name, logger in loggers.items():
                path = Path(logger.experiment.log_dir)
                before = sum(file.stat().st_size for file in path.iterdir())
                start = time.perf_counter()
                if name == "add_scalar":
                    logger.log_metrics(joined, step=round_ + 2)
                else:
                    log_scalars(logger, metrics, step=round_ + 2)
                logger.experiment.flush()
                seconds = time.perf_counter() - start
                size = sum(file.stat().st_size for file in path.iterdir()) - before
                if round_ >= 0:
                    entry = found.setdefault(name, {"seconds": [], "bytes": []})
                    entry["seconds"].append(seconds / count)
                    entry["bytes"].append(size / count)
        for logger in loggers.values():
            logger.finalize("success")
    return found


def summarize(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Compare each contender's steps with the paired ones of the Trainer without a monitor."""
    summary = {}
    for name, seconds in times.items():
        options = CONTENDERS[name]
        every = (options or {}).get("every_n_steps", DEFAULT_INTERVAL)
        # The first step makes the state, and is not like the others.
        pairs = list(enumerate(zip(seconds, times[WITHOUT], strict=True)))[1:]
        logged = [pair for step, pair in pairs if (step + 1) % every == 0]
        between = [pair for step, pair in pairs if (step + 1) % every]
        entry = {"ms": 1e3 * statistics.median(seconds[1:])}
        ratio, weights = 0.0, 0
        for label, some, weight in (("between", between, every - 1), ("logged", logged, 1)):
            if some and weight:
                entry[label] = statistics.median(a / b for a, b in some)
                ratio, weights = ratio + weight * entry[label], weights + weight
        entry["ratio"] = ratio / weights
        summary[name] = entry
    return summary


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says at every start."""
    logging.getLogger(package_of()).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=[*MODELS])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--optimizer", default="aida", help="its name; its kernel is the fused one")
    parser.add_argument("--steps", type=int, default=3 * DEFAULT_INTERVAL)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--points", type=int, default=1000, help="points written per round")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of writing points")
    parser.add_argument("--epochs", type=int, default=0, help="whole epochs of each contender")
    parser.add_argument("--pictures", type=int, default=50_000, help="pictures per epoch")
    parser.add_argument("--json", type=Path, help="a file to write the times to, in seconds")
    return parser


def main() -> None:
    """Measure, print the tables, and write what was measured as JSON."""
    parser = make_parser()
    arguments = parser.parse_args()
    long = "default interval" in arguments.contenders
    if arguments.models and long and arguments.steps < DEFAULT_INTERVAL:
        parser.error(f"--steps: at least {DEFAULT_INTERVAL}, one default interval, are needed")

    device: str = arguments.device
    setting = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "aida-lightning": aida_lightning.__version__,
        "optimizer": arguments.optimizer,
        "steps": arguments.steps,
        "batch size": arguments.batch_size,
    }
    print("  ".join(f"{key}: {value}" for key, value in setting.items()))
    results: dict[str, Any] = {"setting": setting, "seconds": {}, "summary": {}}

    def write() -> None:  # after each part, for there may be no time for the next
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")

    if arguments.points:
        points = results["points"] = write_points(arguments.points, arguments.rounds)
        print(f"\n{arguments.points} points to TensorBoard")
        print(f"{'':32} {'µs':>9} {'bytes':>7}  per point")
        for name, entry in points.items():
            median = {key: statistics.median(values) for key, values in entry.items()}
            print(f"{name:32} {1e6 * median['seconds']:9.1f} {median['bytes']:7.1f}")
        write()

    contenders = [WITHOUT, *(name for name in arguments.contenders if name != WITHOUT)]
    if arguments.epochs:
        print(
            "\nvgg11, ms per step of each epoch, and the medians' ratio to that without", flush=True
        )
        with quiet():
            epochs = results["epochs"] = train_epochs(
                contenders,
                arguments.epochs,
                arguments.pictures,
                arguments.batch_size,
                arguments.optimizer,
                device,
            )
        for name, of_epochs in epochs.items():
            ratio = statistics.median(of_epochs) / statistics.median(epochs[WITHOUT])
            print(f"{name:32} {' '.join(f'{1e3 * s:9.3f}' for s in of_epochs)} {ratio:8.3f}")
        write()

    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(arguments.batch_size, 3, 32, 32, generator=generator),
        torch.randint(10, (arguments.batch_size,), generator=generator),
    )
    for model in arguments.models:
        module = MODELS[model](arguments.optimizer)
        count = sum(1 for param in module.parameters() if param.ndim >= 2)
        print(f"\n{model}, {count:,} weight tensors; ratios of a step to one without the monitor")
        with quiet():
            seconds = train_in_turns(module, contenders, arguments.steps, batch, device)
        print(f"{'':32} {'ms':>9} {'logged':>8} {'between':>8} {'run':>8}")
        summary = summarize(seconds)
        for name, entry in summary.items():
            columns = [
                f"{entry[key]:8.3f}" if key in entry else f"{'':8}"
                for key in ("logged", "between", "ratio")
            ]
            print(f"{name:32} {entry['ms']:9.2f} {' '.join(columns)}", flush=True)
        results["seconds"][model], results["summary"][model] = seconds, summary
        write()


if __name__ == "__main__":
    main()
