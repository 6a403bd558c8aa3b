"""The selection of the setting that represents a method, and the runs that it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aida_lightning.compare.experiment import Experiment
from aida_lightning.compare.methods import OptimizerChoice, UsageError, method_label
from aida_lightning.compare.results import RunResult
from aida_lightning.logs.metric import Metric

Run = tuple[OptimizerChoice, int]


@dataclass(frozen=True)
class Standing:
    """A method of a comparison, with the setting that represents it.

    Args:
        method: label of the method.
        label: label of the method's best setting.
        runs: reported runs of that setting, in the order of the seeds.
        all_runs: runs of all settings, including those used only for the choice.
        settings: number of tried settings.
        edges: a sentence for each swept option whose best value lies at an end of its grid, so that
            better values may lie beyond.
        tuned_on: seeds that chose the setting; empty if there was no choice.
    """

    method: str
    label: str
    runs: list[RunResult]
    all_runs: list[RunResult]
    settings: int
    edges: dict[str, str]
    tuned_on: list[int]

    @property
    def setting(self) -> str:
        """The part of the label that distinguishes the setting within its method."""
        return self.label.removeprefix(self.method).strip()

    @property
    def counted(self) -> list[RunResult]:
        """The reported runs that completed, or all reported runs if none did."""
        return completed(self.runs) or self.runs

    @property
    def tuned_on_reported(self) -> bool:
        """Whether a seed that chose the setting is also reported, which favours the method."""
        return not {run.seed for run in self.runs}.isdisjoint(self.tuned_on)


def completed(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs that completed."""
    return [run for run in runs if run.status == "completed"]


def reported_value(run: RunResult, metric: Metric) -> float | None:
    """Return the logged value by which a run is judged."""
    return run.best if metric.report == "best" else run.last


def over_seeds(values: Sequence[float], metric: Metric) -> float:
    """Combine the values of several seeds into one, as the metric specifies."""
    if metric.over_seeds == "best":  # NumPy's functions return NaN for any order of the seeds
        return float(np.max(values) if metric.better == "max" else np.min(values))
    return float(np.mean(values))


def standings(results: Sequence[RunResult], experiment: Experiment) -> list[Standing]:
    """Choose each method's setting with the best reported value on the choosing seeds.

    A setting that completed on fewer of these seeds ranks below those that completed on more.
    """
    grids = {method_label(method): method.grid for method in experiment.optimizers}
    metric, tune_seeds = experiment.metric, experiment.tune_seeds
    found = []
    for name in dict.fromkeys([*grids, *(run.method for run in results)]):
        all_runs = [run for run in results if run.method == name]
        if not all_runs:
            continue
        by_label: dict[str, list[RunResult]] = {}
        for run in all_runs:
            by_label.setdefault(run.label, []).append(run)
        seeds = list(dict.fromkeys(run.seed for run in all_runs))
        choosing = [seed for seed in seeds if seed in tune_seeds] or seeds
        ranks = {
            label: _rank([run for run in runs if run.seed in choosing], metric)
            for label, runs in by_label.items()
        }
        best = max(ranks, key=lambda label: ranks[label])
        several, known = len(by_label) > 1, ranks[best][0] > 0
        options = by_label[best][0].options
        found.append(
            Standing(
                method=name,
                label=best,
                runs=[run for run in by_label[best] if run.seed not in tune_seeds],
                all_runs=all_runs,
                settings=len(by_label),
                edges=_edges(grids.get(name, {}), options) if several and known else {},
                tuned_on=choosing if several else [],
            )
        )
    return found


