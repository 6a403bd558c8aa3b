"""Finished comparisons, read again and shown side by side without training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from aida_lightning.compare.experiment import Experiment, Target
from aida_lightning.compare.findings import Findings, findings_of, side_by_side
from aida_lightning.compare.folder import (
    ERROR_LOG,
    finished_run,
    run_folder,
    stopped_run,
    write_whole,
)
from aida_lightning.compare.loading import load_plan
from aida_lightning.compare.methods import OptimizerChoice, UsageError, choose_optimizers
from aida_lightning.compare.notes import COMPARABLE
from aida_lightning.compare.outputs import draw, write_results
from aida_lightning.compare.results import RunResult, Status
from aida_lightning.compare.selection import check_selection, next_runs
from aida_lightning.compare.settings import INCIDENTAL, common_settings, flat, short_key
from aida_lightning.logs.runs import folder_titles

_NOTE = "report.yaml"
# The short keys of settings that all comparisons must share.
_ONE_FOR_ALL = ("metric.", "target.", "data.", "trainer.limit_val_batches")


def report(
    folders: Sequence[str | Path],
    output: str | Path | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> tuple[Findings, Path, list[str]]:
    """Make the tables, files and figures of finished comparisons, several side by side.

    Args:
        folders: folders of the comparisons, which have the same metric and data.
        output: folder to write to, which is new, empty, or of a report of the same comparisons;
            None is a folder in aida_reports/ named after the first comparison.
        baseline: method with which the others are compared; None is that of the first comparison.
        target: value of the metric for the steps, epochs and seconds to reach it; None is the
            target of the comparisons.

    Returns:
        The findings, the folder with the files, and the reasons for figures that cannot be drawn.

    Raises:
        UsageError: a folder holds no comparison, the comparisons do not fit together, or the
            output holds other files.
    """
    titles = folder_titles(folders)
    plans = {title: _read_plan(folder) for folder, title in titles.items()}
    settings = {title: _comparable(*plan) for title, plan in plans.items()}
    notes = _check_fit(settings, target)
    parts = {}
    for folder, title in titles.items():
        experiment, _ = plans[title]
        if target is not None:
            experiment = replace(experiment, target=Target(target))
        check_selection(experiment)
        parts[title] = findings_of(experiment, _results(experiment, folder), folder)
        if not parts[title].results:
            raise UsageError(f"{folder}: no run of this comparison has begun")
    found = side_by_side(parts, baseline)
    found.notes.extend(notes)
    if output is None:
        first, *others = (folder.name for folder in titles)
        output = Path("aida_reports", f"{first}_and_{len(others)}_more" if others else first)
    _begin_output(Path(output), [str(folder) for folder in titles])
    write_results(found, Path(output))
    return found, Path(output), draw(found, Path(output))


def _read_plan(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    config = folder / "config.yaml"
    if not folder.is_dir() or not config.is_file():
        lacking = "no config.yaml" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder} holds no comparison: there is {lacking}")
    return load_plan(config)


def _results(experiment: Experiment, folder: Path) -> list[RunResult]:
    """Return the results of a comparison's runs, including unfinished ones."""
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    results: list[RunResult] = []
    while plan := next_runs(chosen, experiment, results):
        results += [_result(experiment, choice, seed, folder) for choice, seed in plan]
    return [run for run in results if run_folder(folder, run.label, run.seed).is_dir()]


def _result(experiment: Experiment, choice: OptimizerChoice, seed: int, folder: Path) -> RunResult:
    run = run_folder(folder, choice.label, seed)
    if (finished := finished_run(run, choice, experiment)) is not None:
        return finished
    status: Status = "failed" if (run / ERROR_LOG).exists() else "interrupted"
    return stopped_run(run, choice, seed, experiment, status)


def _comparable(experiment: Experiment, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that comparisons may share, as text by short key."""
    metric = asdict(experiment.metric) | {"percent": experiment.metric.in_percent}
    target = experiment.target and experiment.target.value
    everything = {"metric": metric, "target": {"value": target}, **common_settings(config)}
    values = flat(everything).items()
    return {short_key(k): json.dumps(v, default=str) for k, v in values}


def _check_fit(settings: Mapping[str, Mapping[str, str]], target: float | None) -> list[str]:
    """Refuse comparisons of different metrics or data, and describe other differences.

    Raises:
        UsageError: the comparisons do not fit together; the message gives each key and its values.
    """
    differing: dict[str, str] = {}
    for key in {key: None for part in settings.values() for key in part}:
        values = {title: part.get(key, "not set") for title, part in settings.items()}
        if len({*values.values()}) > 1:
            listed = ", ".join(f"{value} in {title}" for title, value in values.items())
            differing[key] = f"{key} is {listed}"
    if target is not None:
        differing.pop("target.value", None)
    unfit = [
        text
        for key, text in differing.items()
        if key.startswith(_ONE_FOR_ALL) and key not in COMPARABLE
    ]
    if unfit:
        raise UsageError(
            f"comparisons side by side need one metric, one target and the same data, but "
            f"{'; '.join(unfit)}"
        )
    others = [text for key, text in differing.items() if key not in INCIDENTAL | {"metric.title"}]
    return [f"Different settings: {'; '.join(others)}."] if others else []


def _begin_output(output: Path, folders: list[str]) -> None:
    """Create the folder of a report with a note that lists its comparisons.

    Raises:
        UsageError: the folder holds anything but a report of the same comparisons.
    """
    note = output / _NOTE
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            there = yaml.safe_load(note.read_text(encoding="utf-8")) if note.is_file() else None
            if not isinstance(there, dict) or there.get("comparisons") != folders:
                raise UsageError(
                    f"output: {output} holds something other than a report of these comparisons, "
                    "and nothing is overwritten: give another folder with --output"
                )
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"output: {error}") from error
    write_whole(note, yaml.safe_dump({"comparisons": folders}, allow_unicode=True))
