"""The statistics of choice, from the event files, against a naive evaluation in float64."""

import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn
from toy import Net, TwoOptimizers, fit, read

from aida_lightning import build_optimizer, stepsize
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.diagnostics import last_update, stepsize_ceiling

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
STATISTICS = (
    "mean", "std", "min", "max", "std_over_mean", "median", "q05", "q95", "ceiling_share",
    "effective_mean", "effective_std", "update_ratio", "gradient_cosine", "snr", "snr_rows",
)  # fmt: skip


class BruteForce(Callback):
    """After every batch, by tag and step: each statistic from the state, with no code of ours."""

    def __init__(self):
        self.at = {}

    def on_train_batch_start(self, trainer, module, *args):
        self.before = {name: x.detach().clone() for name, x in module.named_parameters()}
        self.lr = [[float(g["lr"]) for g in o.param_groups] for o in trainer.optimizers]

    def on_train_batch_end(self, trainer, module, *args):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        names = {param: name for name, param in module.named_parameters()}
        for optimizer, lrs in zip(trainer.optimizers, self.lr, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                for param in group["params"]:
                    statistics = self.of(optimizer, group, lr, param, self.before[names[param]])
                    for name, value in statistics.items():
                        own = name in ("update_ratio", "gradient_cosine", "snr", "snr_rows")
                        tag = name if own else f"stepsize_{name}"
                        self.at.setdefault(f"{tag}/{names[param]}", {})[step] = value

    def of(self, optimizer, group, lr, param, before):
        state = optimizer.state[param]
        (beta1, beta2), eps, t = group["betas"], group["eps"], state["step"].item()
        kind = type(optimizer).__name__
        both = kind in ("AdaBelief", "AdamPlus", "Adam", "AdamW")
        root = (state["exp_avg_sq"].double() / (1 - beta2**t)).sqrt()
        s = sorted((1 / (root + eps * both)).flatten().tolist())
        mean = sum(s) / len(s)
        std = math.sqrt(sum((x - mean) ** 2 for x in s) / len(s))
        effective = lr / (1 - beta1**t)
        ceiling = 1 / (math.sqrt(eps / (1 - beta2)) + eps * both)
        m, g = state["exp_avg"].flatten().tolist(), param.grad.flatten().tolist()
        found = {
            "mean": mean, "std": std, "min": s[0], "max": s[-1], "std_over_mean": std / mean,
            "median": self.quantile(s, 0.5), "q05": self.quantile(s, 0.05),
            "q95": self.quantile(s, 0.95),
            "effective_mean": effective * mean, "effective_std": effective * std,
            "update_ratio": math.dist(param.flatten().tolist(), before.flatten().tolist())
            / math.hypot(*before.flatten().tolist()),
            "gradient_cosine": sum(map(math.prod, zip(m, g, strict=True)))
            / (math.hypot(*m) * math.hypot(*g)),
        }  # fmt: skip
        if (v := state["exp_avg_sq"].double()).ndim:
            found["snr"] = (v.mean() ** 2 / v.var(correction=0)).item()
            of_rows = [(row.mean() ** 2 / row.var(correction=0)).item() for row in v]
            found["snr_rows"] = sum(of_rows) / len(of_rows)
        if not kind.startswith("Adam") or kind in ("AdamPlus", "AdamL"):
            found["ceiling_share"] = sum(x > ceiling * 0.999 for x in s) / len(s)
        return found

    @staticmethod
    def quantile(ordered, q):
        position = q * (len(ordered) - 1)
        low = ordered[math.floor(position)]
        return low + (ordered[math.ceil(position)] - low) * (position % 1)


def assert_equal(scalars, brute_force, steps, statistics):
    tags = [t for t in brute_force.at if t.endswith("weight")]
    tags = [t for t in tags if t.partition("/")[0].removeprefix("stepsize_") in statistics]
    assert len(tags) == 2 * len(statistics)
    for tag in tags:
        assert sorted(scalars[tag]) == steps, tag
        for step in steps:
            expected = pytest.approx(brute_force.at[tag][step], rel=2e-3, abs=1e-6)
            # A float32's last place of x is much of an update.
            tolerance = (
                expected
                if tag.startswith("update")
                else pytest.approx(brute_force.at[tag][step], rel=1e-5, abs=1e-6)
            )
            assert scalars[tag][step] == tolerance, (tag, step)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aida", {}), ("aida", {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": 0.1}),
        ("aida", {"weight_decay": 0.1}), ("laida", {}), ("adabelief", {"eps": 1e-3}),
        ("adaml", {}), ("ladam", {"lr": torch.tensor(1e-2)}), ("aidagrad", {}),
        ("adam", {"eps": 1e-2}), ("adamw", {"weight_decay": 0.1}),
    ],
)  # fmt: skip
def test_every_statistic_is_that_of_its_definition(tmp_path, name, options):
    lacks = {"adam": "ceiling", "adamw": "ceiling", "laida": "snr", "ladam": "snr"}.get(name, "-")
    statistics = [s for s in STATISTICS if not s.startswith(lacks)]
    brute_force = BruteForce()
    monitor = StepsizeMonitor(every_n_steps=1, statistics=statistics, health=False)
    fit(tmp_path, Net(name, **options), monitor, brute_force)
    assert_equal(read(tmp_path), brute_force, list(range(12)), statistics)


