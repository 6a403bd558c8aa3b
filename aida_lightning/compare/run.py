"""One run of a comparison: one optimizer, with the shared model, initialisation and data order."""

import contextlib
import inspect
import logging
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

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
    ERROR_LOG,
    DamagedFileError,
    ResumePoint,
    begin_run,
    finish_run,
    finished_run,
    locked_run,
    resume_point,
    stopped_run,
)
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import GROUPING, OptimizerChoice
from aida_lightning.compare.results import RunResult, Status, run_result
from aida_lightning.compare.settings import run_settings
from aida_lightning.groups import patterns_of
from aida_lightning.logs.events import next_suffix
from aida_lightning.registry import build_optimizer, for_any_layer, get_optimizer_class

_NOT_TRAINED = (
    "no epoch was trained: the data are empty, or trainer.fast_dev_run, limit_train_batches or "
    "max_steps leaves nothing to do"
)


class Run(NamedTuple):
    """One run of a comparison, as `train_run` takes it.

    Args:
        loaded: experiment of the run.
        optimizer: optimizer of the run.
        seed: seed of the initialisation and of the order of the data.
        folder: the run's own folder.
        keep_checkpoint: whether to keep the last checkpoint after the run is finished.
    """

    loaded: LoadedExperiment
    optimizer: OptimizerChoice
    seed: int
    folder: Path
    keep_checkpoint: bool = False

    @property
    def title(self) -> str:
        """The name of the run in messages."""
        return f"{self.optimizer.label}, seed {self.seed}"

    def finished(self) -> RunResult | None:
        """Return the result if the run is already finished, or None."""
        return finished_run(self.folder, self.optimizer, self.loaded.experiment)

    def stopped(self, status: Status, message: str = "") -> RunResult:
        """Return the result so far of the unfinished run, which no process trains any more."""
        experiment = self.loaded.experiment
        return stopped_run(self.folder, self.optimizer, self.seed, experiment, status, message)


def train_run(run: Run, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Train one run, from its last checkpoint if there is one, and read its event files.

    Any failure is reported in the result and not raised, so that the other runs continue. If
    another process trains the same run, this function waits for it and takes its result.

    Args:
        run: run to train.
        callbacks: callbacks in addition to those of every run.

    Raises:
        KeyboardInterrupt, SystemExit: training was stopped; `Run.stopped` gives the result so far.
    """
    loaded, optimizer, seed, folder, keep_checkpoint = run
    point = ResumePoint()
    failure: dict[str, str] = {}
    with quiet():
        _warm_up(optimizer)
    with quiet(), _sigint_handler_restored(), contextlib.ExitStack() as held:
        start = time.perf_counter()
        try:
            held.enter_context(locked_run(folder))
            if (result := run.finished()) is not None:
                return result
            start = time.perf_counter()
            point = begin_run(folder, run_settings(loaded.config, optimizer, seed))
            if not _can_go_on(loaded):
                point = ResumePoint()
            _fit(loaded, optimizer, seed, folder, point, callbacks)
        except Exception as error:  # a failure of one run affects no other run
            failure = {"status": "failed", "message": _summary(error)}
            with contextlib.suppress(OSError):  # the folder may not be writable
                (folder / ERROR_LOG).write_text(traceback.format_exc(), encoding="utf-8")
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
        experiment = loaded.experiment
        result = run_result(folder, optimizer, seed, experiment, seconds, epochs, failure)
        if not failure:
            finish_run(folder, result, keep_checkpoint)
        return result


def _can_go_on(loaded: LoadedExperiment) -> bool:
    """Return whether a resumed run equals an unbroken one under the Trainer's options.

    With some options, Lightning would resume a step or an epoch's data too late; such a run starts
    anew instead.
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
    callbacks: Sequence[Callback],
) -> None:
    experiment = loaded.experiment
    logger = find_in(loaded.package, "pytorch.loggers.TensorBoardLogger")(
        folder.parent.parent,
        folder.parent.name,
        folder.name,
        default_hp_metric=False,
        flush_secs=10,
        # This makes TensorBoard discard what a killed run logged after its last checkpoint.
        purge_step=point.steps if any(folder.glob("*tfevents*")) else None,
        filename_suffix=next_suffix(folder),
    )
    callbacks = [*run_callbacks(loaded, optimizer, seed, folder), *callbacks, _QuietProcesses()]
    trainer = experiment.trainer(logger=logger, callbacks=callbacks)
    if type(trainer.strategy.checkpoint_io) in find("pytorch.plugins.io.TorchCheckpointIO"):
        trainer.strategy.checkpoint_io = LastCheckpointIO(folder)
    seed_everything = find_in(loaded.package, "pytorch.seed_everything")
    seed_everything(seed, workers=True, verbose=False)
    data = experiment.data()
    # All runs start from the same weights, regardless of the data module's random draws.
    seed_everything(seed, workers=True, verbose=False)
    model = build_model(loaded, optimizer, data, trainer)
    trainer.fit(model, datamodule=data, ckpt_path=point.checkpoint, weights_only=True)


