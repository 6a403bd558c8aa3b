"""The statistics of a step that need no adaptive stepsizes, of optimizers of any kind."""

import logging
import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from toy import Net, TwoOptimizers, fit, read

from aida_lightning import measure_step
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.diagnostics import last_update
from aida_lightning.measuring._hooks import StepHooks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
OF_THE_STEP = ["update_ratio", "update_norm", "weight_norm", "gradient_norm", "gradient_cosine"]


class InFloat64(Callback):
    """After every step, by tag: each statistic in float64, from what the test itself has kept."""

    momentum = "momentum_buffer"

    def __init__(self):
        self.at = {}

    def on_train_batch_start(self, trainer, module, *args):
        self.before = {n: p.detach().double() for n, p in module.named_parameters()}

    def on_train_batch_end(self, trainer, module, *args):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        state = {p: s for o in trainer.optimizers for p, s in getattr(o, "state", {}).items()}
        for name, param in module.named_parameters():
            after, before, g = param.detach().double(), self.before[name], param.grad.double()
            numbers = {
                "update_norm": (after - before).norm(),
                "update_ratio": (after - before).norm() / before.norm(),
                "weight_norm": after.norm(),
                "gradient_norm": g.norm(),
            }
            if (m := state.get(param, {}).get(self.momentum)) is not None:
                flat = m.double().flatten(), g.flatten()
                numbers["gradient_cosine"] = nn.functional.cosine_similarity(*flat, dim=0)
            for tag, number in numbers.items():
                self.at.setdefault(f"{tag}/{name}", {})[step] = number.item()


def assert_equal(scalars, expected, prefix="", tags=OF_THE_STEP):
    found = {tag for tag in scalars if tag.removeprefix(prefix).partition("/")[0] in OF_THE_STEP}
    wanted = {
        f"{prefix}{tag}"
        for tag in expected
        if tag.endswith("weight") and tag.partition("/")[0] in tags
    }
    assert found == wanted
    for tag in wanted:
        for step, number in scalars[tag].items():
            right = expected[tag.removeprefix(prefix)][step]
            # Event files hold float32.
            assert number == pytest.approx(right, rel=1e-6, abs=1e-7), (tag, step)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimizer_without_stepsizes_has_its_update_logged_and_one_line_says_so(
    tmp_path, caplog, momentum
):
    expected = InFloat64()
    module = Net("sgd", lr=0.1, momentum=momentum)
    with caplog.at_level(logging.INFO):
        fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), expected)
    scalars = read(tmp_path)
    tags = OF_THE_STEP if momentum else OF_THE_STEP[:-1]
    assert_equal(scalars, expected.at, tags=tags)
    assert sorted(scalars["update_ratio/head.weight"]) == [*range(12)]
    (line,) = [r.message for r in caplog.records if "StepsizeMonitor" in r.message]
    assert line == (
        "StepsizeMonitor: SGD has no adaptive stepsizes, because one learning rate moves all "
        f"elements of a layer; it logs {', '.join(OF_THE_STEP)} (if there is a momentum) instead "
        "of stepsize_mean, stepsize_std."
    )


