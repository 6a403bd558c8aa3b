"""The private names of other packages that the code touches, which no other module does.

Each is here because its package has no public name for the same thing. Its docstring says what is
lost when a release drops it, and ``tests/test_private_apis.py`` says it in a sentence.
"""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import optimizer as torch_optimizer

if TYPE_CHECKING:
    from aida_lightning._lightning import (
        Callback,
        LightningArgumentParser,
        Logger,
        TensorBoardLogger,
        Trainer,
    )

# What torch's own optimizers are made of: whether foreach is best for some parameters, on which
# devices a step can be captured in a graph, the dtype of the count of steps, and how the option
# `differentiable` is obeyed. Without one of them aida_lightning cannot be imported, and it has to
# be written out here.
default_to_fused_or_foreach = torch_optimizer._default_to_fused_or_foreach
capturable_devices = torch_optimizer._get_capturable_supported_devices
step_dtype = torch_optimizer._get_scalar_dtype
use_grad_for_differentiable = torch_optimizer._use_grad_for_differentiable

# The parametrization of nn.utils.parametrizations.weight_norm. Without it the callbacks cannot be
# imported; the gains are then to be told by their names.
WeightNormParametrization = parametrizations._WeightNorm

# What torch.compile, activation checkpointing, FSDP1 and Lightning's wrappers put into the names of
# parameters. A name that changes stays in the tags of the runs, and in the keys of checkpoints.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")


def check_graph_capture(optimizer: Any) -> None:
    """Warn of a step that is captured in a CUDA graph without ``capturable``, as torch's do.

    Under no name at all, the step goes on unchecked.
    """
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(optimizer, name):  # the second in older torch
            getattr(optimizer, name)()
            return


def is_flattened(param: Tensor) -> bool:
    """Tell whether FSDP1 made the parameter of several layers.

    Without the mark FSDP1 is not refused, and layerwise sums run over what is no layer.
    """
    return bool(getattr(param, "_fsdp_flattened", False))


def weight_norm_hooks(module: nn.Module) -> list[WeightNorm]:
    """Return what the older ``nn.utils.weight_norm`` made of a module.

    Without them the gains of weight normalization are taken for weights.
    """
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]


def cpp_code_cache() -> Any:
    """Return what compiles C++ for torch.compile, which takes seconds to import.

    Without it ``fused=True`` on a CPU warns and goes on unfused.
    """
    from torch._inductor.codecache import CppCodeCache

    return CppCodeCache


def steps_taken(trainer: "Trainer") -> int:
    """Return the number of batches that ended in a step, which Lightning logs its metrics at.

    The public ``global_step`` counts the steps of all optimizers. Without it nothing is logged at
    the step of Lightning's own curves.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def accumulates(trainer: "Trainer") -> bool:
    """Tell whether the batch that is under way ends in no step, for gradients are accumulated.

    Without it points would be logged at batches that the Trainer logs nothing at.
    """
    return bool(trainer.fit_loop._should_accumulate())


def is_last_batch(trainer: "Trainer") -> bool:
    """Tell whether the data ends with the batch that is under way.

    Without it an epoch's end is not known before its last batch is over.
    """
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def updates_logs(trainer: "Trainer") -> bool:
    """Tell whether ``log_every_n_steps`` asks for metrics at the batch that is under way.

    Without it points would not be at the steps of Lightning's own.
    """
    return bool(trainer._logger_connector.should_update_logs)


def callback_metrics_of(trainer: "Trainer") -> MutableMapping[str, Tensor]:
    """Return what EarlyStopping and ModelCheckpoint read; the public property is a copy of it.

    Without it a monitor's statistics cannot be monitored by other callbacks.
    """
    metrics: MutableMapping[str, Tensor] = trainer._logger_connector._callback_metrics
    return metrics


def state_key(callback: "Callback", **options: Any) -> str:
    """Return the key of a callback's state in checkpoints, which tells its options.

    Without it two callbacks of a class have one key, and Lightning refuses them.
    """
    return str(callback._generate_state_key(**options))


def starts_script_again(trainer: "Trainer") -> bool:
    """Tell whether the Trainer's strategy runs the whole program again in every process.

    Without the class's name a comparison is not refused there, and each process starts its own.
    """
    launcher = type(trainer.strategy.launcher)
    return any(cls.__name__ == "_SubprocessScriptLauncher" for cls in launcher.__mro__)


def optimizers_of(parser: "LightningArgumentParser") -> dict[str, tuple[Any, str]]:
    """Return the keys of the optimizers that a parser knows, each with its base and its link.

    Without it optimizers are built with the model, and not over what ``configure_model`` makes.
    """
    return dict(parser._optimizers)


def lr_schedulers_of(parser: "LightningArgumentParser") -> dict[str, tuple[Any, str]]:
    """Return the same of LR schedulers."""
    return dict(parser._lr_schedulers)


def prefix_of(logger: "Logger | TensorBoardLogger") -> str:
    """Return the prefix that a logger of Lightning's puts before names of metrics.

    Without it the tags of scalars lack it, and the Custom Scalars tab finds none of them.
    """
    return str(logger._prefix or "")  # type: ignore[union-attr]


def add_event(writer: Any, event: Any, step: int) -> None:
    """Write an event of any kind by a SummaryWriter, which has public methods for some alone.

    Lightning writes the hyperparameters by this way too. Without it there are neither scalars in
    one event, nor restarts, nor a Custom Scalars tab.
    """
    writer._get_file_writer().add_event(event, step)


def has_comet(writer: Any) -> bool:
    """Tell whether tensorboardX mirrors every scalar to Comet.

    Without the mark the mirror gets none of ours.
    """
    config: Any = getattr(writer, "_comet_config", None) or {"disabled": True}
    return not config.get("disabled", False)


def tensorboard_x_tag(tag: str) -> str:
    """Return the tag that tensorboardX makes of a name.

    Without it names with unusual characters have other tags than tensorboardX's own scalars.
    """
    from tensorboardX.summary import _clean_tag

    return str(_clean_tag(tag))
