"""The monitor of each layer's adaptive stepsizes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from aida_lightning.diagnostics import has_stepsize, mean_and_std, stepsize

STATISTICS = ("stepsize_mean", "stepsize_std")


class StepsizeMonitor(Callback):
    r"""Log the mean and the standard deviation of each layer's adaptive stepsizes.

    A layer is one parameter tensor; its adaptive stepsizes are the elements of
    :math:`s = 1 / \sqrt{v / (1 - \beta_2^t)}`, without the learning rate. Both numbers go to every
    logger of the Trainer, as ``stepsize_mean/<layer>`` and ``stepsize_std/<layer>`` with the
    parameter's name in the module; the deviation is the population's (divided by n). Where there
    are several optimizers their names go first: ``Adam/stepsize_mean/<layer>``,
    ``Adam-1/stepsize_mean/<layer>``. The step that they are logged at is that of the Trainer's own
    metrics.

    A step is sampled when the optimizer has really taken it: once for all accumulated gradients,
    and not if the gradient scaler of mixed precision left it out. Steps in between are counted;
    a sampled one costs a pass over the watched layers and one transfer to the host.

    Args:
        layers: globs of parameter names, such as ``["features.*.weight"]``. None chooses the weight
            tensors, those of 2 or more dimensions.
        every_n_steps: log every n-th step of an optimizer. None takes the Trainer's
            ``log_every_n_steps``.
        logging_interval: ``"step"``, or ``"epoch"`` to log at the end of each training epoch.

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
    ) -> None:
        if logging_interval not in ("step", "epoch"):
            raise MisconfigurationException(
                f"logging_interval must be 'step' or 'epoch', got {logging_interval!r}"
            )
        if every_n_steps is not None:
            if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int):
                raise MisconfigurationException(
                    f"every_n_steps must be an int >= 1 or None, got {every_n_steps!r}"
                )
            if every_n_steps < 1:
                raise MisconfigurationException(f"every_n_steps must be >= 1, got {every_n_steps}")
            if logging_interval == "epoch":
                raise MisconfigurationException(
                    f"every_n_steps={every_n_steps} has no meaning with logging_interval='epoch'"
                )
        self.layers = [layers] if isinstance(layers, str) else layers
        if self.layers is not None and not self.layers:
            raise MisconfigurationException(
                "layers must name at least one glob, or be None, got []"
            )
        self.every_n_steps = every_n_steps
        self.logging_interval = logging_interval
        self._watched: list[_Watched] = []
        self._steps: dict[str, int] = {}

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            layers=self.layers,
            every_n_steps=self.every_n_steps,
            logging_interval=self.logging_interval,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._steps = {}  # what a checkpoint holds is restored after this

    @override
    def state_dict(self) -> dict[str, Any]:
        counted = {w.name: w.steps for w in self._watched if w.steps is not None}
        return {"steps": self._steps | counted}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = dict(state_dict["steps"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.loggers:
            raise MisconfigurationException(
                "Cannot use `StepsizeMonitor` callback with `Trainer` that has no logger."
            )
        self._detach()
        layers = self._choose_layers(pl_module)
        every_n_steps: int = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        for name, optimizer in _named(trainer.optimizers):
            if not has_stepsize(optimizer):
                rank_zero_warn(
                    f"StepsizeMonitor logs nothing of {type(optimizer).__name__}, which has no "
                    "adaptive stepsizes that are known; if it has any, register a function for "
                    "its class with `aida_lightning.stepsize.register`."
                )
                continue
            prefix = (name,) if len(trainer.optimizers) > 1 else ()
            watched = _Watched(name, optimizer, prefix, layers, self._steps.get(name))
            # Rank zero alone samples and writes, so that no process ever waits for another.
            if self.logging_interval == "step" and every_n_steps and trainer.is_global_zero:
                watched.sample_after_steps(every_n_steps, trainer)
            self._watched.append(watched)

    @override
    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        for watched in self._watched:
            watched.depth = 0  # were it not, a step had raised

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.logging_interval == "epoch" and trainer.is_global_zero:
            for watched in self._watched:
                watched.sample()
            # The epoch's last step, which the Trainer logs its own epoch metrics at.
            self._log(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._detach()

    def _choose_layers(self, pl_module: LightningModule) -> dict[Tensor, str]:
        """Map the parameters to log to their names, in the module's order.

        Those that no optimizer has yet are among them, for a callback may unfreeze them later.
        """
        # torch.compile wraps a module and adds to its parameters' names.
        names: dict[Tensor, str] = {
            param: name.replace("_orig_mod.", "") for name, param in pl_module.named_parameters()
        }
        there = [*names.values()]
        if self.layers is None:
            chosen = {param: name for param, name in names.items() if param.ndim >= 2}
            if not chosen:
                raise MisconfigurationException(
                    "StepsizeMonitor found no parameter of 2 or more dimensions; choose layers "
                    f"with `layers`, there are: {there}"
                )
            return chosen
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in there):
                raise MisconfigurationException(
                    f"StepsizeMonitor found no layer that matches {pattern!r}, there are: {there}"
                )
        return {
            param: name
            for param, name in names.items()
            if any(fnmatchcase(name, pattern) for pattern in self.layers)
        }

    def _log(self, trainer: Trainer, step: int) -> None:
        samples = [sample for watched in self._watched for sample in watched.take_samples()]
        if not samples:
            return
        # The one transfer to the host.
        values = torch.stack([sample.values.to(samples[0].values) for sample in samples]).tolist()
        for logger in trainer.loggers:
            separator = logger.group_separator
            metrics = {
                separator.join([*sample.prefix, statistic, sample.layer]): number
                for sample, (*numbers, skipped) in zip(samples, values, strict=True)
                if not skipped
                for statistic, number in zip(STATISTICS, numbers, strict=True)
            }
            if metrics:
                logger.log_metrics(metrics, step=step)

    def _detach(self) -> None:
        self._steps = self.state_dict()["steps"]
        for watched in self._watched:
            watched.detach()
        self._watched = []


@dataclass
class _Sample:
    prefix: tuple[str, ...]
    layer: str
    values: Tensor  # mean, standard deviation, and whether the step was left out


@dataclass
class _Watched:
    """An optimizer whose steps are counted and, now and then, sampled."""

    name: str
    optimizer: Optimizer
    prefix: tuple[str, ...]
    layers: dict[Tensor, str]
    steps: int | None  # taken so far; None until the first of a run that restored no count
    depth: int = 0
    samples: list[_Sample] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def sample_after_steps(self, every_n_steps: int, trainer: Trainer) -> None:
        """Count the steps that had a gradient to take, and sample every n-th."""

        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.depth += 1

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            # torch calls the hooks again where a subclass's step calls that of its base.
            self.depth -= 1
            params = (param for group in optimizer.param_groups for param in group["params"])
            if self.depth or all(param.grad is None for param in params):
                return
            if self.steps is None:
                self.steps = trainer.fit_loop.epoch_loop._batches_that_stepped
            self.steps += 1
            if self.steps % every_n_steps == 0:
                self.sample()

        self.handles = [
            self.optimizer.register_step_pre_hook(before_step),
            self.optimizer.register_step_post_hook(after_step),
        ]

    def sample(self) -> None:
        """Compute the statistics, on the device; of several steps in one batch the last counts."""
        groups = {
            param: group for group in self.optimizer.param_groups for param in group["params"]
        }
        # Set while a gradient scaler leaves it to the optimizer, as torch's fused Adam, to skip a
        # step; whether it did is known on the device only.
        skipped = getattr(self.optimizer, "found_inf", None)
        self.samples = []
        for param, name in self.layers.items():
            if param in groups and param.numel() and (state := self.optimizer.state.get(param)):
                values = mean_and_std(stepsize(self.optimizer, groups[param], state))
                flag = values.new_zeros(1) if skipped is None else skipped.reshape(1).to(values)
                self.samples.append(_Sample(self.prefix, name, torch.cat((values, flag))))

    def take_samples(self) -> list[_Sample]:
        samples, self.samples = self.samples, []
        return samples

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()


def _named(optimizers: list[Optimizer]) -> list[tuple[str, Optimizer]]:
    """Name the optimizers by their classes; those of one class are Adam, Adam-1, Adam-2."""
    seen: Counter[str] = Counter()
    named = []
    for optimizer in optimizers:
        name = type(optimizer).__name__
        named.append((f"{name}-{seen[name]}" if seen[name] else name, optimizer))
        seen[name] += 1
    return named
