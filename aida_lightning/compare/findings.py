"""The findings of one or several comparisons, ready to show side by side."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from aida_lightning.compare.experiment import Experiment, Paper, Target
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.methods import Published, method_label
from aida_lightning.compare.notes import budget_notes, compares, run_notes
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.selection import (
    Standing,
    completed,
    find_baseline,
    reported_value,
    standings,
)
from aida_lightning.compare.statistics import Difference, differences
from aida_lightning.figures import FigureName
from aida_lightning.logs.metric import Metric


@dataclass(frozen=True)
class WayToTarget:
    """The time that a method took to reach a target.

    Args:
        reached: number of runs that reached the target.
        runs: number of all runs.
        steps: median number of the optimizer's steps over the runs. A run that never reached the
            target counts as later than all others; None if such a run is the median.
        epochs: median number of epochs, in the same way.
        seconds: median number of seconds, in the same way.
    """

    reached: int
    runs: int
    steps: float | None
    epochs: float | None
    seconds: float | None


@dataclass(frozen=True)
class Findings:
    """The findings of a comparison that are shown.

    Args:
        metric: metric of the comparison.
        standings: methods of the comparison.
        results: results of all runs.
        paths: folder of each run, by the run's label and seed.
        baseline: label of the method with which the others are compared.
        target: value of the metric to reach; None if there is no target.
        published: the paper's comparable result for each method that has one.
        papers: source of such results for each method.
        figures: names of the paper's figures to draw.
        notes: remarks that a reader of the table needs.
    """

    metric: Metric
    standings: list[Standing]
    results: list[RunResult]
    paths: dict[tuple[str, int], Path]
    baseline: str
    target: Target | None
    published: dict[str, Published]
    papers: dict[str, Paper | None]
    figures: list[FigureName]
    notes: list[str]

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The difference of each other method from the baseline, in the logged unit."""
        values: dict[str, dict[tuple[str, int], float]] = {self.baseline: {}}
        for standing in self.standings:
            known = values.setdefault(standing.method, {})
            for run in completed(standing.runs):
                value = reported_value(run, self.metric)
                if value is not None and np.isfinite(value):
                    known[run.metric, run.seed] = value
        return differences(values, self.baseline)

    @property
    def comparisons(self) -> int:
        """The number of intervals that hold together."""
        return sum(difference.seeds > 1 for difference in self.differences.values())

    def way_to_target(self, standing: Standing) -> WayToTarget:
        """Return how long a method took to reach the target."""
        assert self.target is not None
        runs = [run for run in standing.runs if run.target == self.target.value]

        def median(name: str) -> float | None:
            taken = [getattr(run, name) for run in runs]
            middle = statistics.median([np.inf if t is None else t for t in taken] or [np.inf])
            return float(middle) if np.isfinite(middle) else None

        return WayToTarget(
            reached=sum(run.steps_to_target is not None for run in runs),
            runs=len(runs),
            steps=median("steps_to_target"),
            epochs=median("epochs_to_target"),
            seconds=median("seconds_to_target"),
        )


def findings_of(experiment: Experiment, results: Sequence[RunResult], folder: Path) -> Findings:
    """Collect the findings of a comparison.

    Args:
        experiment: experiment of the comparison.
        results: results of its runs so far.
        folder: folder of the comparison.

    Raises:
        UsageError: the baseline is not one of the experiment's methods.
    """
    methods = {method_label(method): method for method in experiment.optimizers}
    proxies = {run.method for run in results if run.metric != experiment.metric.name}
    published = {
        label: method.paper
        for label, method in methods.items()
        if method.paper is not None and label not in proxies and compares(experiment)
    }
    found = standings(results, experiment)
    return Findings(
        metric=experiment.metric,
        standings=found,
        results=list(results),
        paths={(r.label, r.seed): run_folder(folder, r.label, r.seed) for r in results},
        baseline=find_baseline(experiment.baseline, {k: m.name for k, m in methods.items()}),
        target=experiment.target,
        published=published,
        papers=dict.fromkeys({**methods, **{s.method: s for s in found}}, experiment.paper),
        figures=experiment.figures,
        notes=[*run_notes(results, experiment), *budget_notes(found)],
    )


def side_by_side(parts: Mapping[str, Findings], baseline: str | None = None) -> Findings:
    """Combine the findings of several comparisons; those of a single one stay unchanged.

    Methods with the same label get the title of their comparison, and so do notes that do not apply
    to all comparisons.

    Args:
        parts: findings of each comparison, by title, with the same metric and target.
        baseline: method with which the others are compared, as in `find_baseline`; None is the
            baseline of the first comparison.

    Raises:
        UsageError: the baseline matches no method, or several.
    """
    # A method of one comparison may be called as a setting of another's.
    taken = Counter(
        name
        for part in parts.values()
        for name in {*part.papers, *(run.label for run in part.results)}
    )
    renamed = [
        _renamed(part, {m: f"{m} ({title})" if taken[m] > 1 else m for m in part.papers})
        for title, part in parts.items()
    ]
    told = Counter(note for part in parts.values() for note in part.notes)
    notes = [
        note if told[note] == len(parts) else f"{title}: {note}"
        for title, part in parts.items()
        for note in part.notes
    ]
    found = [standing for part in renamed for standing in part.standings]
    names = {standing.method: standing.all_runs[0].optimizer for standing in found}
    return Findings(
        metric=renamed[0].metric,
        standings=found,
        results=[run for part in renamed for run in part.results],
        paths={key: path for part in renamed for key, path in part.paths.items()},
        baseline=renamed[0].baseline if baseline is None else find_baseline(baseline, names),
        target=renamed[0].target,
        published={key: paper for part in renamed for key, paper in part.published.items()},
        papers={key: paper for part in renamed for key, paper in part.papers.items()},
        figures=list(dict.fromkeys(name for part in renamed for name in part.figures)),
        notes=list(dict.fromkeys(notes)),
    )


def _renamed(part: Findings, names: Mapping[str, str]) -> Findings:
    def rename(run: RunResult) -> RunResult:
        label = names[run.method] + run.label.removeprefix(run.method)
        return replace(run, method=names[run.method], label=label)

    return replace(
        part,
        standings=[
            replace(
                standing,
                method=names[standing.method],
                label=names[standing.method] + standing.label.removeprefix(standing.method),
                runs=[rename(run) for run in standing.runs],
                all_runs=[rename(run) for run in standing.all_runs],
            )
            for standing in part.standings
        ],
        results=[rename(run) for run in part.results],
        paths={
            (rename(run).label, run.seed): part.paths[run.label, run.seed] for run in part.results
        },
        baseline=names[part.baseline],
        published={names[method]: paper for method, paper in part.published.items()},
        papers={names[method]: paper for method, paper in part.papers.items()},
    )