class Scheduled(Net):
    """The learning rate falls after every step, in place where it is a tensor."""

    def configure_optimizers(self):
        optimizer = build_optimizer(self.name, self, **self.options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)])
@pytest.mark.parametrize("name", ["aida", "adam"])
def test_an_epochs_end_is_measured_by_its_last_step(tmp_path, name, lr):
    statistics = ["effective_mean", "update_ratio", "gradient_cosine", "std"]
    brute_force = BruteForce()
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=statistics, health=False)
    fit(tmp_path, Scheduled(name, lr=lr), monitor, brute_force, max_epochs=2)
    assert_equal(read(tmp_path), brute_force, [11, 23], statistics)


class Adversaries(TwoOptimizers):
    """Each has its gradient changed, and perhaps forgotten, after its step."""

    def __init__(self, forgets, every=1, **options):
        super().__init__(["aida", "aida"], every, **options)
        self.forgets = forgets
        self.cosines = {}

    def training_step(self, batch, batch_idx):
        for optimizer, layer in zip(self.optimizers(), (self.head, self.features), strict=True):
            if layer is self.features and batch_idx % self.every:
                continue
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            m = optimizer.optimizer.state[layer.weight]["exp_avg"]
            self.cosines[layer] = nn.functional.cosine_similarity(
                m.flatten(), layer.weight.grad.flatten(), dim=0
            ).item()
            if self.forgets:
                optimizer.zero_grad()


@pytest.mark.parametrize("forgets", [False, True])
def test_an_epochs_cosine_is_that_of_the_gradient_of_its_last_step(tmp_path, forgets):
    module = Adversaries(forgets)
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=["mean", "gradient_cosine"])
    fit(tmp_path, module, monitor)
    scalars = read(tmp_path)
    for prefix, layer, name in (
        ("Aida", module.head, "head.weight"), ("Aida-1", module.features, "features.weight")
    ):  # fmt: skip
        assert scalars[f"{prefix}/gradient_cosine/{name}"] == {
            11: pytest.approx(module.cosines[layer], rel=1e-5)
        }


def test_a_gradient_that_is_gone_at_the_epochs_end_has_no_cosine(tmp_path):
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=["mean", "gradient_cosine"])
    fit(tmp_path, Adversaries(False, every=2), monitor)  # not in the last of 12 batches
    scalars = read(tmp_path)
    assert sorted(scalars["Aida-1/stepsize_mean/features.weight"]) == [11]
    assert "Aida-1/gradient_cosine/features.weight" not in scalars
    assert "Aida/gradient_cosine/head.weight" in scalars


class FallsInTheEpoch(Adversaries):
    """The features train in the first 6 batches of two epochs only, and then their rate falls.

    A rate that is a tensor falls in place.
    """

    def training_step(self, batch, batch_idx):
        trains = batch_idx < 6 and self.current_epoch < 2
        self.every = 1 if trains else 1000
        super().training_step(batch, batch_idx + 12 * self.current_epoch)
        if batch_idx == 6:
            (group,) = self.optimizers()[1].param_groups
            group["lr"] *= 0.1


