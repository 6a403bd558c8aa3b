"""The monitor of each layer's adaptive stepsizes."""

import time
from collections.abc import Sequence
from typing import Any, Literal

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from aida_lightning.callbacks._health import HEALTH_MEASURES, Health
from aida_lightning.callbacks._layers import LayersOnceShaped, check_layers, warn_of_untrained
from aida_lightning.callbacks._options import check_count, check_interval, listed
from aida_lightning.callbacks._pictures import (
    FIGURE_MEASURES,
    HISTOGRAM_MEASURES,
    History,
    log_histograms,
)
from aida_lightning.callbacks._points import Point, points_of, scalars_of
from aida_lightning.callbacks._statistics import choose_statistics
from aida_lightning.callbacks._watched import Watched, watch
from aida_lightning.logs.custom_scalars import show
from aida_lightning.logs.restart import drop_orphans
from aida_lightning.logs.writing import log_scalars

# Where in a checkpoint it is noted when it was saved, and before which step.
_SAVED = "aida_lightning.StepsizeMonitor"


class StepsizeMonitor(Callback):
    r"""Log statistics of each layer's adaptive stepsizes, by default their mean and deviation.

    A layer is one parameter tensor; its adaptive stepsizes are the elements of
    :math:`s = 1 / \sqrt{v / (1 - \beta_2^t)}`, without the learning rate. The numbers go to every
    logger of the Trainer, as ``stepsize_mean/<layer>`` and ``stepsize_std/<layer>`` with the
    parameter's name in the module; the deviation is the population's (divided by n). Where there
    are several optimizers their names go first: ``Adam/stepsize_mean/<layer>``,
    ``Adam-1/stepsize_mean/<layer>``. The step that they are logged at is that of the Trainer's own
    metrics.

    A step is sampled when the optimizer has really taken it: once for all accumulated gradients,
    and not if the gradient scaler of mixed precision left it out. Steps in between are counted;
    a sampled one costs a pass over the watched layers, one transfer to the host, and one write.

    TensorBoard's Custom Scalars tab shows the layers as lines of few charts, and of each layer the
    band from mean - std to mean + std, whose edges are two more tags a layer. A run that was killed
    and is resumed in the same folder shows no point twice.

    The statistics that ``statistics`` may name, of the stepsizes unless said otherwise:

    - ``mean``, ``std``, ``min``, ``max``, ``std_over_mean``, ``median``, and ``q01`` to ``q99``,
      the quantiles (logged as ``stepsize_<name>/<layer>``). Quantiles sort the layer.
    - ``ceiling_share``: the share of elements within 0.1 % of the family's ceiling
      :math:`\sqrt{(1 - \beta_2) / \epsilon}`.
    - ``effective_mean``, ``effective_std``: those times :math:`\eta / (1 - \beta_1^t)`.
    - ``update_ratio``: :math:`\|\Delta x\| / \|x\|` of the step, :math:`x` from before it. Outside
      of the family it takes a copy of the watched layers, before each step that is logged.
    - ``gradient_cosine``: the cosine of the angle between the momentum and the gradient as the
      optimizer was given it.

    At the end of an epoch (``logging_interval="epoch"``) the last step is logged. Of one that was
    taken before the epoch's last batch, or in a batch that turned out to be the last one only when
    ``trainer.should_stop`` was set, there is no ``gradient_cosine``, and outside of the family no
    ``update_ratio``, for what they need is gone.

    Args:
        layers: globs of parameter names, such as ``["features.*.weight"]``. None chooses the weight
            tensors, those of 2 or more dimensions.
        every_n_steps: log every n-th step of an optimizer. None takes the Trainer's
            ``log_every_n_steps``.
        logging_interval: ``"step"``, or ``"epoch"`` to log at the end of each training epoch.
        statistics: names of statistics, see above.
        max_layers: log so many layers at most, evenly spread over the module, and warn; None logs
            all. The usual networks have fewer than the default, and each is four tags to look at.
        custom_scalars: write TensorBoard's Custom Scalars layout and the edges of its bands.
            Categories of a layout that was written before are kept.
        histograms: log the stepsizes' histograms to TensorBoard, as ``stepsizes/<layer>``.
        figures: draw Figures 1 and 2 of arXiv:2203.13273, all that was logged since the run started
            or went on, into TensorBoard's Images tab at the end of each training epoch.
        health: warn, once each, with the layers' names, when a number is not finite, and, from
            step :math:`1 / (1 - \beta_2)` on, when all stepsizes of a layer are at the ceiling or
            their deviation exceeds 10 times their mean.

    Raises:
        MisconfigurationException: an argument is not allowed, the Trainer has no logger (histograms
            and figures: no TensorBoardLogger), or a glob matches no layer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from aida_lightning.callbacks import StepsizeMonitor
        >>> monitor = StepsizeMonitor(layers=["features.*.weight"], every_n_steps=10)
        >>> trainer = Trainer(callbacks=[monitor], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        layers: Sequence[str] | str | None = None,
        every_n_steps: int | None = None,
        logging_interval: Literal["step", "epoch"] = "step",
        statistics: Sequence[str] | str = ("mean", "std"),
        max_layers: int | None = 256,
        custom_scalars: bool = True,
        histograms: bool = False,
        figures: bool = False,
        health: bool = True,
    ) -> None:
        check_count("every_n_steps", every_n_steps)
        check_interval(logging_interval, every_n_steps)
        check_count("max_layers", max_layers)
        self.layers = None if layers is None else listed("layers", layers, "glob")
        self.statistics = listed("statistics", statistics, "statistic")
        self.every_n_steps = every_n_steps
        self.logging_interval = logging_interval
        self.max_layers = max_layers
        self.custom_scalars = custom_scalars
        self.histograms = histograms
        self.figures = figures
        self.health = health
        self._chosen = choose_statistics(self.statistics)
        self._watched: list[Watched] = []
        self._begin()

    def _begin(self) -> None:
        """Forget what earlier runs left behind; what a checkpoint holds is restored after this."""
        self._steps: dict[str, int] = {}
        self._saved: dict[str, Any] | None = None
        self._in_batch = False
        self._health = Health()
        self._history = History()

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            layers=self.layers,
            every_n_steps=self.every_n_steps,
            logging_interval=self.logging_interval,
            statistics=self.statistics,
            max_layers=self.max_layers,
            histograms=self.histograms,
            figures=self.figures,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._begin()

    @override
    def state_dict(self) -> dict[str, Any]:
        counted = {w.name: w.steps for w in self._watched if w.steps is not None}
        return {"steps": self._steps | counted}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = dict(state_dict["steps"])

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_SAVED] = {"at": time.time(), "next_step": self._next_step(trainer)}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # so that a run that is killed has logged all up to here

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved = checkpoint.get(_SAVED)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_loggers(trainer)
        self._detach()
        self._resume(trainer)
        self._watch(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._in_batch = True
        for watched in self._watched:
            watched.begin_batch(trainer)

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self.logging_interval == "step":
            self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_batch = False
        # The epoch's last step, which the Trainer logs its own epoch metrics at.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        if self.logging_interval == "epoch":
            for watched in self._watched:
                watched.finish_epoch()
            self._log(trainer, step)
        if self.figures and trainer.is_global_zero:
            for logger in _tensorboards(trainer):
                self._history.log_figures(logger, self._labels(), step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._detach()

    def _check_loggers(self, trainer: Trainer) -> None:
        if not trainer.loggers:
            raise MisconfigurationException(
                "Cannot use `StepsizeMonitor` callback with `Trainer` that has no logger."
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # with a logger in the place of the user's, which writes nothing
        for name in ("histograms", "figures"):
            if getattr(self, name) and not _tensorboards(trainer):
                there = [type(logger).__name__ for logger in trainer.loggers]
                raise MisconfigurationException(
                    f"StepsizeMonitor({name}=True) needs a TensorBoardLogger, there are: {there}"
                )

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_layers(pl_module, trainer.optimizers)
        find_layers = LayersOnceShaped(pl_module, self.layers, self.max_layers)
        if find_layers.are_shaped:
            warn_of_untrained(find_layers(), trainer.optimizers)
        every_n_steps: int = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.logging_interval == "step" and not every_n_steps:
            return  # as the Trainer logs nothing
        self._watched = watch(trainer.optimizers, find_layers, self._measures(), self._steps)
        for watched in self._watched:
            if self.logging_interval == "epoch":
                watched.sample_at_epochs_end(trainer)
            else:
                watched.sample_after_steps(every_n_steps)

    def _measures(self) -> tuple[str, ...]:
        measures = [name for statistic in self._chosen.values() for name in statistic.measures]
        for wanted, more in (
            (self.health, HEALTH_MEASURES),
            (self.histograms, HISTOGRAM_MEASURES),
            (self.figures, FIGURE_MEASURES),
        ):
            measures += more if wanted else ()
        return tuple(dict.fromkeys(measures))

    def _log(self, trainer: Trainer, step: int) -> None:
        samples = [sample for watched in self._watched if (sample := watched.take_sample())]
        # Every process samples, so that none has less to do than another; one writes.
        if not samples or not trainer.is_global_zero:
            return
        points = points_of(samples, self._chosen.values())
        for logger in trainer.loggers:
            self._log_to(logger, points, step)
        if self.health:
            self._health.check(points, step)
        if self.figures:
            self._history.add(points, step, trainer.current_epoch)

    def _log_to(self, logger: Logger, points: list[Point], step: int) -> None:
        if not isinstance(logger, TensorBoardLogger):
            log_scalars(logger, scalars_of(points), step)
            return
        scalars = scalars_of(points, margins=self.custom_scalars)
        log_scalars(logger, scalars, step)
        if self.custom_scalars:
            show(logger, scalars)
        if self.histograms:
            log_histograms(logger, points, step)

    def _labels(self) -> dict[str, str]:
        return {watched.prefix: watched.name for watched in self._watched}

    def _next_step(self, trainer: Trainer) -> int:
        """Give the step that the Trainer is going to log at when it goes on from here."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        # Of the batch that is being finished it is counted only after its checkpoints are saved.
        return step + (self._in_batch and not trainer.fit_loop._should_accumulate())

    def _resume(self, trainer: Trainer) -> None:
        if trainer.ckpt_path and self._saved and trainer.is_global_zero:
            for logger in _tensorboards(trainer):
                drop_orphans(logger, self._saved["next_step"], self._saved["at"], self._tags())

    def _tags(self) -> set[str]:
        return {statistic.tag for statistic in self._chosen.values()}

    def _detach(self) -> None:
        self._steps = self.state_dict()["steps"]
        for watched in self._watched:
            watched.detach()
        self._watched = []


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