class Unknown(torch.optim.Optimizer):
    """Of a class that nobody registered."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        loss = closure()
        for param in self.param_groups[0]["params"]:
            param.sub_(param.grad.sign(), alpha=self.param_groups[0]["lr"])
        return loss


def test_a_class_that_is_not_known_is_named_with_its_module(tmp_path):
    with pytest.warns(UserWarning, match="StepsizeMonitor does not know") as caught:
        fit(tmp_path, Net(Unknown, lr=0.1), StepsizeMonitor(every_n_steps=1))
    (told,) = [str(w.message) for w in caught if "StepsizeMonitor" in str(w.message)]
    assert f"the adaptive stepsizes of {__name__}.Unknown; it logs update_ratio" in told
    assert "update_norm/head.weight" in read(tmp_path)


def test_statistics_that_can_be_had_are_those_asked_for(tmp_path, caplog):
    monitor = StepsizeMonitor(every_n_steps=1, statistics=["std", "weight_norm"])
    with caplog.at_level(logging.INFO):
        fit(tmp_path, Net("sgd", lr=0.1), monitor)
    tags = {tag.partition("/")[0] for tag in read(tmp_path)}
    assert tags - {"hp_metric", "loss", "epoch"} == {"weight_norm"}
    assert "it logs weight_norm instead of stepsize_std." in caplog.text


def test_beside_one_with_stepsizes_each_optimizer_has_its_own(tmp_path):
    fit(tmp_path, TwoOptimizers(["aida", "sgd"], every=1, lr=0.01), StepsizeMonitor("*", 1))
    tags = {tuple(tag.split("/")[:2]) for tag in read(tmp_path) if "/" in tag}
    assert {tag for optimizer, tag in tags if optimizer == "Aida"} == {
        "stepsize_mean", "stepsize_std", "z_stepsize_band"
    }  # fmt: skip
    assert {tag for optimizer, tag in tags if optimizer == "SGD"} == {*OF_THE_STEP}


class GoesBack:
    """Holds an optimizer, and after every second step goes back half of the way."""

    def hold(self, inner):
        self.inner, self.taken = inner, 0
        self.slow = [p.detach().clone() for g in inner.param_groups for p in g["params"]]

    @torch.no_grad()
    def take(self, closure):
        loss = self.inner.step(closure)
        self.taken += 1
        if self.taken % 2 == 0:
            for slow, param in zip(self.slow, self.param_groups[0]["params"], strict=True):
                slow.lerp_(param, 0.5)
                param.copy_(slow)
        return loss


class Lookahead(GoesBack, torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.hold(inner)

    def step(self, closure=None):
        return self.take(closure)


class WithoutHooks(GoesBack, torch.optim.Optimizer):
    """Has not called torch.optim.Optimizer.__init__, like many wrappers."""

    def __init__(self, inner):
        self.param_groups, self.state, self.defaults = inner.param_groups, {}, {}
        self.hold(inner)

    def step(self, closure=None):
        return self.take(closure)


@pytest.mark.filterwarnings("ignore:StepsizeMonitor does not know")
@pytest.mark.parametrize("wrapper", [Lookahead, WithoutHooks])
def test_an_optimizer_and_the_one_that_it_holds_are_watched_by_name(tmp_path, wrapper):
    module, expected = Net(), InFloat64()
    module.configure_optimizers = lambda: wrapper(torch.optim.Adam(module.parameters(), lr=0.01))
    trainer = fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), expected)
    scalars = read(tmp_path)
    assert {tag.split("/")[1] for tag in scalars if tag.startswith("Adam/")} >= {
        "stepsize_mean", "stepsize_std"
    }  # fmt: skip
    # What the wrapper makes of the weights, not only what the other does.
    assert_equal(scalars, expected.at, f"{wrapper.__name__}/", OF_THE_STEP[:-1])
    assert "step" not in vars(trainer.optimizers[0])


class Several(torch.optim.Optimizer):
    """Holds an optimizer per layer, as those do that train matrices by Muon."""

    def __init__(self, *inner):
        super().__init__([g for o in inner for g in o.param_groups], {})
        self.inner = {"matrices": inner[0], "others": inner[1]}

    def step(self, closure=None):
        loss = closure()
        for optimizer in self.inner.values():
            optimizer.step()
        return loss


@pytest.mark.filterwarnings("ignore:StepsizeMonitor does not know")
def test_optimizers_in_one_are_watched_under_their_names(tmp_path):
    module = Net()
    module.configure_optimizers = lambda: Several(
        torch.optim.Adam(module.features.parameters()), torch.optim.Adam(module.head.parameters())
    )
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1))
    found = {tuple(tag.split("/")) for tag in read(tmp_path) if "stepsize_mean/" in tag}
    assert found == {
        ("Adam", "stepsize_mean", "features.weight"), ("Adam-1", "stepsize_mean", "head.weight"),
    }  # fmt: skip
    assert "Several/update_ratio/head.weight" in read(tmp_path)


class ChangesGradients(torch.optim.SGD):
    """Changes the gradients in place, as some packages' optimizers do, after its closure."""

    def step(self, closure=None):
        loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.mul_(-7).add_(1)
        super().step()
        return loss


