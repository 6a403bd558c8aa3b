"""What holds of our classes under both Lightnings; a program, for it hangs on what is imported."""

import copy
import logging
import pickle
import sys
import warnings
from importlib import import_module
from inspect import getattr_static, isfunction
from pathlib import Path
from pkgutil import resolve_name

BELONG = {
    "lightning.pytorch": {"lightning"},
    "pytorch_lightning": {"pytorch_lightning", "lightning_fabric"},
}
PACKAGES = (*BELONG,)


def parts():
    """Build the example modules and the data modules, small."""
    import torch

    from aida_lightning import datamodules, example_modules

    sizes = {"vocab_size": 8, "d_model": 8, "num_encoder_layers": 1, "num_decoder_layers": 1}
    modules = [
        example_modules.ImageClassifier(torch.nn.Linear(4, 10)),
        example_modules.LanguageModel(vocab_size=8),
        example_modules.TranslationModel(**sizes),
        example_modules.WGANGP(width=2),
    ]
    # Those that have been imported, whatever their names are.
    kind = example_modules.ImageClassifier.__mro__
    known = [cls for cls in vars(example_modules).values() if isinstance(cls, type)]
    assert {type(module) for module in modules} == {
        cls for cls in known if issubclass(cls, import_module(PACKAGES[0]).LightningModule)
    }, kind
    data = [cls for name, cls in vars(datamodules).items() if name.endswith("DataModule")]
    assert len(data) > 5
    return [*modules, *(cls() for cls in data)]


def hooks(kind):
    """Return the methods that may be overridden, not those of the class."""
    public = {name for name in dir(kind) if not name.startswith("_")}
    return {name for name in public if isfunction(getattr_static(kind, name))}


def is_overridden(package, name, part):
    return import_module(f"{package}.utilities.model_helpers").is_overridden(name, part)


def written_by_us(cls, name):
    return getattr(cls, name).__module__.startswith("aida_lightning.")


def check_hooks():
    """Either Trainer finds overridden what our own classes have, and so do copies."""
    for part in parts():
        for package in (*PACKAGES, *PACKAGES):
            pl = import_module(package)
            trainer = pl.Trainer(
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                accelerator="cpu",
            )
            part.trainer = trainer
            kind = (
                pl.LightningModule
                if isinstance(part, pl.LightningModule)
                else pl.LightningDataModule
            )
            found = {name for name in hooks(kind) if is_overridden(package, name, part)}
            ours = {name for name in hooks(kind) if written_by_us(type(part), name)}
            assert found == ours, (type(part), package, found ^ ours)
            part.trainer = None
            for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
                twin.trainer = trainer
                assert {n for n in hooks(kind) if is_overridden(package, n, twin)} == found
                assert all(
                    method.__self__ is twin
                    for method in vars(twin).values()
                    if hasattr(method, "__self__")
                )


def check_messages(first):
    """A message is said once, and not at all where either logger is silenced."""
    from lightning_utilities.core.rank_zero import rank_zero_deprecation, rank_zero_info

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    for package in PACKAGES:
        logging.getLogger(package).addHandler(handler)
    rank_zero_info("heard")
    assert said == ["heard"]
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.ERROR)
        rank_zero_info("silenced")
        logging.getLogger(package).setLevel(logging.INFO)
    assert said == ["heard"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank_zero_deprecation("old")
    (warning,) = caught
    assert warning.category.__module__.partition(".")[0] in BELONG[first]


def check_checkpoints(folder):
    """What one Trainer has saved, the other resumes, and the class loads."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from aida_lightning import StepsizeMonitor
    from aida_lightning.example_modules import ImageClassifier

    data = TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
    path = None
    for epochs, package in enumerate((*PACKAGES, PACKAGES[0]), start=1):
        pl = import_module(package)
        trainer = pl.Trainer(
            default_root_dir=folder, accelerator="cpu", max_epochs=epochs, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[StepsizeMonitor()],
        )  # fmt: skip
        model = ImageClassifier(torch.nn.Linear(4, 10))
        trainer.fit(model, DataLoader(data, 4), ckpt_path=path)
        assert trainer.global_step == 2 * epochs
        path = trainer.checkpoint_callback.best_model_path
        loaded = ImageClassifier.load_from_checkpoint(path, model=torch.nn.Linear(4, 10))
        assert torch.equal(loaded.model.weight, model.model.weight)


def check_alone(package, folder):
    """All of it works where the other cannot be imported."""
    import torch
    import yaml
    from torch.utils.data import DataLoader, TensorDataset

    from aida_lightning import OptimizerMixin, StepsizeMonitor
    from aida_lightning.callbacks import UseOptimizer
    from aida_lightning.cli import run_lightning_cli
    from aida_lightning.commands import main
    from aida_lightning.example_modules import ImageClassifier
    from aida_lightning.logs.curves import read_scalars

    pl = import_module(package)

    class Own(OptimizerMixin, pl.LightningModule):
        optimizer = "aida"

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 10)

        def training_step(self, batch):
            return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    data = TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
    for model in (Own(), ImageClassifier(torch.nn.Linear(4, 10))):
        trainer = pl.Trainer(
            logger=pl.loggers.TensorBoardLogger(folder, name=type(model).__name__, version="run"),
            accelerator="cpu", max_epochs=2, log_every_n_steps=1, enable_progress_bar=False,
            callbacks=[StepsizeMonitor(), UseOptimizer("laida")],
        )  # fmt: skip
        trainer.fit(model, DataLoader(data, 4))
        assert type(trainer.optimizers[0]).__name__ == "LAida"
        scalars = read_scalars(folder / type(model).__name__ / "run")
        (tag,) = (tag for tag in scalars if tag.startswith("stepsize_mean/"))
        assert len(scalars[tag].values) == 4
    small = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    sys.argv[1:] = []
    assert not run_lightning_cli([
        "fit", "--model=ImageClassifier", "--data=DigitsDataModule", "--data.batch_size=2", *small,
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--optimizer=aida",
        "--trainer.callbacks+=StepsizeMonitor", f"--trainer.default_root_dir={folder}",
    ])  # fmt: skip
    assert not main([
        "compare", "--epochs=1", "--limit_train_batches=2", "--limit_val_batches=1",
        "--batch_size=2", "--optimizers", "Aida K=1", "--output", str(folder / "compared"),
    ])  # fmt: skip
    assert "completed" in (folder / "compared" / "results.csv").read_text()
    config = yaml.safe_load((folder / "compared" / "config.yaml").read_text())
    assert resolve_name(config["trainer"]["class_path"]) is pl.Trainer


if __name__ == "__main__":
    check, package, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    warnings.simplefilter("ignore")
    if check == "first":
        import_module(package)
        check_hooks()
        check_messages(package)
        check_checkpoints(folder)
    else:
        others = {"lightning", "pytorch_lightning", "lightning_fabric"} - BELONG[package]
        sys.modules.update(dict.fromkeys(others))  # which none can import then
        check_alone(package, folder)
    print("HELD")
