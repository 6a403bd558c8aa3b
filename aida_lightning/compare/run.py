"""One run of a comparison: the same model, initialisation and data order, one optimizer."""

import contextlib
import inspect
import logging
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from aida_lightning._lightning import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    find,
    find_in,
    loggers,
)
from aida_lightning.compare.callbacks import LastCheckpointIO, run_callbacks
from aida_lightning.compare.folder import (
    DamagedFileError,
    ResumePoint,
    begin_run,
    finish_run,
    resume_point,
)
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import OptimizerChoice
from aida_lightning.compare.results import RunResult, measure_run
from aida_lightning.compare.settings import run_settings
from aida_lightning.logs.events import next_suffix
from aida_lightning.registry import build_optimizer, get_optimizer_class

_NOT_TRAINED = (
    "no epoch was trained: the data are empty, or trainer.fast_dev_run, limit_train_batches or "
    "max_steps leaves nothing to do"
)


def train_run(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    seed: int,
    folder: Path,
    keep_checkpoint: bool = False,
    runs_left: int = 0,
) -> RunResult:
    """Train one run, from its last checkpoint if there is one, and read its event files.

    Whatever goes wrong is reported in the result, not raised, so that the other runs go on.

    Args:
        loaded: the experiment.
        optimizer: the optimizer.
        seed: the seed of the initialisation and of the order of the data.
        folder: the run's own.
        keep_checkpoint: keep the last checkpoint of a run that is finished.
        runs_left: how many runs a forecast is to be made for, this one included; 0 makes none.
    """
    experiment = loaded.experiment
    point = ResumePoint()
    failure: dict[str, str] = {}
    with quiet():
        _warm_up(optimizer)
    start = time.perf_counter()
    with quiet(), _sigint_handler_restored():
        try:
            point = begin_run(folder, run_settings(loaded.config, optimizer, seed))
            if not _can_go_on(loaded):
                point = ResumePoint()
            _fit(loaded, optimizer, seed, folder, point, runs_left)
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second.
            failure = {"status": "interrupted", "message": ""}
        except Exception as error:  # any failure of one run is that run's alone
            failure = {"status": "failed", "message": _summary(error)}
            with contextlib.suppress(OSError):  # of a folder that cannot be written to
                (folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
    seconds = point.seconds + time.perf_counter() - start
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    epochs = 0
    try:
        epochs = resume_point(folder).epochs
        if not failure and epochs == 0:
            failure = {"status": "failed", "message": _NOT_TRAINED}
    except DamagedFileError as error:
        failure = failure or {"status": "failed", "message": str(error)}
    result = RunResult(
        label=optimizer.label,
        method=optimizer.method,
        optimizer=optimizer.name,
        options=optimizer.options,
        seed=seed,
        wall_time_s=seconds,
        epochs=epochs,
        **(measure_run(folder, experiment.metric, experiment.target) | failure),
    )
    if not failure:
        finish_run(folder, result, keep_checkpoint)
    return result


def _can_go_on(loaded: LoadedExperiment) -> bool:
    """Tell whether a resumed run equals an unbroken one under the Trainer's options.

    With these, Lightning goes on a step or an epoch's data too late: the run starts anew instead.
    """
    options = loaded.trainer_options
    by_steps = options.get("max_steps", -1) not in (None, -1)
    return not by_steps and not options.get("reload_dataloaders_every_n_epochs")


def _fit(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    seed: int,
    folder: Path,
    point: ResumePoint,
    runs_left: int,
) -> None:
    experiment = loaded.experiment
    logger = find_in(loaded.package, "pytorch.loggers.TensorBoardLogger")(
        folder.parent.parent,
        folder.parent.name,
        folder.name,
        default_hp_metric=False,
        flush_secs=10,
        # TensorBoard then forgets what a killed run logged after its last checkpoint.
        purge_step=point.steps if any(folder.glob("*tfevents*")) else None,
        filename_suffix=next_suffix(folder),
    )
    callbacks = [*run_callbacks(loaded, optimizer, seed, folder, runs_left), _QuietProcesses()]
    trainer = experiment.trainer(logger=logger, callbacks=callbacks)
    if type(trainer.strategy.checkpoint_io) in find("pytorch.plugins.io.TorchCheckpointIO"):
        trainer.strategy.checkpoint_io = LastCheckpointIO(folder)
    seed_everything = find_in(loaded.package, "pytorch.seed_everything")
    seed_everything(seed, workers=True, verbose=False)
    data = experiment.data()
    # Whatever the data module draws, all start from the same weights.
    seed_everything(seed, workers=True, verbose=False)
    model = build_model(loaded, optimizer, data, trainer)
    trainer.fit(model, datamodule=data, ckpt_path=point.checkpoint, weights_only=True)


def build_model(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    data: LightningDataModule,
    trainer: Trainer,
) -> LightningModule:
    """Build the module of a run, which is told the size of the data's vocabulary if it takes it."""
    sizes = {}
    model_class = resolve_name(loaded.config["model"]["class_path"])
    if "vocab_size" in inspect.signature(model_class).parameters:
        data.prepare_data()
        data.setup("fit")
        sizes = {"vocab_size": data.vocab_size}  # type: ignore[attr-defined]
    options = _with_fastest_kernel(optimizer, trainer)
    return loaded.experiment.model(optimizer=optimizer.name, optimizer_options=options, **sizes)


def _with_fastest_kernel(optimizer: OptimizerChoice, trainer: Trainer) -> dict[str, Any]:
    """Ask for the fused kernel on a CPU, where no optimizer chooses it by itself.

    Not in mixed precision, where Lightning refuses to clip the gradients of torch's fused ones; and
    not of others' classes, whose options of that name may mean what a CPU does not have.
    """
    cls = get_optimizer_class(optimizer.name)
    if not cls.__module__.startswith(("torch.optim.", "aida_lightning.")):
        return optimizer.options
    accepted = inspect.signature(cls).parameters
    chosen = {"foreach", "fused", "capturable", "differentiable"} & optimizer.options.keys()
    on_host = trainer.strategy.root_device.type == "cpu"
    mixed = isinstance(trainer.precision_plugin, find("pytorch.plugins.MixedPrecision"))
    if on_host and not mixed and "fused" in accepted and not chosen:
        return {**optimizer.options, "fused": True}
    return optimizer.options


def _warm_up(optimizer: OptimizerChoice) -> None:
    """Take a step of a tiny layer, so that no run's time has the compilation of a kernel in it."""
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    accepted = inspect.signature(get_optimizer_class(optimizer.name)).parameters
    fused = {"fused": True} if "fused" in accepted else {}
    with contextlib.suppress(Exception):  # which the run itself will tell
        build_optimizer(optimizer.name, [param], **{**fused, **optimizer.options}).step()


def _summary(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ProcessRaisedException) and lines:
        return lines[-1]  # the other process's own exception ends its traceback
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the terminal what Lightning says at every start; its warnings stay."""
    # The second warns of a toolkit without a GPU wherever a kernel is compiled for a CPU.
    least = {logger: logging.WARNING for logger in loggers()}
    least[logging.getLogger("torch.utils.cpp_extension")] = logging.ERROR
    levels = {logger: logger.level for logger in least}
    for logger, level in least.items():
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            for pattern in (
                # The data modules choose their workers; a second opinion per run helps nobody.
                ".*does not have many workers.*",
                # A comparison of few batches is meant.
                ".*is smaller than the logging interval.*",
                # SGD has none, and stands beside those that have for its accuracy.
                "StepsizeMonitor logs nothing of .*",
                # Lightning's own use of torch's pytree.
                ".*isinstance.treespec, LeafSpec.*",
                # A run goes on in the folder, and from the end of an epoch, that it had: Lightning
                # counts the steps of all optimizers, of which one may step less often.
                ".*Checkpoint directory .* exists and is not empty.*",
                ".*The dirpath has changed from.*",
                ".*resuming from a checkpoint that ended before the epoch ended.*",
            ):
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


class _QuietProcesses(Callback):
    """Have the processes that a strategy spawns be quiet from the start, when they unpickle it."""

    def __reduce__(self) -> Any:
        return _quiet_process, ()


def _quiet_process() -> _QuietProcesses:
    callback = _QuietProcesses()
    vars(callback)["quiet"] = context = quiet()  # which ends with the last reference to it
    context.__enter__()
    return callback


@contextlib.contextmanager
def _sigint_handler_restored() -> Iterator[None]:
    """Give Ctrl-C back its meaning, which Lightning takes from it when it was pressed once."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # of another thread than the main one
            signal.signal(signal.SIGINT, handler)