def test_gradients_are_those_that_the_optimizer_was_given(tmp_path):
    class Norms(Callback):
        def __init__(self):
            self.at = {}

        def on_before_optimizer_step(self, trainer, module, optimizer):
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self.at[step] = module.head.weight.grad.norm().item()

    norms = Norms()
    module = Net(ChangesGradients, lr=0.01, momentum=0.9)
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), norms)
    scalars = read(tmp_path)
    assert scalars["gradient_norm/head.weight"] == pytest.approx(norms.at, rel=1e-6)
    # The momentum is of the changed ones, whose direction is another.
    assert all(abs(x) < 0.999 for x in scalars["gradient_cosine/features.weight"].values())


def test_a_sparse_gradient_has_a_norm_and_no_cosine(tmp_path):
    class Embeds(Net):
        def __init__(self):
            super().__init__("sgd", lr=0.1, momentum=0.9)
            self.table = nn.Embedding(5, 4, sparse=True)

        def loss(self, batch):
            found = self.table(torch.tensor([1, 1, 3]))
            return self.head(self.features(found + batch[0]).tanh()).square().mean()

    fit(tmp_path, Embeds(), StepsizeMonitor(every_n_steps=1))
    scalars = read(tmp_path)
    assert all(x > 0 for x in scalars["gradient_norm/table.weight"].values())
    assert "gradient_cosine/table.weight" not in scalars
    assert "gradient_cosine/head.weight" in scalars


def test_figures_and_histograms_of_an_optimizer_without_stepsizes_are_none(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, Net("sgd", lr=0.1), StepsizeMonitor(figures=True, histograms=True))
    assert not any("stepsize" in tag for tag in read(tmp_path))
    assert "stepsize_std, and draws no histograms and no figures." in caplog.text


def test_optimizers_of_one_class_have_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, TwoOptimizers(["sgd", "sgd"], every=1, lr=0.01), StepsizeMonitor("*", 1))
    assert caplog.text.count("SGD has no adaptive stepsizes") == 1


def test_the_gradient_is_the_given_one_under_nesterovs_momentum(tmp_path):
    class Before(Callback):
        def __init__(self):
            self.at = {}

        def on_before_optimizer_step(self, trainer, module, optimizer):
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self.at[step] = module.head.weight.grad.norm().item()

    module = Net(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    before = Before()
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1), before)
    assert read(tmp_path)["gradient_norm/head.weight"] == pytest.approx(before.at, rel=1e-6)


class DropsGradients(torch.optim.SGD):
    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad()
        return loss


def test_a_step_that_drops_its_gradients_is_measured(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=1)
    fit(tmp_path, Net(DropsGradients, lr=0.1), monitor)
    scalars = read(tmp_path)
    assert sorted(scalars["gradient_norm/head.weight"]) == [*range(12)]
    assert monitor.state_dict() == {"steps": {"DropsGradients": 12}}


