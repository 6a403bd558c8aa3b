"""A LightningCLI that takes optimizers by name: ``AidaCLI(Model)`` and ``aida-lightning fit``."""

import sys
from functools import partial
from inspect import signature
from itertools import chain
from pkgutil import resolve_name
from typing import Any

import torch
from jsonargparse import Namespace
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

# jsonargparse looks for a callback's bare name, as in --trainer.callbacks+=StepsizeMonitor, among
# the imported classes.
import aida_lightning.callbacks  # noqa: F401
from aida_lightning._arguments import named_classes
from aida_lightning._layers import check_sparse, sparse_layers
from aida_lightning._lightning import (
    LightningArgumentParser,
    LightningCLI,
    LightningModule,
    MisconfigurationException,
    find,
    find_in,
    fits,
    follow,
    is_overridden,
    package_of,
)
from aida_lightning._names import NamesArgumentParser, returned_class
from aida_lightning._private import lr_schedulers_of, optimizers_of
from aida_lightning.mixin import OptimizerMixin
from aida_lightning.registry import (
    build_optimizer,
    for_any_layer,
    get_optimizer_class,
    list_optimizers,
    try_groups,
)

# The same function in each distribution.
instantiate_class = find("pytorch.cli.instantiate_class")[0]


class AidaCLI(LightningCLI):
    """A LightningCLI that takes optimizers by name and builds them after the model is complete.

    ``--optimizer aida --optimizer.k 1`` needs no import, and the name's case does not matter.
    ``--optimizer.help aida`` lists the options with the class's own defaults. Other optimizers, LR
    schedulers and callbacks are given as in LightningCLI.

    LightningCLI builds the optimizer together with the model. A model that makes, replaces or
    shards its layers in ``configure_model`` then trains without a warning but never changes.
    ``AidaCLI`` builds the optimizer and the LR scheduler when the Trainer asks for them, over the
    parameters that the model has at that time.

    ``--optimizer_groups`` divides the layers by patterns of their names, each with its own options,
    such as ``'{"*.bias": {"weight_decay": 0.0}, "backbone.*": {"lr": 1e-4}}'``, or by a preset
    (see ``build_optimizer``). It stands beside ``--optimizer``, as ``--lr_scheduler`` does, because
    the options below ``--optimizer`` are the arguments of the optimizer's class.

    ``--optimizer`` overrides the model's own ``configure_optimizers`` and LR scheduler, including
    those of ``OptimizerMixin`` and its ``optimizer``.

    The class follows the LightningCLI and the Trainer of ``lightning.pytorch`` or of
    ``pytorch_lightning``. The package is that of ``trainer_class``, otherwise of the model,
    otherwise of another class that is given or that the arguments and the ``--config`` files name.

    Args:
        args: positional arguments of ``LightningCLI``.
        kwargs: keyword arguments of ``LightningCLI``. A ``parser_class`` must derive from
            ``NamesArgumentParser``, so that the parser knows the names.

    Example:
        Save these lines as ``train.py`` and run ``python train.py fit --optimizer aida``::

            from aida_lightning.cli import AidaCLI

            if __name__ == "__main__":
                AidaCLI(Model, DataModule)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        theirs = find("pytorch.cli.LightningCLI")[0].__init__
        given = signature(theirs).bind_partial(self, *args, **kwargs).arguments
        given.setdefault("parser_class", NamesArgumentParser)
        line = given.get("args")
        self._named = named_classes(sys.argv[1:] if line is None else line)
        keys = ("trainer_class", "model_class", "datamodule_class")
        classes = [returned_class(given[key]) for key in keys if given.get(key)]
        self._package = package_of(*classes, *(cls for _, cls in self._named))
        for cls in classes:
            if not fits(cls, self._package):
                raise MisconfigurationException(_mismatch(cls, self._package))
        follow(self, self._package)
        find_in(self._package, "pytorch.cli.LightningCLI").__init__(**given)

    @override
    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_core_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            parser.add_argument(
                "--optimizer_groups",
                type=dict[str, dict[str, Any]] | str | None,
                default=None,
                help='Options of layers by patterns of their names, such as \'{"*.bias": '
                '{"weight_decay": 0.0}}\', where the first match wins; or no_decay_1d; or '
                "layer_decay:0.75. The other layers have the options of --optimizer.",
            )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for key, cls in self._named:
            if not fits(cls, self._package):
                parser.error(f"{key}: {_mismatch(cls, self._package)}")
        super().parse_arguments(parser, args)

    @override
    def instantiate_classes(self) -> None:
        optimizers, lr_schedulers = self._automatic(self.config)
        # LightningCLI itself refuses more than one.
        late = self.auto_configure_optimizers and max(len(optimizers), len(lr_schedulers)) < 2
        if late:
            self.auto_configure_optimizers = False  # it would build the optimizer here
            parser = self._parser(self.subcommand)
            is_fixed = any(isinstance(base, type) for base, _ in lr_schedulers_of(parser).values())
            if optimizers:
                _check_options(parser, optimizers[0], self._groups(self.config))
            elif lr_schedulers and not is_fixed:
                parser.error(
                    "--lr_scheduler needs --optimizer; the model's own optimizer keeps the LR "
                    "scheduler that the model gives it"
                )
        if self._groups(self.config) is not None and not (late and optimizers):
            self._parser(self.subcommand).error(
                "--optimizer_groups needs --optimizer; a model that configures its own optimizer "
                "makes the groups, too, as with the option `groups` of `build_optimizer`"
            )
        super().instantiate_classes()
        if late and optimizers:
            model, specs = self.model, chain(*self._automatic(self.config_init))
            if loses := _loses(model):
                rank_zero_warn(f"--optimizer overrides {type(model).__name__}.{loses}")
            # Not a method that holds the CLI, because the model may be sent to other processes.
            model.configure_optimizers = partial(
                _configure,
                model,
                self.configure_optimizers,
                self._groups(self.config_init),
                *specs,
            )

    def _groups(self, config: Namespace) -> Any:
        return config.get(str(self.subcommand), config).get("optimizer_groups")

    def _automatic(self, config: Namespace) -> tuple[list[Any], list[Any]]:
        """Return the given optimizers and LR schedulers that are linked to nothing."""
        parser = self._parser(self.subcommand)
        chosen: tuple[list[Any], list[Any]] = [], []
        known = optimizers_of(parser), lr_schedulers_of(parser)
        for found, added in zip(chosen, known, strict=True):
            for key, (base, link_to) in added.items():
                given = config.get(str(self.subcommand), config).get(key)
                if isinstance(base, type):
                    path = f"{base.__module__}.{base.__qualname__}"
                    given = {"class_path": path, "init_args": given or {}}
                if link_to == "AUTOMATIC" and given:
                    found.append(given)
        return chosen


def run_lightning_cli(args: list[str] | None = None) -> int:
    """Run ``aida-lightning fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: subcommand and its arguments; None takes those of this process.

    Returns:
        The exit code, 0.

    Raises:
        SystemExit: the arguments are refused, or request no run (``--help``). Its code is the exit
            code.
    """
    # The import makes bare class names work, also in configuration files. It takes 0.1 s.
    import aida_lightning.datamodules
    import aida_lightning.example_modules  # noqa: F401

    AidaCLI(
        args=args,
        seed_everything_default=0,
        parser_kwargs={
            "prog": "aida-lightning",
            "description": "Train and evaluate any LightningModule, such as --model "
            "ImageClassifier --data DigitsDataModule.",
        },
    )
    return 0


def _mismatch(cls: type, package: str) -> str:
    return (
        f"{cls.__module__}.{cls.__qualname__} belongs to {package_of(cls)}, but the Trainer "
        f"belongs to {package}; give a Trainer only classes of its own package"
    )


def _loses(model: LightningModule) -> str | None:
    """Name the model's declarations about its optimizer, except a mixin's optimizer name."""
    if not isinstance(model, OptimizerMixin):
        return "configure_optimizers" if is_overridden("configure_optimizers", model) else None
    declared = ("optimizer_options", "lr_scheduler")
    return " and ".join(name for name in declared if getattr(model, name)) or None


def _configure(
    model: Any, configure: Any, groups: Any, optimizer: Any, lr_scheduler: Any = None
) -> Any:
    if groups is None:
        built = instantiate_class(model.parameters(), optimizer)
        check_sparse(built, sparse_layers(model))
    else:
        options = optimizer.get("init_args", {})
        cls = resolve_name(optimizer["class_path"])
        built = build_optimizer(cls, model, groups=groups, **options)
    return configure(model, built, lr_scheduler and instantiate_class(built, lr_scheduler))


def _check_options(parser: LightningArgumentParser, optimizer: Any, groups: Any) -> None:
    """Refuse an option out of range now, before the data is ready and the model is built."""
    cls = resolve_name(optimizer["class_path"])
    if cls in map(get_optimizer_class, list_optimizers()):
        # Another class may refuse the parameter below.
        try:
            options = for_any_layer(cls, optimizer.get("init_args", {}))
            instantiate_class(
                [torch.nn.Parameter(torch.zeros(1))], {**optimizer, "init_args": options}
            )
        except (TypeError, ValueError, RuntimeError) as error:
            parser.error(f"--optimizer {cls.__name__}: {error}")
    try:
        try_groups(cls, groups, optimizer.get("init_args", {}))
    except (TypeError, ValueError) as error:
        parser.error(f"--optimizer_groups: {str(error).removeprefix('groups: ')}")
