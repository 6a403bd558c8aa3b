"""A callback that trains a LightningModule with another optimizer than its own."""

from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer, SparseAdam
from typing_extensions import override

from aida_lightning._lightning import (
    Callback,
    DeepSpeedStrategy,
    LightningModule,
    LightningOptimizer,
    MisconfigurationException,
    Trainer,
)
from aida_lightning.callbacks._handover import dropped_options, hand_over
from aida_lightning.callbacks._schedulers import (
    Scheduler,
    base_rates,
    bound_to,
    drives,
    is_scheduler,
    leaves,
    unwrapped,
)
from aida_lightning.optim import LayerwiseOptimizer
from aida_lightning.registry import (
    OptimizerLike,
    build_optimizer,
    check_options,
    check_sparse,
    get_optimizer_class,
    layer_name,
    sparse_layers,
)


class UseOptimizer(Callback):
    """Replace the optimizer that a LightningModule configures, and leave the module as it is.

    The new optimizer has the parameters of the old one in the same groups, whether they require a
    gradient or not, and no others. The LR schedulers stay, with their interval, frequency and
    monitor, and are bound to the new optimizer: torch's, what derives from them, and timm's. The
    new optimizer's options come from three places:

    - Options that are given here win. ``lr`` becomes the rate of the group with the highest
      learning rate: its base or, under ``OneCycleLR`` and ``CyclicLR``, the top of its cycle. All
      other rates, of groups and in schedulers, keep their ratio to it. ``weight_decay`` keeps the
      ratios between the groups as well, so that a group without decay stays without.
    - Options that mean the same to both optimizers are otherwise the module's own, group by group:
      ``lr``, ``betas``, ``weight_decay`` and ``maximize``. If the module decays any weights, it
      also decides whether the decay is decoupled, except for AdamW, whose name says it.
    - All others have the new optimizer's defaults.

    A line says what was done: the learning rates from before the schedule, the schedulers, and the
    options of the old optimizer that the new one lacks, where they are not the defaults.

    The module's ``configure_optimizers`` is called once per fit, with the model built, sharded and
    on its device, and before a checkpoint's state is restored. Hooks that it registers on its
    optimizer stay with the old one.

    Args:
        optimizer: a name such as ``"aida"`` (``list_optimizers`` returns them all), a class of
            optimizers or its path, or a callable that is given the groups and the options.
        options: the optimizer's own options.

    Raises:
        MisconfigurationException: the optimizer or an option is unknown or out of range. At the
            start of a fit: the module configures no optimizer or several, a scheduler cannot drive
            the new optimizer, the gradients of some embeddings are sparse and it takes none, the
            strategy is DeepSpeed, which builds its own, or the checkpoint is one of another
            optimizer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from aida_lightning.callbacks import UseOptimizer
        >>> use = UseOptimizer("aida", lr=1e-3, k=1)
        >>> trainer = Trainer(callbacks=[use], accelerator="cpu", logger=False)
    """

    def __init__(self, optimizer: OptimizerLike, **options: Any) -> None:
        # A command line may pass build_optimizer's default for it.
        if options.pop("no_decay_1d", False):
            raise MisconfigurationException(
                "UseOptimizer keeps the groups that the module makes, it has no `no_decay_1d`"
            )
        try:
            if isinstance(optimizer, str) or not callable(optimizer):
                build_optimizer(optimizer, [nn.Parameter(torch.zeros(1))], **options)
            elif isinstance(optimizer, type):
                check_options(optimizer, options)
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

        # All strategies ask here, and Lightning checks what it is given.
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
        # torch would load the state, and fail at the next step or go on from wrong numbers.
        raise MisconfigurationException(
            "UseOptimizer cannot resume from the checkpoint, "
            + (f"whose optimizer is {saved}, not {self._name}" if saved else "saved without it")
            + "; resume as the checkpoint was trained, or load its weights alone with "
            "`load_from_checkpoint`"
        )

    def _replace(self, pl_module: LightningModule, configured: Any) -> Any:
        name = f"{type(pl_module).__name__}.configure_optimizers"
        returned = [*leaves(configured)]
        optimizers = [leaf for leaf in returned if isinstance(leaf, Optimizer | LightningOptimizer)]
        if len(optimizers) != 1:
            classes = [type(unwrapped(optimizer)).__name__ for optimizer in optimizers]
            raise MisconfigurationException(
                f"UseOptimizer replaces a single optimizer, {name} returned "
                + (f"{len(classes)} ({', '.join(classes)})" if classes else f"{configured!r}")
                + "; build the optimizers there, with `aida_lightning.build_optimizer`"
            )
        old = unwrapped(optimizers[0])
        for leaf in returned:
            if leaf is not optimizers[0] and drives(leaf, old) and not is_scheduler(leaf):
                raise MisconfigurationException(
                    f"UseOptimizer cannot bind a {type(leaf).__name__} to another optimizer, only "
                    "what derives from torch.optim.lr_scheduler.LRScheduler and what has "
                    "`base_values`, as timm's schedulers; build the optimizer in "
                    f"{name} instead, with `aida_lightning.build_optimizer`"
                )
        schedulers = bound_to(old, [*returned, *vars(pl_module).values()])
        new = self._build(pl_module, old)
        sparse = sparse_layers(pl_module)
        if isinstance(old, SparseAdam):  # which takes no other gradients
            sparse |= {param: layer_name(name) for name, param in pl_module.named_parameters()}
        try:
            check_sparse(new, sparse)
        except ValueError as error:
            raise MisconfigurationException(f"UseOptimizer: {error}") from error
        hand_over(old, new, schedulers, self.options)
        self._name = type(new).__name__
        self._report(pl_module, old, new, schedulers)
        return apply_to_collection(configured, (Optimizer, LightningOptimizer), lambda _: new)

    def _build(self, pl_module: LightningModule, old: Optimizer) -> Optimizer:
        groups = [{"params": group["params"]} for group in old.param_groups]
        new = build_optimizer(self.optimizer, groups, **self.options)
        names = {param: name for name, param in pl_module.named_parameters()}
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
                "give `lr` to choose it"
            )
        for option in ("weight_decay", "maximize"):
            if option not in new.defaults and any(g.get(option) for g in old.param_groups):
                rank_zero_warn(
                    f"UseOptimizer drops the {option.replace('_', ' ')} of {before}: {after} has "
                    "none"
                )
        for name, value in vars(pl_module).items():
            if unwrapped(value) is old or drives(value, old):
                rank_zero_warn(
                    f"{type(pl_module).__name__}.{name} still is the {before} that UseOptimizer "
                    "replaced, or holds it; the module has to use `self.optimizers()` instead"
                )


def _listed(rates: list[float]) -> str:
    """List learning rates, each once; of many the least, the highest and their number."""
    distinct = [*dict.fromkeys(f"{rate:g}" for rate in rates)]
    if len(distinct) <= 4:
        return ", ".join(distinct)
    return f"{min(rates):g} to {max(rates):g} ({len(distinct)} rates)"
