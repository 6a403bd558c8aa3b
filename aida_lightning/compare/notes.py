"""Notes for the readers of a comparison's table, on the runs, the paper and the budgets."""

from collections.abc import Sequence

from aida_lightning.compare.experiment import Experiment
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.selection import Standing
from aida_lightning.compare.settings import INCIDENTAL

# Changes of the data and the metric that keep the results comparable with the paper's.
COMPARABLE = {*INCIDENTAL, "data.batch_size", "metric.title"}
# Changes that the table shows elsewhere, or that do not affect a result.
_TOLD_OTHERWISE = {*INCIDENTAL, "seeds", "tune_seeds", "baseline", "target", "target.value"}
_TOLD_OTHERWISE |= {"trainer.max_epochs"}


def compares(experiment: Experiment) -> bool:
    """Return whether the data and the metric are the paper's, so that its numbers compare."""
    keys = experiment.changes.keys() - COMPARABLE
    return not any(key.partition(".")[0] in ("data", "metric") for key in keys)


def run_notes(results: Sequence[RunResult], experiment: Experiment) -> list[str]:
    """Name the source of the paper's numbers, and how the runs differ from the paper's."""
    lines = [
        f"{result.label}, seed {result.seed}: {result.status}."
        for result in results
        if result.status != "completed"
    ]
    if experiment.changes.get("data") == "sample":
        lines.append("The runs used the built-in sample, so the paper's numbers do not compare.")
    elif experiment.paper is not None:
        if not compares(experiment):
            lines.append(
                "The data or the metric are not the paper's, so its numbers do not compare."
            )
        elif any(method.paper for method in experiment.optimizers):
            lines.append(f"Paper: {experiment.paper.source}.")
        epochs = sorted({result.epochs for result in results})
        if epochs and epochs != [experiment.paper.epochs]:
            span = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
            lines.append(f"Epochs: {span}, where the paper's runs have {experiment.paper.epochs}.")
    others = [
        f"{key}={value}"
        for key, value in experiment.changes.items()
        if key not in _TOLD_OTHERWISE and (key, value) != ("data", "sample")
    ]
    if others:
        lines.append(f"Changed: {', '.join(others)}")
    floors = sorted({(r.metric, r.floor) for r in results if r.floor is not None})
    lines += [f"Floor, real against real ({name}): {value:.4g}" for name, value in floors]
    return lines


def budget_notes(found: Sequence[Standing]) -> list[str]:
    """Report how the search for settings may favour or disfavour a method."""
    lines = []
    budgets = {standing.settings for standing in found}
    if len(budgets) > 1:
        lines.append(
            f"Budgets differ: from {min(budgets)} to {max(budgets)} settings were tried per method."
        )
    lines += [
        f"{standing.method}: {' and '.join(standing.edges.values())}, so that the best may lie "
        "beyond."
        for standing in found
        if standing.edges
    ]
    for seeds in dict.fromkeys(tuple(standing.tuned_on) for standing in found):
        chosen = [standing for standing in found if seeds and tuple(standing.tuned_on) == seeds]
        numbers, methods = ", ".join(map(str, seeds)), ", ".join(s.method for s in chosen)
        seed = "seeds" if len(seeds) > 1 else "seed"
        reported = "not reported"
        if any(standing.tuned_on_reported for standing in chosen):
            reported = "reported as well, which favours the method; tune_seeds avoids that"
        if chosen:
            lines.append(f"Setting of {methods}: chosen on {seed} {numbers}, {reported}.")
    return lines
