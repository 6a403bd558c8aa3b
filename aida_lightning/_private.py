"""The private names of other packages that the code uses, which no other module does.

Each name is here because its package has no public name for the same thing. The docstring says what
is lost if a release drops it, and ``tests/test_private_apis.py`` repeats it in a sentence.
"""

from collections.abc import MutableMapping, Sequence
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

# Building blocks of torch's own optimizers: whether foreach is best for some parameters, on which
# devices a graph can capture a step, the dtype of the step count, and the decorator for the option
# `differentiable`. Without one of them, aida_lightning cannot be imported, and it has to be written
# out here.
default_to_fused_or_foreach = torch_optimizer._default_to_fused_or_foreach
capturable_devices = torch_optimizer._get_capturable_supported_devices
step_dtype = torch_optimizer._get_scalar_dtype
use_grad_for_differentiable = torch_optimizer._use_grad_for_differentiable

# The parametrization of nn.utils.parametrizations.weight_norm. Without it, the callbacks cannot be
# imported; the gains must then be recognized by their names.
WeightNormParametrization = parametrizations._WeightNorm

# The parts that torch.compile, activation checkpointing, FSDP1 and Lightning's wrappers add to
# parameter names. If one changes, it stays in the tags of runs and in the keys of checkpoints.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")


def check_graph_capture(optimizer: Any) -> None:
    """Warn if a CUDA graph captures a step without ``capturable``, as torch's optimizers do.

    Without either name, the step continues unchecked.
    """
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(optimizer, name):  # Older torch has the second.
            getattr(optimizer, name)()
            return


def is_flattened(param: Tensor) -> bool:
    """Tell whether FSDP1 joined several layers into the parameter.

    Without the mark, FSDP1 is not refused, and layerwise sums run over parameters that are no
    layers.
    """
    return bool(getattr(param, "_fsdp_flattened", False))


def chunks_of(placement: Any, tensor: Tensor, count: int) -> Sequence[Tensor]:
    """Split a tensor as a DTensor's placement splits it over so many processes.

    Without it, the monitor cannot log parts of layers that processes share.
    """
    chunks: Sequence[Tensor] = placement._split_tensor(tensor, count, with_padding=False)[0]
    return chunks


def weight_norm_hooks(module: nn.Module) -> list[WeightNorm]:
    """Return the hooks that the older ``nn.utils.weight_norm`` added to a module.

    Without them, the gains of weight normalization count as weights.
    """
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]


def cpp_code_cache() -> Any:
    """Return the C++ compiler of torch.compile, which takes seconds to import.

    Without it, ``fused=True`` on a CPU warns and continues unfused.
    """
    from torch._inductor.codecache import CppCodeCache

    return CppCodeCache


def steps_taken(trainer: "Trainer") -> int:
    """Return the number of batches that ended in a step, the step at which Lightning logs.

    The public ``global_step`` counts the steps of all optimizers. Without this number, nothing is
    logged at the steps of Lightning's own curves.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def accumulates(trainer: "Trainer") -> bool:
    """Tell whether the current batch ends without a step, because gradients are accumulated.

    Without it, points would be logged at batches at which the Trainer logs nothing.
    """
    return bool(trainer.fit_loop._should_accumulate())


def is_last_batch(trainer: "Trainer") -> bool:
    """Tell whether the data ends with the current batch.

    Without it, an epoch's end is unknown until its last batch is over.
    """
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def updates_logs(trainer: "Trainer") -> bool:
    """Tell whether ``log_every_n_steps`` asks for metrics at the current batch.

    Without it, points would not be at the steps of Lightning's own metrics.
    """
    return bool(trainer._logger_connector.should_update_logs)


def callback_metrics_of(trainer: "Trainer") -> MutableMapping[str, Tensor]:
    """Return the metrics that EarlyStopping and ModelCheckpoint read.

    The public property is a copy. Without the original, other callbacks cannot use a monitor's
    statistics.
    """
    metrics: MutableMapping[str, Tensor] = trainer._logger_connector._callback_metrics
    return metrics


def state_key(callback: "Callback", **options: Any) -> str:
    """Return the key of a callback's state in checkpoints, which contains its options.

    Without it, two callbacks of a class have the same key, and Lightning refuses them.
    """
    return str(callback._generate_state_key(**options))


def starts_script_again(trainer: "Trainer") -> bool:
    """Tell whether the Trainer's strategy runs the whole program again in every process.

    Without the class's name, a comparison is not refused, and each process starts its own.
    """
    launcher = type(trainer.strategy.launcher)
    return any(cls.__name__ == "_SubprocessScriptLauncher" for cls in launcher.__mro__)


def optimizers_of(parser: "LightningArgumentParser") -> dict[str, tuple[Any, str]]:
    """Return the keys of a parser's optimizers, each with its base and its link.

    Without it, optimizers are built with the model, and not over the parameters that
    ``configure_model`` creates.
    """
    return dict(parser._optimizers)


def lr_schedulers_of(parser: "LightningArgumentParser") -> dict[str, tuple[Any, str]]:
    """Return the keys of a parser's LR schedulers, as ``optimizers_of`` does."""
    return dict(parser._lr_schedulers)


def prefix_of(logger: "Logger | TensorBoardLogger") -> str:
    """Return the prefix that a Lightning logger adds to the names of metrics.

    Without it, the tags of scalars lack the prefix, and the Custom Scalars tab finds none of them.
    """
    return str(logger._prefix or "")  # type: ignore[union-attr]


def add_event(writer: Any, event: Any, step: int) -> None:
    """Write an event of any kind with a SummaryWriter, which has public methods only for some.

    Lightning writes the hyperparameters in this way, too. Without it, there are neither scalars in
    one event, nor restarts, nor a Custom Scalars tab.
    """
    writer._get_file_writer().add_event(event, step)


def has_comet(writer: Any) -> bool:
    """Tell whether tensorboardX mirrors every scalar to Comet.

    Without the mark, the mirror receives none of the package's scalars.
    """
    config: Any = getattr(writer, "_comet_config", None) or {"disabled": True}
    return not config.get("disabled", False)


def tensorboard_x_tag(tag: str) -> str:
    """Return the tag that tensorboardX makes of a name.

    Without it, the tags of names with unusual characters differ from tensorboardX's own scalars.
    """
    from tensorboardX.summary import _clean_tag

    return str(_clean_tag(tag))


def submitit_options() -> set[str]:
    """Return the names of the options that submitit's AutoExecutor takes, here and under SLURM.

    Without it an unknown option is refused in submitit's own words, without the nearest names.
    """
    from submitit import AutoExecutor, LocalExecutor, SlurmExecutor

    names = {"slurm_max_num_timeout", *AutoExecutor._valid_parameters()}
    for executor in (LocalExecutor, SlurmExecutor):
        names |= {f"{executor.name()}_{option}" for option in executor._valid_parameters()}
    return names
