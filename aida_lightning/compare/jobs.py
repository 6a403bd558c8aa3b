"""The runs of a comparison as submitit jobs, several at once.

submitit starts the jobs, hands them to SLURM, and requeues those that ran out of time or were
pre-empted. This module keeps track of which run belongs to which job.
"""

import json
import os
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from typing_extensions import override

from aida_lightning._lightning import Callback, LightningModule, Trainer
from aida_lightning.compare.folder import ERROR_LOG, is_at_work, write_whole
from aida_lightning.compare.launcher import Launcher
from aida_lightning.compare.methods import UsageError
from aida_lightning.compare.progress import progress_of, progress_table
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.run import Run, train_run
from aida_lightning.compare.settings import refuse_differences, run_settings

_NOTE = "job.json"
_LOGS = ".jobs"
_REFRESH = 5.0  # seconds between two readings of the event files of running runs


@dataclass
class Job:
    """A run that submitit calls, and calls again after a pre-emption or timeout.

    Args:
        run: run of the job.
        settings: settings that determine the run's weights, at the time of submission.
    """

    run: Run
    settings: Mapping[str, Any]

    def __call__(self) -> RunResult:
        """Train the run, from its last checkpoint if there is one."""
        # With this name, Lightning leaves SLURM alone: it starts its own processes, resumes only
        # from our checkpoint, and lets submitit requeue the job.
        os.environ["SLURM_JOB_NAME"] = "interactive"
        settings = run_settings(self.run.loaded.config, self.run.optimizer, self.run.seed)
        try:
            refuse_differences(f"{self.run.folder} is of a job", self.settings, settings)
        except UsageError as error:
            return self.run.stopped("failed", str(error))
        signals = _Signals()
        result = train_run(self.run, [signals])
        if signals.is_told and result.status == "failed":
            # SLURM also ended processes of the run; without a result, it can be requeued.
            raise SystemExit(f"told to end: {result.message}")
        return result

    def checkpoint(self) -> Any:
        """Return the submission that submitit requeues; the checkpoint is in the run's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Signals(Callback):
    """Leave the signals that announce a job's end to submitit, in all processes of the job.

    SLURM signals each process, but only the first one may requeue. Lightning would end the training
    on SIGTERM, which arrives earlier.
    """

    def __init__(self) -> None:
        self.is_told = False
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=_leave_requeue)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if os.getpid() != self._pid:
            _leave_requeue()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.is_told = True


def _leave_requeue() -> None:
    from submitit import JobEnvironment

    signal.signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"), signal.SIG_IGN)


def train_as_jobs(
    launcher: Launcher, plan: Sequence[Run], console: Console
) -> Generator[tuple[int, RunResult]]:
    """Submit the runs that are neither finished nor running, and yield results as they arrive.

    Args:
        launcher: launcher that starts the jobs.
        plan: runs of a comparison.
        console: console that shows a live table of all runs, or, if it is not a terminal, a line
            for each run that ended.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped the jobs on this machine; those under SLURM continue.
    """
    executor = launcher.executor(plan[0].folder.parents[1] / _LOGS)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    waiting = dict(enumerate(plan))
    jobs: dict[int, tuple[int, Any]] = {}  # each with its slot
    shown = 0.0
    with live or nullcontext():
        for number, run in enumerate(plan):
            result = run.finished()
            if result is not None:
                del waiting[number]
                _tell(console, plan, number, "finished before, not run again")
                yield number, result
            elif (noted := noted_job(run.folder)) and not _is_over(run, noted[1]):
                jobs[number] = noted
                del waiting[number]
        try:
            while waiting or jobs:
                limit = launcher.limit(len(plan))
                taken = {slot for slot, _ in jobs.values()}
                free = [k for k in range(limit) if k not in taken][: max(limit - len(jobs), 0)]
                batch = dict(zip(free, [*waiting], strict=False))
                calls = {slot: _call(waiting.pop(number)) for slot, number in batch.items()}
                if calls:
                    for slot, job in launcher.submit(executor, calls):
                        jobs[batch[slot]] = slot, job
                        _note_job(plan[batch[slot]].folder, launcher, slot, job)
                for number, (_, job) in [*jobs.items()]:
                    if _is_over(plan[number], job):
                        del jobs[number]
                        result = _result(plan[number], job)
                        _tell(console, plan, number, result.status, result.message)
                        yield number, result
                if live and time.monotonic() - shown > _REFRESH:
                    live.update(_table(plan, jobs), refresh=True)
                    shown = time.monotonic()
                time.sleep(0.5 if jobs else 0.0)
        except (KeyboardInterrupt, GeneratorExit):
            if launcher.name == "slurm":
                console.print("The jobs go on; the same command attaches to them.")
            else:
                console.print("The jobs are ended; the same command goes on from where they were.")
                for _, job in jobs.values():
                    job.cancel()
                for _, job in jobs.values():
                    job.wait()
            raise
        finally:
            if live:
                live.update(_table(plan, jobs), refresh=True)


def noted_job(folder: Path) -> tuple[int, Any] | None:
    """Return the slot and the last submitted job of the run in a folder, or None.

    Raises:
        UsageError: submitit, which knows the job, is not installed.
    """
    path = folder / _NOTE
    if not path.exists():
        return None
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "the runs are jobs, whose state submitit tells: pip install 'aida-lightning[cluster]'"
        ) from error
    note = json.loads(path.read_text(encoding="utf-8"))
    executors = {"local": submitit.LocalExecutor, "slurm": submitit.SlurmExecutor}
    make: Any = executors[note["launcher"]].job_class
    return note["slot"], make(folder.parents[1] / _LOGS, note["job"])


def _note_job(folder: Path, launcher: Launcher, slot: int, job: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    note = {"launcher": launcher.name, "job": job.job_id, "slot": slot}
    write_whole(folder / _NOTE, json.dumps(note))


def _call(run: Run) -> Job:
    settings = run_settings(run.loaded.config, run.optimizer, run.seed)
    # A copy contains no objects that are already built and that other processes cannot read.
    return Job(run._replace(loaded=replace(run.loaded)), settings)


def _is_over(run: Run, job: Any) -> bool:
    """Return whether a job ended; the lock tells for a job that another process submitted."""
    return bool(job.done()) and not is_at_work(run.folder)


def _result(run: Run, job: Any) -> RunResult:
    from submitit.core.utils import UncompletedJobError

    try:
        result: RunResult = job.result()
    except UncompletedJobError:
        finished = run.finished()
        if finished is not None:
            return finished
        log = job.paths.stderr
        result = run.stopped("failed", f"its job {job.job_id} was ended, and its log is {log}")
        write_whole(run.folder / ERROR_LOG, result.message)
    return result


def _tell(console: Console, plan: Sequence[Run], number: int, end: str, message: str = "") -> None:
    if message or not console.is_terminal:  # in a terminal, the table shows the rest
        words = f"{end}: {message}" if message else end
        console.print(f"[{number + 1}/{len(plan)}] {plan[number].title}: {words}", soft_wrap=True)


def _table(plan: Sequence[Run], jobs: Mapping[int, tuple[int, Any]]) -> Table:
    rows = [progress_of(run, jobs.get(number, (0, None))[1]) for number, run in enumerate(plan)]
    return progress_table(rows, plan[0].loaded.experiment.metric)
