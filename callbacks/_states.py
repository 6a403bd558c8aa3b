"""The table of what each optimizer keeps of its layers, written beside the ratios of it."""

from collections.abc import Iterable

from torch import Tensor

from aida_lightning._lightning import TensorBoardLogger, Trainer
from aida_lightning.callbacks._sampling import OptimizerSampler
from aida_lightning.logs import tags
from aida_lightning.logs.states import LayerState, log_states
from aida_lightning.measuring._names import names_of
from aida_lightning.measuring._registered import second_moment


class StateTables:
    """Write to TensorBoard what `aida-lightning advise` needs beside the ratios, once."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}  # how many layers had a state, by the prefix

    def write(self, trainer: Trainer, samplers: Iterable[OptimizerSampler], step: int) -> None:
        """Write a table for each optimizer whose ratios are logged and that took up new layers."""
        for sampler in samplers:
            asked = {statistic.tag for statistic in sampler.statistics}
            count = len(getattr(sampler.optimizer, "state", {}))
            known = (0, self._written.get(sampler.prefix))
            if asked.isdisjoint(tags.OF_THE_SECOND_MOMENT) or count in known:
                continue
            self._written[sampler.prefix] = count
            states = _states_of(trainer, sampler)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    log_states(logger, sampler.prefix, states, step)


def _states_of(trainer: Trainer, sampler: OptimizerSampler) -> dict[str, LayerState]:
    optimizer = sampler.optimizer
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    found = {}
    for param, (name, *_) in names_of(trainer.lightning_module).items():
        if param in groups and (state := optimizer.state.get(param)):
            v = second_moment(optimizer, groups[param], state)
            tensors = (value for value in state.values() if isinstance(value, Tensor))
            found[name] = LayerState(
                type(optimizer).__name__,
                tuple(param.shape),
                sum(map(_bytes_of, tensors)),
                _bytes_of(v) if v is not None and v.shape == param.shape else 0,
            )
    return found


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # of a layer that processes share, of all parts
