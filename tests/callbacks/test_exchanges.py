"""Optimizers and layers that are exchanged, added, frozen and thawed during a fit."""

import logging

import pytest
import torch
from lightning.pytorch import Callback
from toy import Net, TwoOptimizers, fit, read

from aida_lightning import build_optimizer
from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
TAG = "stepsize_mean/head.weight"


class Exchanges(Callback):
    """Exchanges the last optimizer for another one, when its hook is first called in an epoch."""

    def __init__(self, hook, name="adam", epoch=1, keep=()):
        self.name, self.epoch, self.keep = name, epoch, keep
        setattr(self, hook, self.exchange)

    def exchange(self, trainer, module, *args):
        if trainer.current_epoch == self.epoch:
            self.epoch = None
            kept = [trainer.optimizers[place] for place in self.keep]
            trainer.strategy.optimizers = [*kept, build_optimizer(self.name, module, lr=1e-2)]


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
@pytest.mark.parametrize("name", ["adam", "aida"])
@pytest.mark.parametrize("first", [False, True])
def test_an_optimizer_that_is_exchanged_goes_on_with_the_count(tmp_path, caplog, hook, name, first):
    callbacks = [StepsizeMonitor(every_n_steps=5), Exchanges(hook, name)]
    caplog.set_level(logging.INFO)
    # Of an exchange after the monitor's own hook, the first batch's step is not seen.
    fit(tmp_path, Net(), *(callbacks[::-1] if first else callbacks), max_epochs=3)
    late = hook == "on_train_batch_start" and not first
    assert sorted(read(tmp_path)[TAG]) == [n + late * (n > 12) for n in [4, 9, 14, 19, 24, 29, 34]]
    told = [record for record in caplog.messages if "StepsizeMonitor" in record]
    assert told == [
        f"StepsizeMonitor follows the optimizers that the Trainer now holds: {name.capitalize()}."
    ]


def test_an_abandoned_optimizer_is_no_longer_logged_at_an_epochs_end(tmp_path):
    class Truth(Callback):
        def __init__(self):
            self.at = {}

        def on_train_epoch_end(self, trainer, module):
            (optimizer,) = trainer.optimizers
            group, param = optimizer.param_groups[0], module.head.weight
            v, step = (optimizer.state[param][key] for key in ("exp_avg_sq", "step"))
            root = (v / (1 - group["betas"][1] ** step)).sqrt()
            s = 1 / (root + group["eps"] * (type(optimizer) is torch.optim.Adam))
            self.at[11 + 12 * trainer.current_epoch] = pytest.approx(s.mean().item(), rel=1e-5)

    monitor = StepsizeMonitor(logging_interval="epoch", health=False)
    truth = Truth()
    fit(tmp_path, Net(), monitor, Exchanges("on_train_epoch_start"), truth, max_epochs=3)
    assert read(tmp_path)[TAG] == truth.at
    assert len(truth.at) == 3


def test_an_optimizer_beside_the_exchanged_one_keeps_its_own_count(tmp_path):
    module = TwoOptimizers(["aida", "aida"], every=3)
    exchanges = Exchanges("on_train_epoch_start", keep=[0])
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=3), exchanges, max_epochs=2)
    scalars = read(tmp_path)
    assert sorted(scalars[f"Aida/{TAG}"]) == list(range(2, 24, 3))
    # The second one has taken 4 steps in the first epoch, and takes its 6th in batch 12 + 5.
    assert sorted(scalars["Aida-1/stepsize_mean/features.weight"]) == [8]
    assert sorted(scalars["Adam/stepsize_mean/features.weight"]) == [17]


@pytest.mark.parametrize("name", ["aida", "sgd"])
def test_hooks_of_exchanged_optimizers_are_removed(tmp_path, name):
    seen = []

    class Sees(Callback):
        def on_train_epoch_start(self, trainer, module):
            seen.extend(trainer.optimizers)

    fit(
        tmp_path, Net(), StepsizeMonitor(), Sees(), Exchanges("on_train_epoch_start", name),
        Sees(), max_epochs=2,
    )  # fmt: skip
    assert len({*seen}) == 2
    for optimizer in seen:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


def test_the_figures_of_a_run_with_exchanged_optimizers_are_drawn(tmp_path):
    monitor = StepsizeMonitor(figures=True, logging_interval="epoch")
    second = Exchanges("on_train_epoch_start", keep=[0])
    fit(tmp_path, Net(), monitor, second, max_epochs=2)


