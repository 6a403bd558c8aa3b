"""A callback that trains a LightningModule with an optimizer other than its own."""

from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer, SparseAdam
from typing_extensions import override

from aida_lightning._layers import check_sparse, layer_name, sparse_layers
from aida_lightning._lightning import (
    Callback,
    DeepSpeedStrategy,
    LightningModule,
    LightningOptimizer,
    MisconfigurationException,
    Trainer,
)
from aida_lightning.callbacks._handover import dropped_options, hand_over
from aida_lightning.callbacks._regrouping import apply_options, divide_groups
from aida_lightning.callbacks._schedulers import (
    Scheduler,
    base_rates,
    bound_to,
    drives,
    is_scheduler,
    leaves,
    unwrapped,
)
from aida_lightning.groups import LayerGroup
from aida_lightning.optim import LayerwiseOptimizer
from aida_lightning.registry import (
    OptimizerLike,
    build_optimizer,
    check_options,
    for_any_layer,
    get_optimizer_class,
    try_groups,
)


class UseOptimizer(Callback):
    """Replace the optimizer that a LightningModule configures, without changing the module.

    The new optimizer holds exactly the parameters of the old one, in the same groups, whether or
    not they require a gradient. ``groups`` and ``no_decay_1d`` divide each of these groups further,
    by the names of the module's layers; see ``build_optimizer``. The LR schedulers keep their
    interval, frequency and monitor, and are bound to the new optimizer. This works for torch's
    schedulers, their subclasses, and timm's.

    The new optimizer's options come from four places:

    - The options of a pattern in ``groups`` hold for its layers. Its ``lr`` is a base rate, and a
      preset's scale multiplies the group's own rate; schedules scale both.
    - Options that you pass here take precedence. ``lr`` becomes the rate of the group with the
      highest learning rate: its base rate or, under ``OneCycleLR`` and ``CyclicLR``, the top of its
      cycle. All other rates, in groups and in schedulers, keep their ratio to it. ``weight_decay``
      keeps the ratios between the groups as well, so that a group without decay stays without.
    - Otherwise, options that have the same meaning for both optimizers keep the module's values,
      group by group: ``lr``, ``betas``, ``weight_decay`` and ``maximize``. If the module decays any
      weights, it also decides whether the decay is decoupled; the exception is AdamW, which always
      decouples it.
    - All other options have the new optimizer's defaults.

    A message reports the replacement: the learning rates before the schedule, the schedulers, and
    each option of the old optimizer that the new one lacks and that is not at its default.

    The callback calls the module's ``configure_optimizers`` once per fit, when the model is built,
    sharded and on its device, and before a checkpoint's state is restored. Hooks that this method
    registers on its optimizer stay with the old optimizer.

    Args:
        optimizer: name such as ``"aida"`` (``list_optimizers`` returns all names), an optimizer
            class or its import path, or a callable that takes the groups and the options.
        options: options of the optimizer, and ``groups`` and ``no_decay_1d`` as ``build_optimizer``
            takes them.

    Raises:
        MisconfigurationException: the optimizer or an option is unknown, or an option is out of
            range, also one of a pattern. At the start of a fit: the module configures no optimizer
            or several, a pattern matches none of the optimizer's layers, a scheduler cannot drive
            the new optimizer, some embeddings have sparse gradients that the new optimizer does not
            support, the strategy is DeepSpeed, which builds its own optimizer, or the checkpoint
            belongs to another optimizer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from aida_lightning.callbacks import UseOptimizer
        >>> use = UseOptimizer("aida", lr=1e-3, k=1)
        >>> trainer = Trainer(callbacks=[use], accelerator="cpu", logger=False)
    """

    def __init__(self, optimizer: OptimizerLike, **options: Any) -> None:
        self.groups = options.pop("groups", None)
        self.no_decay_1d = options.pop("no_decay_1d", False)
        try:
            try_groups(optimizer, self.groups, options)
            if isinstance(optimizer, str) or not callable(optimizer):
                tried = for_any_layer(optimizer, options)
                build_optimizer(optimizer, [nn.Parameter(torch.zeros(1))], **tried)
            elif isinstance(optimizer, type):
                check_options(optimizer, options)
            if self.no_decay_1d or self.groups == "no_decay_1d":
                cls = get_optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
                check_options(cls, ["weight_decay"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise MisconfigurationException(f"UseOptimizer: {error}") from error
        self.optimizer = optimizer
        cls = get_optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
        self._name = cls.__name__ if isinstance(cls, type) else None
        self.options = options
        self._restore: Callable[[], None] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise MisconfigurationException(
                "UseOptimizer does not work with DeepSpeedStrategy, which wraps or builds the "
                "optimizer itself; choose ddp, fsdp or ModelParallelStrategy"
            )
        own = vars(pl_module).get("configure_optimizers")
        configure = pl_module.configure_optimizers

        def restore() -> None:
            del pl_module.configure_optimizers
            if own is not None:
                pl_module.configure_optimizers = own  # type: ignore[method-assign]
            self._restore = None

        def configure_optimizers() -> Any:
            restore()
            return self._replace(pl_module, configure())

        # Every strategy calls this method, and Lightning checks what it returns.
        pl_module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]
        self._restore = restore

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._restore is not None:
            self._restore()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._name}

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint["callbacks"].get(self.state_key, {}).get("optimizer")
        if trainer.state.fn != "fit" or (saved and saved == (self._name or saved)):
            return
        # torch would load the state, and then fail at the next step or continue with wrong numbers.
        raise MisconfigurationException(
            "UseOptimizer cannot resume from the checkpoint, "
            + (f"whose optimizer is {saved}, not {self._name}" if saved else "saved without it")
            + "; resume with the optimizer that the checkpoint was trained with, or load only its "
            "weights with `load_from_checkpoint`"
        )

    def _replace(self, pl_module: LightningModule, configured: Any) -> Any:
        name = f"{type(pl_module).__name__}.configure_optimizers"
        returned = [*leaves(configured)]
        optimizers = [leaf for leaf in returned if isinstance(leaf, Optimizer | LightningOptimizer)]
        if len(optimizers) != 1:
            classes = [type(unwrapped(optimizer)).__name__ for optimizer in optimizers]
            raise MisconfigurationException(
                f"UseOptimizer replaces a single optimizer, but {name} returned "
                + (f"{len(classes)} ({', '.join(classes)})" if classes else f"{configured!r}")
                + "; build the optimizers there instead, with `aida_lightning.build_optimizer`"
            )
        old = unwrapped(optimizers[0])
        for leaf in returned:
            if leaf is not optimizers[0] and drives(leaf, old) and not is_scheduler(leaf):
                raise MisconfigurationException(
                    f"UseOptimizer cannot bind a {type(leaf).__name__} to another optimizer. It "
                    "can bind subclasses of torch.optim.lr_scheduler.LRScheduler, and schedulers "
                    "with `base_values`, such as timm's. Build the optimizer in "
                    f"{name} instead, with `aida_lightning.build_optimizer`"
                )
        schedulers = bound_to(old, [*returned, *vars(pl_module).values()])
        parts = []
        if self.groups or self.no_decay_1d:
            parts = divide_groups(old, schedulers, pl_module, self.groups, self.no_decay_1d)
        new = self._build(pl_module, old, parts)
        sparse = sparse_layers(pl_module)
        if isinstance(old, SparseAdam):  # which supports no other gradients
            sparse |= {param: layer_name(name) for name, param in pl_module.named_parameters()}
        try:
            check_sparse(new, sparse)
        except ValueError as error:
            raise MisconfigurationException(f"UseOptimizer: {error}") from error
        hand_over(old, new, schedulers, self.options)
        if parts:
            apply_options(new, schedulers, parts)
        self._name = type(new).__name__
        self._report(pl_module, old, new, schedulers)
        return apply_to_collection(configured, (Optimizer, LightningOptimizer), lambda _: new)

    def _build(
        self, pl_module: LightningModule, old: Optimizer, parts: list[LayerGroup]
    ) -> Optimizer:
        groups = [{"params": group["params"]} for group in old.param_groups]
        for group, part in zip(groups, parts, strict=False):  # if any
            # A partition of the options need not suit the layers of a group that has its own.
            group |= {name: part.options[name] for name in ("partition",) if name in part.options}
        new = build_optimizer(self.optimizer, groups, **self.options)
        names = {param: layer_name(name) for name, param in pl_module.named_parameters()}
        known = all(param in names for group in groups for param in group["params"])
        if known and isinstance(new, LayerwiseOptimizer):
            for group in new.param_groups:
                group["param_names"] = [names[param] for param in group["params"]]
        return new

    def _report(
        self,
        pl_module: LightningModule,
        old: Optimizer,
        new: Optimizer,
        schedulers: list[Scheduler],
    ) -> None:
        before, after = type(old).__name__, type(new).__name__
        rates = _listed(base_rates(new, schedulers))
        others = [*(f"{type(scheduler).__name__} kept" for scheduler in schedulers)]
        for option, values in dropped_options(old, new, schedulers).items():
            others += [f"{option}={value} dropped" for value in dict.fromkeys(map(str, values))]
        rank_zero_info(
            f"UseOptimizer: {', '.join([f'{after} in place of {before}', f'lr {rates}', *others])}"
        )
        if "lr" not in self.options and ("betas" in old.defaults) != ("betas" in new.defaults):
            rank_zero_warn(
                f"UseOptimizer keeps lr {rates} of {before}, which is seldom right for {after}; "
                "pass `lr` to choose another"
            )
        for option in ("weight_decay", "maximize"):
            if option not in new.defaults and any(g.get(option) for g in old.param_groups):
                rank_zero_warn(
                    f"UseOptimizer drops the {option.replace('_', ' ')} of {before}, because "
                    f"{after} does not support it"
                )
        for name, value in vars(pl_module).items():
            if unwrapped(value) is old or drives(value, old):
                rank_zero_warn(
                    f"{type(pl_module).__name__}.{name} still refers to the {before} that "
                    "UseOptimizer replaced; use `self.optimizers()` in the module instead"
                )


def _listed(rates: list[float]) -> str:
    """List each distinct learning rate, or the lowest, the highest and the count of many."""
    distinct = [*dict.fromkeys(f"{rate:g}" for rate in rates)]
    if len(distinct) <= 4:
        return ", ".join(distinct)
    return f"{min(rates):g} to {max(rates):g} ({len(distinct)} rates)"
