"""The layers that figures and tables show: their choice, their names and their curves."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from aida_lightning.figures.plotting import Look, XOf, over_seeds, smoothed
from aida_lightning.logs.curves import FloatArray
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import MonitoredRun
from aida_lightning.registry import matches_layer

# The name of an original tensor of torch.nn.utils.parametrize, with the computed tensor's name.
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*(?=$|\[)")


def pick_layers(runs: Sequence[MonitoredRun], look: Look, default: Sequence[int]) -> dict[int, str]:
    """Choose the layers to show, and number them from 1 at the input.

    Weight tensors come first, or all layers count if no name identifies a weight. The paper does
    not number other layers; their numbers follow those of the weights.

    Raises:
        EventsError: a requested layer does not exist; the message names the nearest three.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.layers))
    weights = weights_of(runs)
    numbered = dict(enumerate([*weights, *(name for name in names if name not in weights)], 1))
    if look.layers is None:
        return {number: numbered[number] for number in default if number in numbered}
    numbers = {str(number): [number] for number in numbered}
    found: set[int] = set()
    for wanted in map(str, look.layers):
        some = numbers.get(wanted) or [
            number
            for number, name in numbered.items()
            if any(matches_layer(it, wanted) for it in (name, short_name(name)))
        ]
        if not some:
            shown = [short_name(name) for name in numbered.values()]
            nearest = ", ".join(get_close_matches(short_name(wanted), shown, cutoff=0.0))
            raise EventsError(
                f"layers: {wanted!r} is none of the layers 1 to {len(shown)}, nor does it match "
                f"the name of one; the nearest are: {nearest}"
            )
        found.update(some)
    return {number: numbered[number] for number in sorted(found)}


def short_name(layer: str) -> str:
    """Shorten a layer's name to the form that figures and tables show.

    Example:
        >>> short_name("model.features.3.weight")
        'features.3'
    """
    tensor = _PARAMETRIZED.sub(r"\1", layer)
    return tensor.removeprefix("model.").removesuffix(".weight")


def check_logged(runs: Sequence[MonitoredRun], statistics: Sequence[str]) -> None:
    """Raise an error unless a run has one of the statistics, which are given as tags."""
    if not any(run.statistics.get(statistic) for run in runs for statistic in statistics):
        there = sorted({statistic for run in runs for statistic in run.statistics})
        if not any(statistic.startswith("stepsize_") for statistic in there):
            raise EventsError(
                "no run has adaptive stepsizes, which these figures show, because no optimizer has "
                f"any; there are {', '.join(there)}, which `aida-lightning summary` tabulates"
            )
        raise EventsError(
            f"no run has {' or '.join(statistics)}, there are {', '.join(there)}; "
            "StepsizeMonitor(statistics=[…]) chooses the statistics to log"
        )


def layer_line(
    seeds: Sequence[MonitoredRun], layer: str, statistic: str, x_of: XOf, look: Look
) -> tuple[FloatArray, FloatArray]:
    """Return the x and y of one layer's statistic, averaged over the seeds."""
    curves = [
        (x_of(run, curve), smoothed(curve.values, look.smooth))
        for run in seeds
        if (curve := run.statistics.get(statistic, {}).get(layer)) is not None
    ]
    x, mean, _ = over_seeds(curves) if curves else over_seeds([])
    return x, mean


def by_label(runs: Sequence[MonitoredRun]) -> dict[str, list[MonitoredRun]]:
    """Group runs by their labels, which the seeds of one optimizer share."""
    grouped: dict[str, list[MonitoredRun]] = {}
    for run in runs:
        grouped.setdefault(run.label, []).append(run)
    return grouped


def weights_of(runs: Sequence[MonitoredRun]) -> list[str]:
    """List the layers whose names identify weights, or all layers if no name does."""
    names = list(dict.fromkeys(name for run in runs for name in run.layers))
    weights = {}
    for name in names:
        tensor = _PARAMETRIZED.sub(r"\1", name)
        # nn.MultiheadAttention has an in_proj_weight, nn.LSTM a weight_hh_l0.
        if "weight" in tensor.rpartition(".")[2]:
            weights[tensor] = name  # for weight_norm, the direction and not the gain
    return [*weights.values()] or names
