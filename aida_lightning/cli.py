"""LightningCLI with the optimizers by name: ``AidaCLI(Model)``, and ``aida-lightning fit``."""

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

# A callback's bare name, as in --trainer.callbacks+=StepsizeMonitor, is looked for among the
# classes that are imported.
import aida_lightning.callbacks  # noqa: F401
from aida_lightning._arguments import named_classes
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
    check_sparse,
    get_optimizer_class,
    list_optimizers,
    sparse_layers,
)

# The same function in each distribution.
instantiate_class = find("pytorch.cli.instantiate_class")[0]


class AidaCLI(LightningCLI):
    """LightningCLI that takes optimizers by name and builds them once the model is there.

    ``--optimizer aida --optimizer.k 1`` needs no import, whatever the name's case;
    ``--optimizer.help aida`` lists the options, whose defaults are the class's own. Other
    optimizers, LR schedulers and callbacks are given as to LightningCLI.

    LightningCLI builds the optimizer with the model. A model that makes, replaces or shards its
    layers in ``configure_model`` then trains without a word and without moving. Here, the optimizer
    and the LR scheduler are built when the Trainer asks for them, over the parameters of then.

    ``--optimizer`` wins over the model's own ``configure_optimizers``, that of ``OptimizerMixin``
    and its ``optimizer`` included, and over its LR scheduler.

    It is the LightningCLI of ``lightning.pytorch`` or of ``pytorch_lightning``, with its Trainer:
    of the one that ``trainer_class`` is of, or else the model, or else another class that is given
    or that the arguments and the files of ``--config`` name.

    Args:
        args: the positional arguments of ``LightningCLI``.
        kwargs: its keyword arguments. A ``parser_class`` has to derive from
            ``NamesArgumentParser`` for names to be known.

    Example:
        A script ``train.py`` of these lines is run as ``python train.py fit --optimizer aida``::

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
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for key, cls in self._named:
            if not fits(cls, self._package):
                parser.error(f"{key}: {_mismatch(cls, self._package)}")
        super().parse_arguments(parser, args)

    @override
    def instantiate_classes(self) -> None:
        optimizers, lr_schedulers = self._automatic(self.config)
        # LightningCLI itself refuses several.
        late = self.auto_configure_optimizers and max(len(optimizers), len(lr_schedulers)) < 2
        if late:
            self.auto_configure_optimizers = False  # it would build the optimizer here
            parser = self._parser(self.subcommand)
            is_fixed = any(isinstance(base, type) for base, _ in lr_schedulers_of(parser).values())
            if optimizers:
                _check_options(parser, optimizers[0])
            elif lr_schedulers and not is_fixed:
                parser.error(
                    "--lr_scheduler needs --optimizer; the model's own optimizer has the LR "
                    "scheduler that the model gives it"
                )
        super().instantiate_classes()
        if late and optimizers:
            model, specs = self.model, chain(*self._automatic(self.config_init))
            if loses := _loses(model):
                rank_zero_warn(f"{type(model).__name__}.{loses} gives way to --optimizer")
            # Not a method that holds the CLI: the model may be sent to other processes.
            model.configure_optimizers = partial(
                _configure, model, self.configure_optimizers, *specs
            )

    def _automatic(self, config: Namespace) -> tuple[list[Any], list[Any]]:
        """Return the optimizers and the LR schedulers that are given and linked to nothing."""
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
        args: the subcommand and its arguments; by default those of this process.

    Returns:
        The exit code, 0.

    Raises:
        SystemExit: the arguments were refused, or asked for no run (``--help``); the code is that
            to exit with.
    """
    # Their classes then go by bare names, in configuration files too. It takes 0.1 s.
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
        f"{cls.__module__}.{cls.__qualname__} is of {package_of(cls)}, but the Trainer is of "
        f"{package}; all that a Trainer is given has to be of its own package"
    )


def _loses(model: LightningModule) -> str | None:
    """Name what the model says of its optimizer, other than a mixin's name of it."""
    if not isinstance(model, OptimizerMixin):
        return "configure_optimizers" if is_overridden("configure_optimizers", model) else None
    declared = ("optimizer_options", "lr_scheduler")
    return " and ".join(name for name in declared if getattr(model, name)) or None


def _configure(model: Any, configure: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
    built = instantiate_class(model.parameters(), optimizer)
    check_sparse(built, sparse_layers(model))
    return configure(model, built, lr_scheduler and instantiate_class(built, lr_scheduler))


def _check_options(parser: LightningArgumentParser, optimizer: Any) -> None:
    """Refuse an option out of range now, not when the data is there and the model is built."""
    cls = resolve_name(optimizer["class_path"])
    if cls not in map(get_optimizer_class, list_optimizers()):
        return  # it may refuse the parameter below
    try:
        instantiate_class([torch.nn.Parameter(torch.zeros(1))], optimizer)
    except (TypeError, ValueError, RuntimeError) as error:
        parser.error(f"--optimizer {cls.__name__}: {error}")
