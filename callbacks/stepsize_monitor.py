"""The monitor of each layer's adaptive stepsizes."""

import time
from collections.abc import Sequence
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
from aida_lightning.callbacks._writing import forget, publish, write_points
from aida_lightning.logs.restart import drop_orphans
from aida_lightning.measuring._statistics import (
    WITHOUT_STEPSIZES,
    choose_statistics,
    points_of,
)

# Where in a checkpoint it is noted when it was saved, and before which step.
_SAVED = "aida_lightning.StepsizeMonitor"
# The arguments by which a checkpoint tells several monitors apart.
_KEY = "layers every_n_steps logging_interval statistics max_layers histograms figures".split()


class StepsizeMonitor(Callback):
    r"""Log statistics of each layer's adaptive stepsizes, or of its updates where there are none.

    By default they are the mean and the standard deviation of the stepsizes. Of an optimizer
    without any they are ``update_ratio``, ``update_norm``, ``weight_norm``, ``gradient_norm`` and,
    where there is a momentum, ``gradient_cosine``; one line says so when training starts.

    A layer is one parameter tensor. Its adaptive stepsizes are the elements of
    :math:`s = 1 / \sqrt{v / (1 - \beta_2^t)}`, without the learning rate. Every logger of the
    Trainer is given the numbers, as ``stepsize_mean/<layer>`` and ``stepsize_std/<layer>`` with the
    parameter's name in the module; the deviation is the population's (divided by n). Where there
    are several optimizers, or one that holds others, their names go first:
    ``Adam-1/stepsize_mean/<layer>``. They are logged at the step that the Trainer logs its own
    metrics at, and are in its ``callback_metrics`` for other callbacks, such as
    ``EarlyStopping("stepsize_mean/<layer>")``. One that acts at the end of the epoch that the
    monitor logs comes after it in the Trainer's list.

    A step is sampled when the optimizer has really taken it: once for all accumulated gradients,
    and not if the gradient scaler of mixed precision left it out. (Of torch's fused optimizers the
    device alone knows that. It is read at the logged steps, and once more for each time that steps
    were left out between two of them.) A sample holds the layers whose gradient the optimizer took
    at that step: one that was frozen, or not used, has no point there. Steps in between are
    counted; a sampled one costs a pass over the watched layers, one transfer to the host, and one
    write.

    TensorBoard's Custom Scalars tab shows the layers as lines of few charts, and each one's band
    from mean - std to mean + std. A run that was killed and is resumed in the same folder shows no
    point twice.

    ``statistics`` may name these, which are of the stepsizes unless another thing is said:

    - ``mean``, ``std``, ``min``, ``max``, ``std_over_mean``, ``median``, and the quantiles ``q01``
      to ``q99``, which sort the layer. They are logged as ``stepsize_<name>/<layer>``.
    - ``ceiling_share``: the share of elements within 0.1 % of the family's ceiling
      :math:`\sqrt{(1 - \beta_2) / \epsilon}`.
    - ``effective_mean``, ``effective_std``: those times :math:`\eta / (1 - \beta_1^t)`.
    - ``update_norm``, ``update_ratio``: :math:`\|\Delta x\|` and :math:`\|\Delta x\| / \|x\|` of
      the step, :math:`x` from before it. Outside of the family they take a copy of the watched
      layers before each step that is logged.
    - ``weight_norm``: :math:`\|x\|` after the step.
    - ``gradient_norm``: :math:`\|g\|` of the gradient that the optimizer was given, after
      accumulation, unscaling and clipping.
    - ``gradient_cosine``: the cosine of the angle between the momentum and that gradient.

    All norms are Euclidean, over all elements of a layer.

    An optimizer's last step is logged at each step that the Trainer logs its metrics at, or with
    ``logging_interval="epoch"`` at each epoch's end; without a step since the last time there is no
    point. If it was taken before the last batch, or in a batch that became the last when
    ``trainer.should_stop`` was set, there is no ``gradient_norm`` and no ``gradient_cosine``, and
    outside of the family no ``update_norm`` and no ``update_ratio``.

    Args:
        layers: names of parameters or globs of them, such as ``["features.*.weight"]``, without
            what wrappers add to them. A tied parameter has several names, a parametrized one that
            of its result too. None chooses the weights: the tensors of 2 or more dimensions, and a
            ``weight`` of one dimension where its module has no other and is no norm (known by
            "norm" in the name of its class or of its place). Where none of them is trained, None
            chooses all that is.
        every_n_steps: log every n-th step of an optimizer; of several in one batch the last. None
            logs at the Trainer's own steps, see above.
        logging_interval: ``"step"``, or ``"epoch"`` to log at the end of each training epoch.
        statistics: names of statistics, see above.
        max_layers: log at most this many layers of those that are trained, evenly spread over the
            module, and warn. Those that are trained later fill the places that are left. None logs
            all of them.
        custom_scalars: write TensorBoard's Custom Scalars layout, and the edges of its bands as two
            more tags per layer that has one. Categories of a layout that was written before are
            kept. Of each optimizer 12 layers have a band, evenly spread over the depth; globs of
            layers' names choose others, with a warning where one matches none.
        histograms: log the stepsizes' histograms, as ``stepsizes/<layer>``, to TensorBoard, W&B and
            Comet. One line names the loggers that take none.
        figures: draw Figures 1 and 2 of arXiv:2203.13273 and a heatmap of all layers, as
            ``stepsizes/std``, ``stepsizes/mean`` and ``stepsizes/heatmap``, for TensorBoard, W&B,
            MLflow and Comet at the end of each training epoch, of all that was logged since the run
            started or went on. One line names the loggers that take none.
        health: warn, once each, with the layers' names, when a number is not finite, and, from
            step :math:`1 / (1 - \beta_2)` on, when all stepsizes of a layer are at the ceiling or
            their deviation exceeds 10 times their mean.

    Raises:
        MisconfigurationException: an argument is not allowed, the Trainer has no logger, or a glob
            matches no layer.

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
        try:
            self._chosen = choose_statistics(self.statistics)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._samplers: Samplers | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget what earlier runs left behind; what a checkpoint holds is restored after this."""
        self._steps: dict[str, int] = {}
        self._saved: dict[str, Any] | None = None
        self._in_batch = False
        self._drawn: list[str] = []
        self._health = Health()
        self._history = History()
        globs = None if isinstance(self.custom_scalars, bool) else self.custom_scalars
        self._bands = Bands(globs) if self.custom_scalars else None

    @property
    @override
    def state_key(self) -> str:
        # The others are in it where they differ from the default, as older checkpoints lack them.
        others = ("custom_scalars", "health")
        names = [*_KEY, *(name for name in others if getattr(self, name) is not True)]
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
                logger.save()  # so that a run that is killed has logged all up to here

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
        # The epoch's last step, which the Trainer logs its own epoch metrics at.
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
            check_bands(pl_module, self.custom_scalars)
        find_layers = WatchedLayers(trainer, pl_module, self.layers, self.max_layers)
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
        # Every process samples, and has the numbers for what else follows them; one writes.
        points = points_of(samples, {sampler.prefix: sampler.statistics for sampler in samplers})
        publish(trainer, points)
        if not points or not trainer.is_global_zero:
            return
        write_points(trainer, points, step, self._bands, "histograms" in self._drawn)
        if self.health:
            self._health.check(points, step)
        if "figures" in self._drawn:
            self._history.add(points, step, trainer.current_epoch)

    def _detach(self) -> None:
        self._steps = self.state_dict()["steps"]
        if self._samplers:
            self._samplers.detach()
        self._samplers = None
