"""Trains one model from one initialisation under several optimizers, and reports."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from aida_lightning.experiments.choices import (
    Choice,
    OptimizerChoice,
    UsageError,
    choose_optimizers,
    parse_choice,
)

DEFAULT_OPTIMIZERS = ("aida:k=1", "aida:k=2", "adabelief", "adam+")
# For the digits: VGG11 leaves its first plateau after some 60 steps, and in 5 epochs of 45 steps
# all four default optimizers pass 88 % (66 s a run on two CPU cores). For CIFAR-10: the paper's.
DEFAULT_BATCH_SIZES = {"digits": 32, "cifar10": 128}


def compare(
    optimizers: Sequence[str | Mapping[str, Any]] = DEFAULT_OPTIMIZERS,
    seeds: Sequence[int] = (0,),
    model: str = "vgg11",
    data: str | dict[str, Any] = "digits",
    batch_size: int | None = None,
    epochs: int = 5,
    weight_decay: float | None = None,
    lr_scheduler: str | dict[str, Any] | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    limit_train_batches: int | float = 1.0,
    limit_val_batches: int | float = 1.0,
    monitor_every_n_steps: int = 10,
    output: str | None = None,
) -> list[Any]:
    """Trains one model from one initialisation under several optimizers, and reports.

    Writes under one folder: TensorBoard event files of each run, in `<label>/seed_<n>`;
    `results.csv`, a row a run; `config.yaml`, with which `--config` repeats the comparison; and the
    figures `fig1.png`, `fig2.png` and `fig6.png` of the adaptive stepsizes. A run that fails or
    diverges is reported and does not stop the others; after Ctrl-C everything so far is kept.

    Args:
        optimizers: Optimizers by name, each with its options, as in
            `aida:k=1 adabelief adam+:lr=3e-4,label=mine`; in YAML also `{name: aida, k: 1}`.
        seeds: Seeds of initialisation and data order; every optimizer trains once with each.
        model: The network: vgg11 or resnet34.
        data: The data, with options: digits, or as in `cifar10:root=data,download=true`.
        batch_size: Examples a batch and a process; by default 32 for digits, 128 for cifar10.
        epochs: Epochs a run.
        weight_decay: Weight decay of every optimizer that takes it (the paper's Table I: 5e-4);
            by default each optimizer's own.
        lr_scheduler: A scheduler of torch.optim.lr_scheduler, stepped once an epoch, with options:
            `MultiStepLR:milestones=[150],gamma=0.1`.
        accelerator: What to train on: cpu, gpu, … or auto, as Lightning's Trainer takes it.
        devices: How many devices, or which; on the CPU how many processes.
        strategy: How several devices work together, as Lightning's Trainer takes it; one that
            starts its processes itself (ddp_spawn, which auto chooses for several devices).
        limit_train_batches: How much of the data an epoch trains on: a fraction, or a number of
            batches.
        limit_val_batches: How much of the data validates, likewise.
        monitor_every_n_steps: The steps between two readings of the adaptive stepsizes.
        output: The folder to write to, new or empty; by default aida_runs/<date-time>.

    Returns:
        The results of all runs, as `aida_lightning.experiments.report.RunResult`.

    Raises:
        UsageError: If anything that was asked for is refused; nothing was trained then.
    """
    chosen = choose_optimizers(optimizers, weight_decay)
    _check_numbers(seeds, epochs, monitor_every_n_steps)
    data_choice, scheduler = parse_choice(data), None
    if lr_scheduler is not None:
        scheduler = parse_choice(lr_scheduler)
    if batch_size is None:
        batch_size = DEFAULT_BATCH_SIZES.get(data_choice.name)
    if batch_size is not None:
        data_choice.options.setdefault("batch_size", batch_size)

    # From here on it takes seconds to import what is needed.
    from rich.console import Console

    from aida_lightning.experiments.report import RunResult, results_table, write_csv
    from aida_lightning.experiments.training import Settings, check_settings, train_run

    settings = Settings(
        model=model,
        data=data_choice,
        epochs=epochs,
        lr_scheduler=scheduler,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        monitor_every_n_steps=monitor_every_n_steps,
    )
    check_settings(settings, chosen)
    folder = _new_folder(output)
    (folder / "config.yaml").write_text(_config(settings, chosen, seeds), encoding="utf-8")

    console = Console()
    plan = [(optimizer, seed) for seed in seeds for optimizer in chosen]
    results: list[RunResult] = []
    for number, (optimizer, seed) in enumerate(plan, start=1):
        console.print(
            f"[bold]Run {number} of {len(plan)}: {optimizer.label}, seed {seed}[/bold]",
            highlight=False,
        )
        results.append(train_run(settings, optimizer, seed, folder))
        write_csv(results, folder / "results.csv")
        if results[-1].message:
            console.print(f"{results[-1].status}: {results[-1].message}", markup=False)
        if results[-1].status == "interrupted":
            console.print(f"Interrupted in run {number} of {len(plan)}; the runs so far are kept.")
            break
    console.print(results_table(results))
    _draw(console, folder)
    console.print(f"Results, figures and event files: {folder}", soft_wrap=True, highlight=False)
    console.print(f"tensorboard --logdir {folder}", soft_wrap=True, highlight=False)
    return results


def _check_numbers(seeds: Sequence[int], epochs: int, monitor_every_n_steps: int) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds: different integers from 0 on are needed, but got {[*seeds]}")
    if epochs < 1:
        raise UsageError(f"epochs: at least 1 is needed, but got {epochs}")
    if monitor_every_n_steps < 1:
        raise UsageError(
            f"monitor_every_n_steps: at least 1 is needed, but got {monitor_every_n_steps}"
        )


def _new_folder(output: str | None) -> Path:
    folder = Path(output or f"aida_runs/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"output: {folder} exists and is not empty; nothing is overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output: {error}") from error
    return folder


def _config(settings: Any, optimizers: Sequence[OptimizerChoice], seeds: Sequence[int]) -> str:
    """The resolved options as `--config` takes them; not the folder, which a repetition changes."""
    options = {
        "optimizers": [
            {"name": optimizer.name, "label": optimizer.label, **_plain(optimizer.options)}
            for optimizer in optimizers
        ],
        "seeds": list(seeds),
        **vars(settings),
    }
    for name in ("data", "lr_scheduler"):
        if isinstance(choice := options[name], Choice):
            options[name] = {"name": choice.name, **_plain(choice.options)}
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}


def _draw(console: Any, folder: Path) -> None:
    from aida_lightning.experiments.events import EventsError
    from aida_lightning.experiments.figures import draw_figures

    try:
        draw_figures([folder], folder)
    except EventsError:
        console.print("No figures: no run got as far as the monitor's first reading.")