def build_model(
    loaded: LoadedExperiment,
    optimizer: OptimizerChoice,
    data: LightningDataModule,
    trainer: Trainer,
) -> LightningModule:
    """Build the module of a run, with the size of the data's vocabulary if it takes one."""
    sizes = {}
    model_class = resolve_name(loaded.config["model"]["class_path"])
    if "vocab_size" in inspect.signature(model_class).parameters:
        data.prepare_data()
        data.setup("fit")
        sizes = {"vocab_size": data.vocab_size}  # type: ignore[attr-defined]
    options = _with_fastest_kernel(optimizer, trainer)
    return loaded.experiment.model(optimizer=optimizer.name, optimizer_options=options, **sizes)


def _with_fastest_kernel(optimizer: OptimizerChoice, trainer: Trainer) -> dict[str, Any]:
    """Request the fused kernel on a CPU, where no optimizer chooses it by default.

    Mixed precision is an exception, because Lightning then refuses to clip the gradients of torch's
    fused optimizers. So are third-party classes, whose option of that name may not support a CPU.
    """
    cls = get_optimizer_class(optimizer.name)
    if not cls.__module__.startswith(("torch.optim.", "aida_lightning.")):
        return optimizer.options
    accepted = inspect.signature(cls).parameters
    patterns = patterns_of(optimizer.options.get("groups")).values()
    given = {*optimizer.options, *(name for options in patterns for name in options)}
    chosen = given & {"foreach", "fused", "capturable", "differentiable"}
    on_host = trainer.strategy.root_device.type == "cpu"
    mixed = isinstance(trainer.precision_plugin, find("pytorch.plugins.MixedPrecision"))
    if on_host and not mixed and "fused" in accepted and not chosen:
        return {**optimizer.options, "fused": True}
    return optimizer.options


def _warm_up(optimizer: OptimizerChoice) -> None:
    """Step a tiny layer, so that no run's time includes the compilation of a kernel."""
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    accepted = inspect.signature(get_optimizer_class(optimizer.name)).parameters
    fused = {"fused": True} if "fused" in accepted else {}
    # A single layer has no groups, and no parts.
    omitted = {*GROUPING, "partition"}
    given = {name: value for name, value in optimizer.options.items() if name not in omitted}
    with contextlib.suppress(Exception):  # the run itself reports it
        build_optimizer(
            optimizer.name, [param], **{**fused, **for_any_layer(optimizer.name, given)}
        ).step()


def _summary(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ProcessRaisedException) and lines:
        return lines[-1]  # the traceback ends with the other process's exception
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's messages at every start from the terminal, but keep its warnings."""
    # The second logger warns about a toolkit without a GPU when a kernel compiles for a CPU.
    least = {logger: logging.WARNING for logger in loggers()}
    least[logging.getLogger("torch.utils.cpp_extension")] = logging.ERROR
    levels = {logger: logger.level for logger in least}
    for logger, level in least.items():
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            for pattern in (
                # The data modules choose their workers; a warning per run does not help.
                ".*does not have many workers.*",
                # A comparison of few batches is intended.
                ".*is smaller than the logging interval.*",
                # SGD has no stepsizes, but is compared with adaptive optimizers by its accuracy.
                "StepsizeMonitor logs nothing of .*",
                # A comparison starts its own processes, on a cluster's machines too.
                "The `srun` command is available on your system but is not used.*",
                # Lightning's own use of torch's pytree.
                ".*isinstance.treespec, LeafSpec.*",
                # A run continues in its folder, from the end of an epoch. Lightning counts the
                # steps of all optimizers, although one of them may step less often.
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
    """Silence the processes that a strategy spawns, as soon as they unpickle this callback."""

    def __reduce__(self) -> Any:
        return _quiet_process, ()


def _quiet_process() -> _QuietProcesses:
    callback = _QuietProcesses()
    vars(callback)["quiet"] = context = quiet()  # ends with the last reference to it
    context.__enter__()
    return callback


@contextlib.contextmanager
def _sigint_handler_restored() -> Iterator[None]:
    """Restore the handler of Ctrl-C, which Lightning replaces after the first Ctrl-C."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # only the main thread can set it
            signal.signal(signal.SIGINT, handler)
