"""The warnings about stepsizes that have stopped to adapt."""

import warnings

import pytest
import torch
from toy import Net, TwoOptimizers, fit

from aida_lightning import Aida
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.callbacks._health import Health
from aida_lightning.diagnostics import stepsize_ceiling
from aida_lightning.measuring._layer import AT_THE_CEILING
from aida_lightning.measuring._statistics import Point

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def health_warnings(folder, module, monitor, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, module, monitor, **options)
    return [str(w.message) for w in caught if "StepsizeMonitor" in str(w.message)]


def without_gradient(name, **options):
    """Return a module whose features have gradients of zero."""
    module = Net(name, **options)
    module.features.weight.register_hook(torch.zeros_like)
    return module


@pytest.mark.parametrize("name", ["aida", "adabelief", "laida", "adam+", "adaml"])
@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_a_layer_at_the_ceiling_is_named_once(tmp_path, name, eps):
    module = without_gradient(name, eps=eps, betas=(0.8, 0.9))
    (message,) = health_warnings(tmp_path, module, StepsizeMonitor(every_n_steps=1), max_epochs=3)
    assert "at step 9: all adaptive stepsizes are at their ceiling" in message
    assert "Layers: features.weight. This warning appears once" in message


def test_the_tolerance_is_wide_enough_for_thousands_of_roundings():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = Aida([param], fused=False, foreach=False)
    param.grad = torch.zeros(3)
    ceiling = stepsize_ceiling(optimizer, optimizer.param_groups[0])
    for _ in range(4000):
        optimizer.step()
        s = optimizer.stepsize(param)
        assert (AT_THE_CEILING * ceiling <= s).all()


def test_layers_that_adapt_give_no_warning(tmp_path):
    for name in ("aida", "laida", "adabelief", "adam+", "adam"):
        monitor = StepsizeMonitor(every_n_steps=1)
        module = Net(name, betas=(0.9, 0.8))
        assert health_warnings(tmp_path / name, module, monitor) == []


def test_before_v_has_averaged_over_its_memory_nothing_is_said(tmp_path):
    module = without_gradient("aida", betas=(0.9, 0.98))  # of 50 steps
    monitor = StepsizeMonitor(every_n_steps=1)
    assert health_warnings(tmp_path, module, monitor, max_epochs=4) == []
    (message,) = health_warnings(tmp_path, module, monitor, max_epochs=5)
    assert "at step 49" in message


def test_an_exploding_spread_is_named(tmp_path):
    class Wide(Net):
        """The gradient of one element in 1,000 is zero: its stepsize is 1 / eps."""

        def __init__(self):
            super().__init__("adam", betas=(0.9, 0.8))
            self.features, self.head = torch.nn.Linear(4, 1000), torch.nn.Linear(1000, 1)
            mask = torch.ones(1000, 4)
            mask[0] = 0
            self.features.weight.register_hook(lambda gradient: gradient * mask)

    (message,) = health_warnings(tmp_path, Wide(), StepsizeMonitor(every_n_steps=1))
    assert "std is more than 10 times their mean, so less than 1 % of the elements" in message
    assert "Layers: features.weight." in message


def test_numbers_that_are_not_finite_are_named_with_the_optimizer(tmp_path):
    module = TwoOptimizers(["adam", "aida"], every=1)
    module.head.weight.register_hook(lambda gradient: gradient * torch.nan)
    (message,) = health_warnings(tmp_path, module, StepsizeMonitor(every_n_steps=1))
    assert "a statistic is not finite" in message
    assert "Layers: Adam head.weight." in message


def test_an_update_of_weights_of_zero_is_no_sign_of_illness(tmp_path):
    class Zero(Net):
        def __init__(self):
            super().__init__("aida")
            torch.nn.init.zeros_(self.head.bias)

        def loss(self, batch):
            return (self.head(self.features(batch[0]).tanh()) - 1).square().mean()

    statistics = ["mean", "update_ratio", "gradient_cosine"]
    monitor = StepsizeMonitor("*", 1, statistics=statistics)
    assert health_warnings(tmp_path, Zero(), monitor) == []


def test_each_sign_is_said_once_with_all_the_layers_that_show_it(recwarn):
    def point(layer, mean, variance=0.0, **numbers):
        measured = {"mean": mean, "variance": variance, **numbers}
        return Point("", layer, measured, {"stepsize_mean": mean})

    health = Health()
    ill = [
        point("a", 9.995, ceiling=10.0), point("b", 9.98, ceiling=10.0),
        point("c", 1.0, 100.1), point("d", 1.0, 99.9), point("e", float("inf")),
        point("f", 10.0, ceiling=10.0),
    ]  # fmt: skip
    for step in range(3):
        health.check(ill, step)
    layers = [str(w.message).partition("Layers: ")[2].partition(".")[0] for w in recwarn]
    assert layers == ["a, f", "c", "e"]
    assert all("at step 0" in str(w.message) for w in recwarn)


def test_it_can_be_switched_off(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=1, health=False)
    module = without_gradient("aida", betas=(0.9, 0.8))
    assert health_warnings(tmp_path, module, monitor) == []
