"""The table of what an optimizer keeps of each layer, a text that TensorBoard shows as a table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.util.tensor_util import make_ndarray

from aida_lightning._lightning import TensorBoardLogger
from aida_lightning.logs import tags
from aida_lightning.logs.events import read_folder
from aida_lightning.logs.writing import tags_of

_HEAD = ("Optimizer", "Layer", "Shape", "State (bytes)", "Second moment (bytes)")
_TAG = re.compile(
    rf"(?:(?P<optimizer>.+)/)?(?:[^/]+-)?{tags.OPTIMIZER_STATE}/text_summary"
)  # as the monitor's tags, after which TensorBoard's SummaryWriter adds the suffix
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class LayerState:
    """What an optimizer keeps of one layer.

    Attributes:
        optimizer: name of the optimizer's class.
        shape: shape of the layer.
        state_bytes: size of all tensors in the optimizer's state of the layer, in bytes.
        second_moment_bytes: size of the second moment among them; 0 if the optimizer keeps none for
            each element.
    """

    optimizer: str
    shape: tuple[int, ...]
    state_bytes: int
    second_moment_bytes: int


def log_states(
    logger: TensorBoardLogger, prefix: str, states: Mapping[str, LayerState], step: int
) -> None:
    """Write the table of an optimizer, of which TensorBoard's Text tab shows each that was written.

    Args:
        logger: the logger.
        prefix: name of the optimizer, empty if there is only one.
        states: what it keeps of each layer, by the layer's name.
        step: step of the Trainer.
    """
    rows = [
        (
            state.optimizer,
            layer.replace("|", r"\|"),
            " × ".join(map(str, state.shape)),
            str(state.state_bytes),
            str(state.second_moment_bytes),
        )
        for layer, state in states.items()
    ]
    lines = [" | ".join(row) for row in (_HEAD, ["---"] * len(_HEAD), *rows)]
    name = logger.group_separator.join([*([prefix] if prefix else []), tags.OPTIMIZER_STATE])
    (tag,) = tags_of(logger, [name])
    logger.experiment.add_text(tag, "\n".join(f"| {line} |" for line in lines), step)


def read_states(folder: str | Path) -> dict[str | None, dict[str, LayerState]]:
    """Read the tables of a run, by the optimizer's name (None for a single one) and the layer's.

    Args:
        folder: folder that holds the run's event files.
    """
    found: dict[str | None, dict[str, LayerState]] = {}
    for event in read_folder(folder):
        for value in event.summary.value:
            if match := _TAG.fullmatch(value.tag):
                text = make_ndarray(value.tensor).item().decode()
                found.setdefault(match["optimizer"], {}).update(_parsed(text))
    return found


def _parsed(text: str) -> dict[str, LayerState]:
    states = {}
    for line in text.splitlines()[2:]:
        _, optimizer, layer, shape, *sizes, _ = (cell.strip() for cell in _CELL.split(line))
        state_bytes, second_moment_bytes = map(int, sizes)
        lengths = tuple(int(length) for length in shape.split(" × ") if length)
        states[layer.replace(r"\|", "|")] = LayerState(
            optimizer, lengths, state_bytes, second_moment_bytes
        )
    return states
