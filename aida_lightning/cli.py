"""LightningCLI with the optimizers by name: ``AidaCLI(Model)``, and ``aida-lightning fit``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jsonargparse._util import import_object
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    instantiate_class,
)
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from typing_extensions import override

# A callback's bare name, as in --trainer.callbacks+=StepsizeMonitor, is looked for among the
# classes that are imported.
import aida_lightning.callbacks  # noqa: F401
from aida_lightning._names import NamesArgumentParser
from aida_lightning.mixin import OptimizerMixin
from aida_lightning.registry import get_optimizer_class, list_optimizers


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

    Args:
        args: as those of ``LightningCLI``.
        kwargs: as those of ``LightningCLI``; a ``parser_class`` has to derive from
            ``NamesArgumentParser`` for names to be known.

    Example:
        A script ``train.py`` of these lines is run as ``python train.py fit --optimizer aida``::

            from aida_lightning.cli import AidaCLI

            if __name__ == "__main__":
                AidaCLI(Model, DataModule)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parser_class", NamesArgumentParser)
        super().__init__(*args, **kwargs)

    @override
    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        if not self.auto_configure_optimizers:
            return
        parser = self._parser(subcommand)
        optimizers = self._chosen(parser._optimizers)
        lr_schedulers = parser._lr_schedulers
        schedulers = self._chosen(lr_schedulers)
        if len(optimizers) > 1 or len(schedulers) > 1:
            super()._add_configure_optimizers_method_to_model(subcommand)  # raises
        if not optimizers:
            if schedulers and all(isinstance(base, tuple) for base, _ in lr_schedulers.values()):
                parser.error(
                    "--lr_scheduler needs --optimizer; the model's own optimizer has the LR "
                    "scheduler that the model gives it"
                )
            return
        _check_options(parser, optimizers[0])
        if loses := _loses(self.model):
            rank_zero_warn(f"{type(self.model).__name__}.{loses} gives way to --optimizer")
        # Not a method that holds the CLI: the model may be sent to other processes.
        self.model.configure_optimizers = partial(
            _configure, self.model, self.configure_optimizers, optimizers[0], *schedulers
        )

    def _chosen(self, registered: Mapping[str, tuple[Any, str]]) -> list[dict[str, Any]]:
        """Return the class path and the options of what was given to be used automatically."""
        chosen = []
        for key, (base, link_to) in registered.items():
            given = self._get(self.config_init, key)
            if not isinstance(base, tuple):
                path = f"{base.__module__}.{base.__qualname__}"
                given = {"class_path": path, "init_args": given or {}}
            if link_to == "AUTOMATIC" and given:
                chosen.append(given)
        return chosen


def main(args: list[str] | None = None) -> int:
    """Run ``aida-lightning fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: the subcommand and its arguments; by default those of this process.

    Returns:
        The exit code, 0.

    Raises:
        SystemExit: the arguments were refused, or asked for no run (``--help``); the code is that
            to exit with.
    """
    # These too are found by their bare names then.
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


def _loses(model: LightningModule) -> str | None:
    """Name what the model says of its optimizer, other than a mixin's name of it."""
    if not isinstance(model, OptimizerMixin):
        overridden = is_overridden("configure_optimizers", model)
        return "configure_optimizers" if overridden else None
    declared = ("optimizer_options", "lr_scheduler")
    return " and ".join(name for name in declared if getattr(model, name)) or None


def _configure(
    model: LightningModule,
    configure: Callable[..., Any],
    optimizer: dict[str, Any],
    scheduler: dict[str, Any] | None = None,
) -> Any:
    built = instantiate_class(model.parameters(), optimizer)
    return configure(model, built, instantiate_class(built, scheduler) if scheduler else None)


def _check_options(parser: LightningArgumentParser, optimizer: dict[str, Any]) -> None:
    """Refuse an option out of range now, not when the data is there and the model is built."""
    cls = import_object(optimizer["class_path"])
    if cls not in map(get_optimizer_class, list_optimizers()):
        return  # it may refuse the parameter below
    try:
        instantiate_class([nn.Parameter(torch.zeros(1))], optimizer)
    except (TypeError, ValueError, RuntimeError) as error:
        parser.error(f"--optimizer {cls.__name__}: {error}")