class Freezes(Callback):
    def on_train_epoch_start(self, trainer, module):
        module.features.requires_grad_(trainer.current_epoch != 1)


class Branches(Net):
    """The features are used in every third batch only."""

    def training_step(self, batch, batch_idx):
        self.uses_features = batch_idx % 3 == 2
        return super().training_step(batch, batch_idx)

    def loss(self, batch):
        hidden = self.features(batch[0]) if self.uses_features else batch[0][:, :3]
        return self.head(hidden.tanh()).square().mean()


@pytest.mark.parametrize("name", ["aida", "adam"])
@pytest.mark.parametrize(
    ("module", "callbacks", "steps", "epochs"),
    [
        (Net, [Freezes()], [*range(12), *range(24, 36)], [11, 35]),
        (Branches, [], [*range(2, 36, 3)], [11, 23, 35]),
    ],
)
def test_a_layer_has_points_where_the_optimizer_took_its_gradient(
    tmp_path, name, module, callbacks, steps, epochs
):
    statistics = ["mean", "std", "update_ratio", "effective_mean"]
    for interval, expected in (("step", steps), ("epoch", epochs)):
        monitor = StepsizeMonitor(
            "*",
            1 if interval == "step" else None,
            logging_interval=interval,
            statistics=statistics,
            health=False,
        )
        fit(tmp_path / interval, module(name), monitor, *callbacks, max_epochs=3)
        scalars = read(tmp_path / interval)
        for tag in ("stepsize_mean", "stepsize_std", "update_ratio", "stepsize_effective_mean"):
            assert sorted(scalars[f"{tag}/features.weight"]) == expected
            assert len(scalars[f"{tag}/head.weight"]) == (36 if interval == "step" else 3)


def test_an_epochs_last_step_leaves_out_the_layers_that_it_did_not_take(tmp_path):
    class OtherBranches(Branches):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx + 1)

    fit(tmp_path, OtherBranches(), StepsizeMonitor(logging_interval="epoch"))
    scalars = read(tmp_path)
    assert "stepsize_mean/features.weight" not in scalars
    assert [*scalars[TAG]] == [11]


class Grows(Callback):
    """Replaces the head and adds a layer of its own after the first epoch."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            (optimizer,) = trainer.optimizers
            module.head, module.added = torch.nn.Linear(3, 1), torch.nn.Linear(1, 1)
            parameters = [*module.head.parameters(), *module.added.parameters()]
            optimizer.add_param_group({"params": parameters})


class Growing(Net):
    def __init__(self, name):
        super().__init__(name)
        self.added = None

    def loss(self, batch):
        output = self.head(self.features(batch[0]).tanh())
        return (output if self.added is None else self.added(output)).square().mean()


@pytest.mark.parametrize("layers", [None, ["*.weight"]])
@pytest.mark.parametrize("name", ["aida", "adam"])
def test_layers_that_come_later_join_at_their_first_step(tmp_path, name, layers):
    monitor = StepsizeMonitor(layers, every_n_steps=1, statistics=["mean", "update_ratio"])
    monitor.health = False
    fit(tmp_path, Growing(name), monitor, Grows(), max_epochs=2)
    scalars = read(tmp_path)
    for tag in ("stepsize_mean", "update_ratio"):
        assert sorted(scalars[f"{tag}/added.weight"]) == list(range(12, 24))
        assert sorted(scalars[f"{tag}/head.weight"]) == list(range(24))


class Inserts(Callback):
    """Puts a new optimizer in the place of one that stays."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            _, features = trainer.optimizers
            new = build_optimizer("adam", module.head)
            trainer.strategy.optimizers = [features, new]


def test_an_optimizer_that_moves_keeps_its_count_and_gives_it_to_no_other(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=100)
    counts = []

    class Counts(Callback):
        def on_train_epoch_end(self, trainer, module):
            counts.append(monitor.state_dict()["steps"])

    class Swapped(TwoOptimizers):
        def optimizers(self):
            first, second = super().optimizers()
            return (first, second) if self.current_epoch == 0 else (second, first)

    module = Swapped(["aida", "aida"], every=3)
    fit(tmp_path, module, monitor, Inserts(), Counts(), max_epochs=2)
    # The new one has no predecessor that left its place, and counts from the Trainer's 12 steps on.
    assert counts == [{"Aida": 12, "Aida-1": 4}, {"Aida": 8, "Adam": 24}]
