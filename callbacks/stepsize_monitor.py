"""A callback that logs the adaptive stepsizes of each layer."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import override

from aida_lightning._lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    TensorBoardLogger,
    Trainer,
)
from aida_lightning._private import state_key, steps_taken
from aida_lightning.callbacks._bands import Bands
from aida_lightning.callbacks._following import Samplers, check_interval
from aida_lightning.callbacks._health import HEALTH_MEASURES, Health
from aida_lightning.callbacks._layers import (
    WatchedLayers,
    as_list,
    as_parts,
    check_bands,
    check_count,
)
from aida_lightning.callbacks._pictures import (
    FIGURE_MEASURES,
    HISTOGRAM_MEASURES,
    History,
    check_loggers,
    to_be_drawn,
)
from aida_lightning.callbacks._progress import ends_epoch, is_logged, next_step
from aida_lightning.callbacks._states import StateTables
from aida_lightning.callbacks._writing import forget, publish, write_points
from aida_lightning.logs.restart import drop_orphans
from aida_lightning.measuring._parts import Parts
from aida_lightning.measuring._statistics import (
    WITHOUT_STEPSIZES,
    choose_statistics,
    points_of,
)

# The checkpoint's entry for the time when it was saved and the step that follows it.
_SAVED = "aida_lightning.StepsizeMonitor"
# The arguments by which a checkpoint tells several monitors apart.
_KEY = "layers every_n_steps logging_interval statistics max_layers histograms figures".split()


class StepsizeMonitor(Callback):
    r"""Log statistics of each layer's adaptive stepsizes, or of its updates if it has none.

    By default, the statistics are the mean and the standard deviation of the stepsizes. If an
    optimizer has no adaptive stepsizes, they are ``update_ratio``, ``update_norm``,
    ``weight_norm``, ``gradient_norm`` and, if the optimizer has a momentum, ``gradient_cosine``; a
    message reports this when training starts.

    A layer is one parameter tensor. Its adaptive stepsizes are the elements of
    :math:`s = 1 / \sqrt{v / (1 - \beta_2^t)}`, without the learning rate. The standard deviation is
    that of the population (divided by n). Every logger of the Trainer receives the numbers as
    ``stepsize_mean/<layer>`` and ``stepsize_std/<layer>``, where ``<layer>`` is the parameter's
    name in the module. If there are several optimizers, or one that holds others, the optimizer's
    name comes first: ``Adam-1/stepsize_mean/<layer>``. The numbers are logged at the steps at which
    the Trainer logs its own metrics. They are also in the Trainer's ``callback_metrics``, where
    other callbacks can use them, for example ``EarlyStopping("stepsize_mean/<layer>")``. If the
    monitor logs per epoch, a callback that reads its numbers at the end of the epoch must come
    after it in the Trainer's list.

    The monitor samples a step once the optimizer has taken it: once for all accumulated gradients,
    and not at all if the gradient scaler of mixed precision skipped it. (For torch's fused
    optimizers, only the device knows whether a step was skipped. The monitor reads this flag at the
    logged steps, and once more each time that steps were skipped between two of them.) A sample
    holds the layers whose gradient the optimizer used at that step: a layer that was frozen or
    unused has no point there. Other steps are only counted. A sampled step costs one pass over the
    watched layers, one transfer to the host, and one write.

    TensorBoard's Custom Scalars tab shows the layers as lines in a few charts, and each layer's
    band from mean - std to mean + std. If a killed run is resumed in the same folder, no point
    appears twice.

    ``statistics`` accepts these names. They describe the stepsizes unless stated otherwise:

    - ``mean``, ``std``, ``min``, ``max``, ``std_over_mean``, ``median``, and the quantiles ``q01``
      to ``q99``, which need the layer's elements sorted. They are logged as
      ``stepsize_<name>/<layer>``.
    - ``ceiling_share``: the share of elements within 0.1 % of the family's ceiling
      :math:`\sqrt{(1 - \beta_2) / \epsilon}`.
    - ``effective_mean``, ``effective_std``: the mean and the standard deviation, multiplied by
      :math:`\eta / (1 - \beta_1^t)`.
    - ``update_norm``, ``update_ratio``: :math:`\|\Delta x\|` and :math:`\|\Delta x\| / \|x\|` of
      the step, with :math:`x` from before the step. For optimizers outside the family, the monitor
      copies the watched layers before each logged step.
    - ``weight_norm``: :math:`\|x\|` after the step.
    - ``gradient_norm``: :math:`\|g\|` of the gradient that the optimizer received, after
      accumulation, unscaling and clipping.
    - ``gradient_cosine``: the cosine of the angle between the momentum and that gradient.
    - ``snr``: the signal-to-noise ratio of the second moment :math:`v`, which is its squared mean
      over the layer, divided by its population variance (arXiv 2503.01843). The bias of :math:`v`
      cancels. The ratio is at most :math:`10^6`, also for a constant :math:`v`, and it is 0 for a
      :math:`v` of zeros. There is none if the optimizer keeps no :math:`v` for each element.
    - ``snr_rows``: the mean of the same ratio of each row, over those rows whose ratio is below
      :math:`10^6`. A row is a slice of dimension 0. If no row is left, it is :math:`10^6`, or 0 for
      a :math:`v` of zeros. There is none if rows have one element. With either of the two,
      TensorBoard receives a table of the layers once, which ``aida-lightning advise`` reads.

    All norms are Euclidean and taken over all elements of a layer.

    By default, the monitor logs an optimizer's most recent step whenever the Trainer logs its
    metrics; with ``logging_interval="epoch"``, it does so at the end of each epoch. If the
    optimizer has taken no step since the last time, there is no point. If it took its last step
    before the last batch, or in a batch that became the last because ``trainer.should_stop`` was
    set, there is no ``gradient_norm`` and no ``gradient_cosine``; outside the family, there is no
    ``update_norm`` and no ``update_ratio`` either.

    Args:
        layers: names of parameters or globs that match them, such as ``["features.*.weight"]``,
            without the prefixes that wrappers add. A tied parameter matches by each of its names,
            and a parametrized one also by the name of its result. None chooses the weights: the
            tensors of 2 or more dimensions, and each one-dimensional ``weight`` whose module has no
            other weight and is no norm (recognized by "norm" in the name of its class or of its
            place). If none of these is trained, None chooses all parameters that are.
        every_n_steps: number n of steps of an optimizer, to log every n-th; of several such steps
            in one batch, only the last is logged. None follows the Trainer's logging, see above.
        logging_interval: ``"step"``, or ``"epoch"`` to log at the end of each training epoch.
        statistics: names of statistics, see above.
        max_layers: largest number of trained layers to log. If there are more, the monitor warns
            and chooses layers that are evenly spread over the module. Layers that are trained later
            fill the places that are left. None logs all layers.
        custom_scalars: whether to write TensorBoard's Custom Scalars layout, and the edges of its
            bands as two more tags per layer with a band. Categories of an earlier layout are kept.
            By default, 12 layers per optimizer have a band, evenly spread over the depth. Globs of
            layer names choose others; the monitor warns about a glob that matches no layer.
        histograms: whether to log histograms of the stepsizes, as ``stepsizes/<layer>``, to
            TensorBoard, W&B and Comet. A message names the loggers that do not support them.
        figures: whether to draw Figures 1 and 2 of arXiv:2203.13273 and a heatmap of all layers, as
            ``stepsizes/std``, ``stepsizes/mean`` and ``stepsizes/heatmap``, for TensorBoard, W&B,
            MLflow and Comet. The monitor draws them at the end of each training epoch, from all
            points logged since the run started or resumed. A message names the loggers that do not
            support them.
        health: whether to warn, once per sign and with the layers' names, when a number is not
            finite and, from step :math:`1 / (1 - \beta_2)` on, when all stepsizes of a layer are at
            the ceiling or their standard deviation exceeds 10 times their mean.
        parts: parts of layers that pack several, to log beside the whole layer as layers of their
            own, named ``<layer>[<part>]``. A glob of layer names, as in ``layers``, maps to the
            parts along the first dimension: a list of names or a number of equal parts, which are
            called 0, 1, and so on; a mapping of names to numbers of rows; or ``"rows"`` for one
            part per row. Examples are ``{"*.in_proj_weight": ["q", "k", "v"]}``, ``{"*.weight_ih*":
            4}`` and ``{"*.qkv.weight": {"q": 4096, "k": 1024, "v": 1024}}``. The first glob that
            matches a layer counts. Only layers that ``layers`` chooses have parts, and
            ``max_layers`` counts the parts as well.

    Raises:
        MisconfigurationException: an argument is invalid, the Trainer has no logger, a glob in
            ``layers`` or ``parts`` matches no layer, or a layer cannot be divided into its parts.

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
        custom_scalars: bool | Sequence[str] | str = True,
        histograms: bool = False,
        figures: bool = False,
        health: bool = True,
        parts: Mapping[str, Parts] | None = None,
    ) -> None:
        check_interval(logging_interval, every_n_steps)
        check_count("max_layers", max_layers)
        self.layers = None if layers is None else as_list("layers", layers, "glob")
        self.statistics = as_list("statistics", statistics, "statistic")
        self.every_n_steps = every_n_steps
        self.logging_interval = logging_interval
        self.max_layers = max_layers
        self.custom_scalars = (
            custom_scalars
            if isinstance(custom_scalars, bool)
            else as_list("custom_scalars", custom_scalars, "glob")
        )
        self.histograms = histograms
        self.figures = figures
        self.health = health
        self.parts = as_parts(parts)
        try:
            self._chosen = choose_statistics(self.statistics)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._samplers: Samplers | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget the state of earlier runs; a checkpoint's state is restored after this call."""
        self._steps: dict[str, int] = {}
        self._saved: dict[str, Any] | None = None
        self._in_batch = False
        self._drawn: list[str] = []
        self._health = Health()
        self._history = History()
        self._state_tables = StateTables()
        globs = None if isinstance(self.custom_scalars, bool) else self.custom_scalars
        self._bands = Bands(globs) if self.custom_scalars else None

    @property
    @override
    def state_key(self) -> str:
        # Older checkpoints lack these three, so the key holds only those that are not the default.
        others = ("custom_scalars", "health")
        names = [*_KEY, *(name for name in others if getattr(self, name) is not True)]
        names += [] if self.parts is None else ["parts"]
        return state_key(self, **{name: getattr(self, name) for name in names})

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._begin()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._samplers.steps if self._samplers else self._steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = dict(state_dict["steps"])

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_SAVED] = {"at": time.time(), "next_step": next_step(trainer, self._in_batch)}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # so that a killed run keeps everything that it logged up to here

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved = checkpoint.get(_SAVED)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_loggers(trainer)
        self._drawn = to_be_drawn(trainer, histograms=self.histograms, figures=self.figures)
        self._detach()
        if trainer.ckpt_path:
            forget(trainer)
        if trainer.ckpt_path and self._saved and trainer.is_global_zero:
            tags = {statistic.tag for statistic in (*self._chosen, *WITHOUT_STEPSIZES)}
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    drop_orphans(logger, self._saved["next_step"], self._saved["at"], tags)
        self._watch(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._samplers:
            self._samplers.follow()

    @override
    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._in_batch = True
        if self._samplers:
            self._samplers.begin_batch()

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self.logging_interval == "step" and (self.every_n_steps or is_logged(trainer)):
            self._log(trainer, steps_taken(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_batch = False
        # The epoch's last step, at which the Trainer logs its own epoch metrics.
        step = steps_taken(trainer) - 1
        if self.logging_interval == "epoch":
            self._log(trainer, step)
        if "figures" in self._drawn and self._samplers and trainer.is_global_zero:
            self._history.log_figures(trainer.loggers, self._samplers.labels, step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._detach()

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(self.custom_scalars, bool):
            check_bands(pl_module, self.custom_scalars, self.parts)
        find_layers = WatchedLayers(trainer, pl_module, self.layers, self.max_layers, self.parts)
        interval = (
            ends_epoch if self.logging_interval == "epoch" else self.every_n_steps or is_logged
        )
        others = [
            *(HEALTH_MEASURES if self.health else ()),
            *(HISTOGRAM_MEASURES if "histograms" in self._drawn else ()),
            *(FIGURE_MEASURES if "figures" in self._drawn else ()),
        ]
        self._samplers = Samplers(
            trainer, find_layers, self._chosen, others, self._drawn, self._steps, interval
        )

    def _log(self, trainer: Trainer, step: int) -> None:
        samplers = [*(self._samplers or ())]
        samples = {sampler.prefix: sampler.take_sample() or {} for sampler in samplers}
        if self._samplers:
            self._samplers.tell_of_absent(samples)
        # Every process samples and publishes the numbers for other callbacks; only one writes them.
        points = points_of(samples, {sampler.prefix: sampler.statistics for sampler in samplers})
        publish(trainer, points)
        if not points or not trainer.is_global_zero:
            return
        write_points(trainer, points, step, self._bands, "histograms" in self._drawn)
        self._state_tables.write(trainer, samplers, step)
        if self.health:
            self._health.check(points, step)
        if "figures" in self._drawn:
            self._history.add(points, step, trainer.current_epoch)

    def _detach(self) -> None:
        self._steps = self.state_dict()["steps"]
        if self._samplers:
            self._samplers.detach()
        self._samplers = None