@pytest.mark.parametrize("make_lr", [float, torch.tensor])
def test_a_step_of_an_earlier_batch_keeps_its_learning_rate(tmp_path, make_lr):
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=["mean", "effective_mean"])
    fit(tmp_path, FallsInTheEpoch(False, lr=make_lr(1e-3)), monitor, max_epochs=3)
    scalars = read(tmp_path)
    means = scalars["Aida-1/stepsize_mean/features.weight"]
    # The third epoch has no step of it.
    lrs = {11: 1e-3 / (1 - 0.9**6), 23: 1e-4 / (1 - 0.9**12)}
    assert scalars["Aida-1/stepsize_effective_mean/features.weight"] == {
        step: pytest.approx(lr * means[step], rel=1e-5) for step, lr in lrs.items()
    }


def test_two_optimizers_steps_in_the_batch_that_ends_training_are_both_the_last(tmp_path):
    monitor = StepsizeMonitor(logging_interval="epoch", statistics="gradient_cosine")
    fit(tmp_path, Adversaries(True), monitor, max_steps=6)
    assert {tag for tag in read(tmp_path) if "cosine" in tag} == {
        "Aida/gradient_cosine/head.weight", "Aida-1/gradient_cosine/features.weight",
    }  # fmt: skip


class LastBatchWithoutGradient(Net):
    def __init__(self):
        super().__init__("adam")
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        if batch_idx < 11:
            self.manual_backward(self.loss(batch))
        self.optimizers().step()


def test_a_step_without_a_gradient_is_none(tmp_path):
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=["mean", "update_ratio"])
    fit(tmp_path, LastBatchWithoutGradient(), monitor)
    scalars = read(tmp_path)
    assert "stepsize_mean/head.weight" in scalars
    assert "update_ratio/head.weight" not in scalars


@pytest.mark.parametrize("name", ["aida", "adam"])
def test_the_step_that_ends_training_is_an_epochs_last(tmp_path, name):
    statistics = ["update_ratio", "gradient_cosine"]
    brute_force = BruteForce()
    monitor = StepsizeMonitor(logging_interval="epoch", statistics=statistics, health=False)
    fit(tmp_path, Net(name), monitor, brute_force, max_epochs=2, max_steps=20)
    assert_equal(read(tmp_path), brute_force, [11, 19], statistics)


def test_mean_and_deviation_alone_are_the_default(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(custom_scalars=False))
    tags = {tag.partition("/")[0] for tag in read(tmp_path)}
    assert tags - {"hp_metric", "loss", "epoch"} == {"stepsize_mean", "stepsize_std"}


def test_one_statistic_alone_can_be_chosen(tmp_path):
    fit(tmp_path, Net(), StepsizeMonitor(statistics="update_ratio"))
    tags = {tag.partition("/")[0] for tag in read(tmp_path)}
    assert tags - {"hp_metric", "loss", "epoch"} == {"update_ratio"}


def test_an_optimizer_without_a_ceiling_gives_a_warning_and_no_share(tmp_path):
    module = TwoOptimizers(["adam", "aida"], every=1)
    monitor = StepsizeMonitor(statistics=["mean", "ceiling_share"])
    with pytest.warns(
        UserWarning, match="logs no ceiling_share for Adam, whose adaptive stepsizes"
    ):
        fit(tmp_path, module, monitor)
    shares = [tag for tag in read(tmp_path) if "ceiling_share" in tag]
    assert shares == ["Aida/stepsize_ceiling_share/features.weight"]


@pytest.mark.parametrize("name", ["ladam", "sgd"])
def test_an_optimizer_without_a_second_moment_per_element_gives_a_warning_and_no_ratio(
    tmp_path, name
):
    monitor = StepsizeMonitor(every_n_steps=1, statistics=["snr", "snr_rows", "weight_norm"])
    with pytest.warns(UserWarning, match="logs no snr and no snr_rows for (LAdam|SGD)") as caught:
        fit(tmp_path, Net(name), monitor)
    assert len([w for w in caught if "logs no snr" in str(w.message)]) == 1
    tags = {tag.partition("/")[0] for tag in read(tmp_path)}
    assert tags - {"hp_metric", "loss", "epoch"} == {"weight_norm"}


