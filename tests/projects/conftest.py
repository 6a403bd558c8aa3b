"""Runs the page "Using it with …" section by section, among the names that a user has."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.parameter import is_lazy

from aida_lightning._lightning import find
from aida_lightning.measuring._names import names_of

PAGE = Path(__file__).parents[2] / "docs" / "using_with.md"
SECTIONS = dict(
    re.findall(r"^## (.+?)\n.*?^```py\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.M | re.S)
)


class Fit:
    """A call of Trainer.fit, and the layers from before it."""

    def __init__(self, trainer, module):
        self.trainer, self.module = trainer, module
        params = [param for param in module.parameters() if not is_lazy(param)]
        self.start = {param: param.detach().clone() for param in params}

    @property
    def optimizer(self):
        (optimizer,) = self.trainer.optimizers
        return optimizer

    @property
    def logged(self):
        """The layers that the monitor logged, which all have moved if they had a gradient."""
        events = EventAccumulator(self.trainer.log_dir).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("stepsize_mean/")]
        found = {tag.removeprefix("stepsize_mean/") for tag in tags}
        params = {own[0]: param for param, own in names_of(self.module).items()}
        for param in map(params.get, found):
            had_gradient = self.optimizer.state[param]["exp_avg"].any()
            if param in self.start and had_gradient:
                assert not torch.equal(self.start[param], param)
        return found

    @property
    def counts(self):
        """The steps that the optimizer has counted for each layer."""
        return {int(state["step"]) for state in self.optimizer.state.values()}


@pytest.fixture
def sections():
    """The code of each section, by its heading."""
    return SECTIONS


@pytest.fixture
def fits(monkeypatch, tmp_path):
    """The fits that were made, each recorded before it starts."""
    monkeypatch.chdir(tmp_path)
    made = []

    def recorded(fit):
        def wrapper(trainer, model, *args, **kwargs):
            made.append(Fit(trainer, model))
            return fit(trainer, model, *args, **kwargs)

        return wrapper

    for trainer in find("pytorch.Trainer"):
        monkeypatch.setattr(trainer, "fit", recorded(trainer.fit))
    torch.manual_seed(0)
    return made


@pytest.fixture
def run(fits, monkeypatch):
    """Run a section's code, with another Lightning where one is named, and return its fit."""

    def run_section(heading, package=None, **names):
        module = ModuleType("using_with_" + re.sub(r"\W", "_", heading))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module).update(names)
        code = SECTIONS[heading]
        if package:
            code = code.replace("import lightning.pytorch as pl", f"import {package} as pl")
        exec(compile(code, f"{PAGE.name}, {heading}", "exec"), vars(module))
        return fits[-1]

    return run_section
