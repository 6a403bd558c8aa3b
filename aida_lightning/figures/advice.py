"""Advice on which layers' second moments can be averaged, made only from event files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from aida_lightning.figures.globs import globs_of
from aida_lightning.figures.table import print_table
from aida_lightning.logs import tags
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import LoggedRun, choose_labels, read_runs
from aida_lightning.logs.states import LayerState, read_states

Average: TypeAlias = Literal["layer", "rows", "nothing"]

# The member of the family that averages the second moment of each optimizer.
AVERAGED = {
    **dict.fromkeys(("Adam", "AdamW", "AdamPlus", "AdamL", "LAdam"), "ladam"),
    **dict.fromkeys(("AdaBelief", "AdaBeliefL", "LAdaBelief"), "ladabelief"),
    **dict.fromkeys(("Aida", "LAida"), "laida"),
}
_PARTITIONS: dict[Average, str | None] = {"layer": None, "rows": "rows", "nothing": "elements"}


@dataclass(frozen=True)
class LayerAdvice:
    """What was measured of one layer, and what that advises.

    Attributes:
        state: the layer's shape, and the size of what the optimizer keeps of it.
        snr: median of the ratio over the logged steps; None if it was not logged.
        snr_rows: the same of the ratio within rows; None if it was not logged.
        average: what the second moment can be averaged over.
    """

    state: LayerState
    snr: float | None
    snr_rows: float | None
    average: Average

    @property
    def averaged(self) -> bool:
        """Whether the optimizer keeps a state of the layer, but no second moment per element."""
        return self.state.state_bytes > 0 and not self.state.second_moment_bytes

    @property
    def saved_bytes(self) -> float:
        """The part of the optimizer's state, in bytes, that the averaging saves."""
        kept = {"layer": 1, "rows": self.state.shape[0] if self.state.shape else 1}
        elements = prod(self.state.shape)
        return self.state.second_moment_bytes * (1 - kept.get(self.average, elements) / elements)


@dataclass(frozen=True)
class Advice:
    """What can be averaged in an optimizer's state, as its ``snr`` and ``snr_rows`` advise.

    Attributes:
        label: label of the runs, with the optimizer's name if a run had several.
        optimizer: name of the optimizer's class.
        threshold: smallest ratio at which the mean takes the place of the elements.
        runs: number of runs, the seeds, that were read.
        steps: largest number of steps at which a run logged a layer.
        layers: advice by layer, for all layers that the optimizer holds a state of.
    """

    label: str
    optimizer: str
    threshold: float
    runs: int
    steps: int
    layers: dict[str, LayerAdvice] = field(default_factory=dict)

    @property
    def method(self) -> str | None:
        """The name of the member of the family that averages; None if the family has none."""
        return AVERAGED.get(self.optimizer)

    @property
    def groups(self) -> dict[str, dict[str, str]]:
        """The options of each group, by globs of layer names, of which the first match decides.

        Layers whose whole second moment is averaged, the member's default, need none. Layers that
        the run averaged already have none either: their own groups are to be kept.
        """
        partitions = {
            name: None if layer.averaged else _PARTITIONS[layer.average]
            for name, layer in self.layers.items()
        }
        globs = globs_of(partitions, default=None)
        return {glob: {"partition": partition} for glob, partition in globs.items() if partition}

    @property
    def state_bytes(self) -> int:
        """The size of the optimizer's state, in bytes."""
        return sum(layer.state.state_bytes for layer in self.layers.values())

    @property
    def saved_bytes(self) -> float:
        """The part of it that the averaging saves."""
        return sum(layer.saved_bytes for layer in self.layers.values())


def advise(
    logdirs: Sequence[str | Path],
    threshold: float = 1.0,
    optimizers: Sequence[str] | None = None,
) -> list[Advice]:
    """Advise on what to average in the state of each monitored optimizer.

    For each layer, the median of ``snr`` and of ``snr_rows`` is taken over all logged steps, of all
    seeds. The coarsest choice whose ratio is at least the threshold is the advice: the whole layer
    by ``snr``, then its rows by ``snr_rows``, and nothing otherwise. A layer that was not measured
    keeps its elements.

    Args:
        logdirs: folders that hold runs with ``StepsizeMonitor(statistics=["snr", "snr_rows"])``, at
            any depth.
        threshold: smallest ratio at which to average, a number above 0.
        optimizers: globs of the labels to show, case-insensitive; None shows all.

    Returns:
        One advice per label and optimizer.

    Raises:
        EventsError: a folder or an optimizer does not exist, or no run has the statistics.
    """
    runs = read_runs(logdirs)
    by_label: dict[str, list[_Measured]] = {}
    for run in runs:
        for measured in _measured(run):
            by_label.setdefault(measured.label, []).append(measured)
    if not by_label:
        raise EventsError(
            f"none of the {len(runs)} run(s), the first in {runs[0].path}, has the scalars "
            f"{tags.SNR}/<layer> and {tags.SNR_ROWS}/<layer> with the table of the optimizer's "
            'state; StepsizeMonitor("*", statistics=["snr", "snr_rows"]) writes all of them to a '
            "TensorBoardLogger"
        )
    labels = choose_labels(by_label, optimizers)
    return [_advice(label, by_label[label], threshold) for label in labels]


