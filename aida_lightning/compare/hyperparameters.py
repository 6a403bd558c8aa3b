"""The hyperparameters of a comparison's runs, for the rows of TensorBoard's HParams tab."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from aida_lightning._lightning import Callback, LightningModule, TensorBoardLogger, Trainer
from aida_lightning.compare.loading import LoadedExperiment
from aida_lightning.compare.methods import OptimizerChoice, choose_optimizers
from aida_lightning.compare.settings import flat, short_key
from aida_lightning.logs.writing import log_hyperparameters, log_success


class Hyperparameters(Callback):
    """Log a run's hyperparameters, with the comparison's metric to judge them.

    Args:
        loaded: experiment whose runs determine the columns of the table.
        optimizer: optimizer of the run.
        seed: seed of the run.
    """

    def __init__(self, loaded: LoadedExperiment, optimizer: OptimizerChoice, seed: int) -> None:
        experiment = loaded.experiment
        self._name = f"{optimizer.label}, seed {seed}"
        self._run = hyperparameters(loaded.config, optimizer, seed)
        self._all = [
            hyperparameters(loaded.config, choice, other)
            for choice in choose_optimizers(experiment.optimizers, experiment.optimizer_options)
            for other in [*experiment.tune_seeds, *experiment.seeds]
        ]
        self._metric = experiment.metric

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            # Runs of the same name would share a row, even across comparisons.
            name = f"{self._name}, in {Path(trainer.logger.root_dir).absolute().parent}"
            metrics = {self._metric.name: self._metric.label}
            log_hyperparameters(trainer.logger, name, self._run, self._all, metrics)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            log_success(trainer.logger)


def hyperparameters(
    config: Mapping[str, Any], optimizer: OptimizerChoice, seed: int
) -> dict[str, Any]:
    """Return a run's hyperparameters from an experiment's resolved file, by flat names.

    Example:
        >>> model = {"class_path": "my.Model", "init_args": {"width": 3}}
        >>> data = {"class_path": "my.Data", "init_args": {}}
        >>> choice = OptimizerChoice("aida", {"k": 1}, "Aida K=1", "Aida K=1")
        >>> hyperparameters({"model": model, "data": data}, choice, 0)
        {'optimizer': 'aida', 'optimizer.k': 1, 'seed': 0, 'model': 'my.Model', \
'model.width': 3, 'data': 'my.Data'}
    """
    own = {"class_path": optimizer.name, "init_args": optimizer.options}
    values = flat(
        {"optimizer": own, "seed": seed, "model": config["model"], "data": config["data"]}
    )
    return {
        short_key(key).removesuffix(".class_path"): v
        if isinstance(v, int | float | str)
        else str(v)
        for key, v in values.items()
        if v is not None and v != {}
    }
