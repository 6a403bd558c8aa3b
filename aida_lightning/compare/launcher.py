"""The launcher of runs as jobs on this machine or SLURM, with submitit's executors."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from aida_lightning._lightning import Trainer
from aida_lightning._private import submitit_options
from aida_lightning.compare.methods import UsageError

LauncherName = Literal["local", "slurm"]

_YEAR = 365 * 24 * 60  # minutes; local jobs need no time limit


@dataclass(frozen=True)
class Launcher:
    """The settings for starting the runs of a comparison as jobs.

    Args:
        name: `local` for this machine, `slurm` for a cluster.
        jobs: number of runs that train at once; None is one on this machine, and as many as it
            allows under SLURM.
        options: submitit's options, under the names that its `AutoExecutor` uses.
        gpus: GPUs of this machine that the jobs share, by their numbers.
        gpus_per_run: number of GPUs that each run takes, unless the options give it.

    Raises:
        UsageError: submitit is missing, or an option is refused; the message names it.

    Example:
        >>> Launcher("local", jobs=3, gpus=(0, 1), gpus_per_run=1).gpus_of(2)
        [0]
    """

    name: LauncherName = "local"
    jobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    gpus: Sequence[int] = ()
    gpus_per_run: int = 0

    def __post_init__(self) -> None:
        try:
            known = sorted(submitit_options())
        except ImportError as error:
            raise UsageError(
                "jobs and launcher need submitit: pip install 'aida-lightning[cluster]'"
            ) from error
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs: at least 1 is needed, but got {self.jobs}")
        for key, value in self.options.items():
            if key not in known:
                nearest = get_close_matches(key, known, n=3)
                hint = (
                    f"did you mean: {', '.join(nearest)}?"
                    if nearest
                    else f"it has {', '.join(known)}"
                )
                raise UsageError(f"launcher_options: submitit has no {key!r}; {hint}")
            if key == "slurm_time" and not isinstance(value, int):
                raise UsageError(
                    f"launcher_options: slurm_time={value}: submitit takes it in minutes"
                )
            task = key.removeprefix("slurm_") in ("nodes", "tasks_per_node", "ntasks_per_node")
            if task and value != 1:
                raise UsageError(
                    f"launcher_options: {key}={value}: a run is one task on one node, which starts "
                    "one process per device itself; set gpus_per_node, and give the Trainer as "
                    "many devices"
                )
        if self.name == "slurm" and not {"timeout_min", "slurm_time"}.intersection(self.options):
            raise UsageError(
                "launcher_options: timeout_min is needed, the minutes that SLURM gives each run, "
                "such as timeout_min=240"
            )
        with TemporaryDirectory() as folder:
            self.executor(Path(folder))  # raises an error for refused values

    def with_gpus_for(self, trainer: Trainer) -> "Launcher":
        """Return a launcher that distributes this machine's GPUs, if a Trainer uses them.

        Raises:
            UsageError: CUDA_VISIBLE_DEVICES does not give the GPUs by their numbers.
        """
        if self.name == "slurm" or trainer.strategy.root_device.type != "cuda":
            return self
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            gpus = range(torch.cuda.device_count()) if named is None else _numbers(named)
        except ValueError as error:
            raise UsageError(
                f"jobs: CUDA_VISIBLE_DEVICES={named} must give the GPUs by their numbers"
            ) from error
        return replace(self, gpus=gpus, gpus_per_run=trainer.num_devices)

    def limit(self, runs: int) -> int:
        """Return how many runs are submitted at once; SLURM takes all and queues them.

        Example:
            >>> Launcher("local", jobs=2).limit(9)
            2
        """
        return runs if self.name == "slurm" else self.jobs or 1

    def gpus_of(self, slot: int) -> list[int]:
        """Return the GPUs of this machine for the run in a slot."""
        count = int(self.options.get("gpus_per_node", self.gpus_per_run))
        return [self.gpus[(slot * count + k) % len(self.gpus)] for k in range(count) if self.gpus]

    def executor(self, folder: Path) -> Any:
        """Build the executor that submits jobs.

        Args:
            folder: folder in which submitit keeps the logs of the jobs.

        Raises:
            UsageError: a value is refused, or SLURM is not available.
        """
        import submitit

        options = dict(self.options)
        retries = {key: options.pop(key) for key in [*options] if key.endswith("max_num_timeout")}
        try:
            if self.name == "slurm":
                executor: Any = submitit.AutoExecutor(folder, cluster="slurm", **retries)
                if self.jobs is not None:
                    options.setdefault("slurm_array_parallelism", self.jobs)
            else:
                # AutoExecutor cannot choose which GPUs a job sees.
                executor = submitit.LocalExecutor(folder)
                options = {
                    key.removeprefix("local_"): value
                    for key, value in {"timeout_min": _YEAR, **options}.items()
                    if not key.startswith("slurm_")
                }
            executor.update_parameters(**options)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"launcher_options: {error}") from error
        return executor

    def submit(self, executor: Any, calls: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Submit the call of each slot, and yield the slot and submitit's job."""
        if self.name == "slurm":
            yield from zip(calls, executor.submit_array([*calls.values()]), strict=True)
            return
        for slot, call in calls.items():
            gpus = self.gpus_of(slot)
            executor.update_parameters(gpus_per_node=len(gpus), visible_gpus=gpus)
            yield slot, executor.submit(call)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