def test_a_vector_has_a_ratio_but_none_of_its_rows(tmp_path):
    monitor = StepsizeMonitor("*", every_n_steps=1, statistics=["snr", "snr_rows"])
    fit(tmp_path, Net("adam"), monitor)
    scalars = read(tmp_path)
    assert "snr/features.bias" in scalars
    assert "snr_rows/features.bias" not in scalars
    assert set(scalars["snr/head.bias"].values()) == {1e6}  # of one element


class Registered(torch.optim.RMSprop):
    """Has neither a momentum nor a step that is known by torch's names."""


@stepsize.register
def _(optimizer: Registered, group, state):
    return 1 / (state["square_avg"].sqrt() + group["eps"])


def test_a_registered_optimizer_has_the_statistics_that_it_has_the_state_for(tmp_path):
    statistics = ["mean", "effective_mean", "update_ratio", "gradient_cosine"]
    brute_force = BruteForce()
    brute_force.of = lambda optimizer, group, lr, param, before: {
        "update_ratio": ((param - before).norm() / before.norm()).item(),
        "effective_mean": (
            lr * (1 / (optimizer.state[param]["square_avg"].sqrt() + 1e-8)).mean()
        ).item(),
    }
    monitor = StepsizeMonitor(every_n_steps=1, statistics=statistics)
    fit(tmp_path, Net(Registered, lr=1e-3), monitor, brute_force)
    scalars = read(tmp_path)
    assert_equal(scalars, brute_force, list(range(12)), ["effective_mean", "update_ratio"])
    assert not any(tag.startswith("gradient_cosine") for tag in scalars)


class Wrong(torch.optim.RMSprop):
    """Has functions that return what the test says."""

    stepsizes, update, ceiling = torch.ones(3, 4), None, 1.0


@stepsize.register
def stepsize_of_wrong(optimizer: Wrong, group, state):
    return optimizer.stepsizes


@last_update.register
def update_of_wrong(optimizer: Wrong, group, state, param, lr=None):
    return optimizer.update


@stepsize_ceiling.register
def ceiling_of_wrong(optimizer: Wrong, group):
    return optimizer.ceiling


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "stepsizes",
            None,
            r"stepsize_of_wrong, .*`stepsize.register` .* real tensor, got None",
        ),
        ("stepsizes", 0.5, r"stepsize_of_wrong, .* must return a dense real tensor, got 0.5"),
        ("stepsizes", torch.ones(1) * 1j, r"stepsize_of_wrong, .* a dense real tensor, got tensor"),
        (
            "stepsizes",
            torch.ones(2, dtype=torch.int),
            r"stepsize_of_wrong, .* a dense real",
        ),
        ("stepsizes", torch.eye(2).to_sparse(), r"stepsize_of_wrong, .* a dense real tensor, got"),
        ("update", 0.5, r"update_of_wrong, .*`last_update.register` .* or None, got 0.5"),
        ("ceiling", "1", r"ceiling_of_wrong, .*`stepsize_ceiling.register` .* or None, got '1'"),
    ],
)
def test_a_registered_function_that_returns_another_thing_is_named(
    tmp_path, monkeypatch, name, value, message
):
    monkeypatch.setattr(Wrong, name, value)
    statistics = ["mean", "update_ratio", "ceiling_share"]
    with pytest.raises(TypeError, match=rf"test_statistics\.{message}") as raised:
        fit(tmp_path, Net(Wrong), StepsizeMonitor(every_n_steps=1, statistics=statistics))
    assert "for Wrong, must return" in str(raised.value)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (
            ["mean", "variance"],
            "Unknown statistic 'variance'; the statistics are mean, std, std_over_mean,",
        ),
        (["q5"], "Unknown statistic 'q5'; .* median, and q01 to q99 for quantiles"),
        ([3], "statistics must be a statistic or a list of them, got"),
        ([], "statistics must name at least one statistic, got"),
    ],
)
def test_statistics_that_there_are_not_are_named(statistics, message):
    with pytest.raises(MisconfigurationException, match=message):
        StepsizeMonitor(statistics=statistics)