def next_runs(
    chosen: Sequence[OptimizerChoice], experiment: Experiment, results: Sequence[RunResult]
) -> list[Run]:
    """Return the runs that can be trained now: first those for choosing, then those to report.

    Args:
        chosen: all settings of all methods.
        experiment: experiment of the runs.
        results: results of the runs so far.

    Returns:
        The runs without a result, in their order; empty when all runs have one.
    """
    settings: dict[str, list[OptimizerChoice]] = {}
    for choice in chosen:
        settings.setdefault(choice.method, []).append(choice)
    swept = [choice for choice in chosen if len(settings[choice.method]) > 1]
    done = {(result.label, result.seed) for result in results}

    def due(optimizers: Sequence[OptimizerChoice], seeds: Sequence[int]) -> list[Run]:
        plan = [(optimizer, seed) for seed in seeds for optimizer in optimizers]
        return [(choice, seed) for choice, seed in plan if (choice.label, seed) not in done]

    if tuning := due(swept, experiment.tune_seeds):
        return tuning
    if experiment.tune_seeds:
        best = {standing.label for standing in standings(results, experiment)}
        chosen = [choice for choice in chosen if choice not in swept or choice.label in best]
    return due(chosen, experiment.seeds)


def find_baseline(wanted: str | None, optimizers: Mapping[str, str]) -> str:
    """Return the label of the method with which the others are compared.

    Args:
        wanted: label of the method, case-insensitive and with underscores for spaces, or the name
            of an optimizer that only this method uses; None selects the first method.
        optimizers: name of each method's optimizer, by the method's label.

    Raises:
        UsageError: no method or more than one matches.

    Example:
        >>> find_baseline("adam", {"Aida K=1": "aida", "Adam lr=0.001": "adam"})
        'Adam lr=0.001'
    """
    if wanted is None:
        return next(iter(optimizers))
    plain = wanted.lower().replace("_", " ")
    found = [label for label in optimizers if label.lower() == plain]
    found = found or [label for label, name in optimizers.items() if name.lower() == wanted.lower()]
    if len(found) != 1:
        matching = "several" if found else "none"
        listed = ", ".join(found or optimizers)
        raise UsageError(
            f"baseline: one method's label is needed, but {wanted!r} is {matching} of {listed}"
        )
    return found[0]


def check_selection(experiment: Experiment) -> None:
    """Refuse a baseline, seeds or a target that allow no comparison.

    Raises:
        UsageError: one of them is refused; the message names it.
    """
    find_baseline(experiment.baseline, {method_label(m): m.name for m in experiment.optimizers})
    if both := sorted({*experiment.seeds}.intersection(experiment.tune_seeds)):
        raise UsageError(
            f"tune_seeds: seeds that choose a setting are not reported, but {both} are among the "
            f"seeds, too: give other seeds than {experiment.seeds}"
        )
    target, metric = experiment.target, experiment.metric
    if target is not None and not np.isfinite(target.value):
        raise UsageError(f"target.value: a finite number is needed, but got {target.value}")
    if target is not None and metric.in_percent and not 0 <= target.value <= 1:
        raise UsageError(
            f"target.value: {metric.name} is logged as a fraction and shown in percent: a value "
            f"from 0 to 1 is needed, but got {target.value:g}"
        )


def _rank(runs: Sequence[RunResult], metric: Metric) -> tuple[float, float]:
    """Return how many of a setting's runs completed, as a fraction, and how good they are.

    By the values alone, a setting that diverges would be judged by its luckiest seeds.
    """
    done = completed(runs)
    fraction = len(done) / max(len(runs), 1)
    values = [reported_value(run, metric) for run in done or runs]
    known = [value for value in values if value is not None]
    if not known or not np.isfinite(known).all():
        return -np.inf, -np.inf
    return fraction, over_seeds(known, metric) * (1 if metric.better == "max" else -1)


def _edges(grid: Mapping[str, list[Any]], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the swept options whose value is the least or the greatest of those tried."""
    found = {}
    for key, values in grid.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        value = options.get(key)
        if value in numbers and len(numbers) > 1 and value in (min(numbers), max(numbers)):
            end = "least" if value == min(numbers) else "greatest"
            found[key] = f"{key}={value:g} is the {end} of its grid"
    return found