def print_advice(advice: Advice, console: Console) -> None:
    """Print the table of an advice, what it saves, and the options to paste."""
    measured = {n: layer for n, layer in advice.layers.items() if layer.snr is not None}
    seeds = f" of {advice.runs} seeds" if advice.runs > 1 else ""
    table = Table(title=f"{advice.label}: medians over {advice.steps} logged steps{seeds}")
    table.add_column("Layer", overflow="fold")
    for column in ("Shape", "SNR", "SNR, rows", "Average", "Saves"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, layer in measured.items():
        shape = " × ".join(map(str, layer.state.shape)) or "1"
        ratios = ("–" if r is None else f"{r:.3g}" for r in (layer.snr, layer.snr_rows))
        saves = f"{_share(layer.saved_bytes, advice):.1f} %"
        table.add_row(name, shape, *ratios, layer.average, saves)
    print_table(table, console)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    say(
        f"Total: {_share(advice.saved_bytes, advice):.1f} % of the optimizer's state, "
        f"{decimal(round(advice.saved_bytes))} of {decimal(advice.state_bytes)}, at a threshold of "
        f"{advice.threshold:g}."
    )
    if averaged := [name for name, layer in advice.layers.items() if layer.averaged]:
        say(f"Averaged already, so keep the groups of these: {_first(averaged)}.")
    if left := [name for name in advice.layers if name not in {*measured, *averaged}]:
        say(
            f"Not measured, so nothing is averaged there: {_first(left)}. "
            'StepsizeMonitor("*", max_layers=None, …) measures all layers.'
        )
    if all(layer.average == "nothing" for layer in measured.values()):
        say(f"No ratio reaches the threshold: keep {advice.optimizer}.")
    elif advice.method is None:
        say(f"The family has no optimizer that averages the second moment of {advice.optimizer}.")
    else:
        say(_to_paste(advice))


def _to_paste(advice: Advice) -> str:
    groups, method = advice.groups, advice.method
    # In AdamW's place, it is to decay the weights as AdamW does.
    options: dict[str, Any] = (
        {"decoupled_weight_decay": True} if advice.optimizer == "AdamW" else {}
    )
    options |= {"groups": groups} if groups else {}
    as_yaml = yaml.safe_dump(options, sort_keys=False) if options else "(none)\n"
    as_python = {name: repr(value) for name, value in options.items()}
    if groups:
        lines = (f"        {glob!r}: {options!r},\n" for glob, options in groups.items())
        as_python["groups"] = f"{{\n{''.join(lines)}    }}"
    arguments = "".join(f"    {name}={value},\n" for name, value in as_python.items())
    return (
        f"\nThe options of {method}, as YAML:\n\n{as_yaml}\nand as Python:\n\n"
        f"build_optimizer(\n    {method!r},\n    module,\n{arguments})"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _share(part: float, advice: Advice) -> float:
    return 100 * part / advice.state_bytes


@dataclass(frozen=True)
class _Measured:
    """The ratios that one optimizer of one run logged, of each layer by statistic."""

    label: str
    states: dict[str, LayerState]
    ratios: dict[str, dict[str, list[float]]] = field(default_factory=dict)


def _measured(run: LoggedRun) -> list[_Measured]:
    states = read_states(run.path)
    found: dict[str | None, _Measured] = {}
    for tag, curve in run.scalars.items():
        parts = tags.parse_monitor_tag(tag)
        if parts and parts.statistic in tags.OF_THE_SECOND_MOMENT and parts.optimizer in states:
            name = parts.optimizer
            label = f"{run.label} {name}" if name else run.label
            measured = found.setdefault(name, _Measured(label, states[name]))
            measured.ratios.setdefault(parts.layer, {})[parts.statistic] = curve.values.tolist()
    return [*found.values()]


def _advice(label: str, seeds: Sequence[_Measured], threshold: float) -> Advice:
    states = {name: state for seed in seeds for name, state in seed.states.items()}
    layers = {}
    for name, state in states.items():
        snr, snr_rows = (
            _median([x for seed in seeds for x in seed.ratios.get(name, {}).get(statistic, [])])
            for statistic in tags.OF_THE_SECOND_MOMENT
        )
        average: Average = "nothing"
        if snr is not None and snr >= threshold and prod(state.shape) > 1:
            average = "layer"
        elif snr_rows is not None and snr_rows >= threshold:
            average = "rows"
        layers[name] = LayerAdvice(state, snr, snr_rows, average)
    curves = (c for seed in seeds for of_layer in seed.ratios.values() for c in of_layer.values())
    optimizer = next(iter(states.values())).optimizer
    return Advice(label, optimizer, threshold, len(seeds), max(map(len, curves)), layers)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