class TakesAModule(torch.optim.Optimizer):
    """Is given the module beside the closure, as second-order optimizers are."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None, module=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for param in module.parameters():
            param.sub_(param.grad, alpha=self.param_groups[0]["lr"])
        return loss


@pytest.mark.parametrize("positional", [True, False])
def test_other_arguments_of_a_step_stay_as_they_are(positional):
    module = nn.Linear(2, 1)
    optimizer = TakesAModule(module.parameters(), lr=0.1)
    seen = []

    def closure():
        optimizer.zero_grad()
        module(torch.ones(1, 2)).sum().backward()
        seen.append(module.weight.grad.norm().item())

    arguments = (closure, module) if positional else ()
    named = {} if positional else {"closure": closure, "module": module}
    with measure_step(optimizer, module) as numbers:
        optimizer.step(*arguments, **named)
    assert numbers["gradient_norm/weight"] == pytest.approx(seen[0])
    module.weight.grad = torch.full((1, 2), 3.0)
    with measure_step(optimizer, module) as numbers:
        optimizer.step(None, module)
    assert numbers["gradient_norm/weight"] == pytest.approx(3 * 2**0.5)


def test_a_step_that_raises_and_is_taken_again_is_counted(tmp_path):
    class Retries(Net):
        def __init__(self):
            super().__init__("sgd", lr=0.1)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            if batch_idx == 3:
                with pytest.raises(MemoryError):
                    optimizer.step(closure=self.fails)
            optimizer.step()

        def fails(self):
            raise MemoryError

    monitor = StepsizeMonitor(every_n_steps=1)
    fit(tmp_path, Retries(), monitor)
    assert sorted(read(tmp_path)["update_ratio/head.weight"]) == [*range(12)]
    assert monitor.state_dict() == {"steps": {"SGD": 12}}


def test_a_wrapped_step_is_unwrapped_with_its_last_hooks():
    class Plain:  # a class that torch has not put its hooks into
        def __init__(self, inner):
            self.param_groups, self.step = inner.param_groups, inner.step

    param = nn.Parameter(torch.ones(2))
    optimizer = Plain(torch.optim.Adam([param], lr=0.01))
    own = optimizer.step
    param.grad = torch.ones(2)
    calls = []
    hooks = [
        StepHooks(optimizer, lambda: None, lambda: None, lambda took, n=n: calls.append((n, took)))
        for n in range(2)
    ]
    for each in hooks:
        each.attach()
    optimizer.step()
    hooks[0].detach()
    optimizer.step()
    hooks[1].detach()
    assert optimizer.step == own
    optimizer.step()
    assert calls == [(0, {param}), (1, {param}), (1, {param})]


def test_a_step_before_the_logged_batch_is_said_to_have_no_update(tmp_path, caplog):
    class EveryFourth(Net):
        def __init__(self):
            super().__init__("sgd", lr=0.1)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))
            if batch_idx % 4 == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()

    with caplog.at_level(logging.INFO):
        fit(tmp_path, EveryFourth(), StepsizeMonitor())
    (line,) = [r.message for r in caplog.records if "StepsizeMonitor logs no" in r.message]
    assert "update_norm, gradient_norm, gradient_cosine for a step that SGD" in line
    assert "every_n_steps=n" in line


def test_an_update_that_no_function_tells_is_that_of_a_copy(tmp_path):
    class SometimesTells(torch.optim.SGD):
        pass

    last_update.register(SometimesTells, lambda *arguments: None)
    fit(tmp_path, Net(SometimesTells, lr=0.1), StepsizeMonitor(every_n_steps=1))
    assert sorted(read(tmp_path)["update_norm/head.weight"]) == [*range(1, 12)]


@pytest.mark.filterwarnings("ignore:StepsizeMonitor does not know")
def test_an_optimizer_in_nested_containers_and_without_defaults_is_watched(tmp_path):
    class Nested(Several):
        def __init__(self, *inner):
            super().__init__(*inner)
            for optimizer in inner:
                del optimizer.defaults
            self.inner = {"all": [(inner[0],), [inner[1]]]}

        def step(self, closure=None):
            loss = closure()
            (first,), (second,) = self.inner["all"]
            first.step(lambda: None), second.step(lambda: None)
            return loss

    module = Net()
    module.configure_optimizers = lambda: Nested(
        Unknown(module.features.parameters(), lr=0.1), Unknown(module.head.parameters(), lr=0.1)
    )
    fit(tmp_path, module, StepsizeMonitor(every_n_steps=1))
    assert "Unknown-1/update_norm/head.weight" in read(tmp_path)


def test_monitors_that_show_bands_of_other_layers_are_two(tmp_path):
    one, two = (StepsizeMonitor(custom_scalars=[f"{name}.*"]) for name in ("head", "features"))
    assert one.state_key != two.state_key


def test_a_number_that_is_not_finite_is_told_without_stepsizes_too(tmp_path):
    class Diverges(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx == 5 else 1)

    with pytest.warns(UserWarning, match="a statistic is not finite. Layers: features.weight"):
        fit(tmp_path, Diverges("sgd", lr=0.1), StepsizeMonitor(every_n_steps=1))
