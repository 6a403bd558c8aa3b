"""Which layers are watched, where there are more than can be looked at."""

import re
from itertools import pairwise

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn
from toy import Net, fit, read

from aida_lightning import build_optimizer
from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.callbacks._layers import spread

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
NAMES = [f"layers.{index}" for index in range(10_000)]


class Deep(Net):
    """10,000 layers of two elements each."""

    def __init__(self):
        super().__init__("ladam")
        self.features = self.head = None
        self.layers = torch.nn.ParameterList(torch.ones(2, 1) for _ in NAMES)

    def loss(self, batch):
        return torch.cat([*self.layers]).square().sum()


def logged_layers(folder):
    tags = [tag for tag in read(folder) if tag.startswith("stepsize_mean/")]
    return [tag.removeprefix("stepsize_mean/") for tag in tags]


def test_of_10_000_layers_some_are_logged_and_one_warning_says_which(tmp_path):
    with pytest.warns(UserWarning, match="StepsizeMonitor found") as caught:
        fit(tmp_path, Deep(), StepsizeMonitor(every_n_steps=1), max_steps=1)
    (message,) = [str(w.message) for w in caught if "StepsizeMonitor" in str(w.message)]
    assert "found 10,000 layers and logs 256 of them, evenly spread" in message
    assert "['layers.0', 'layers.39', 'layers.78', " in message
    assert "…, " in message
    assert "layers=['*.attn.*.weight']; max_layers=None logs all" in message
    layers = logged_layers(tmp_path)
    assert len(layers) == 256
    assert (layers[0], layers[-1]) == ("layers.0", "layers.9999")
    numbers = [int(layer.removeprefix("layers.")) for layer in layers]
    assert {b - a for a, b in pairwise(numbers)} == {39, 40}


def test_all_10_000_are_logged_on_request(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=1, max_layers=None, custom_scalars=False)
    fit(tmp_path, Deep(), monitor, max_steps=1)
    assert logged_layers(tmp_path) == NAMES


def test_globs_that_match_few_need_no_cap(tmp_path):
    fit(tmp_path, Deep(), StepsizeMonitor(["layers.??", "layers.777*"], 1), max_steps=1)
    assert logged_layers(tmp_path) == [*NAMES[10:100], "layers.777", *NAMES[7770:7780]]


@pytest.mark.parametrize("count", [1, 2, 3, 9_999])
def test_the_cap_holds_for_any_number(count):
    layers = {param: name for name, param in Deep().named_parameters()}
    with pytest.warns(UserWarning, match=f"logs {count:,} of them"):
        chosen = spread(layers, count)
    assert len({*chosen.values()}) == count
    assert next(iter(chosen.values())) == "layers.0"
    assert count == 1 or [*chosen.values()][-1] == "layers.9999"
    assert chosen.items() <= layers.items()


@pytest.mark.parametrize("before", [0, 1, 3, 4])
def test_layers_that_were_chosen_stay_and_others_fill_the_places_that_are_left(before):
    layers = {param: name for name, param in Deep().named_parameters()}
    chosen = [*layers][100 : 100 + before]
    with pytest.warns(UserWarning, match="logs 4 of them"):
        found = spread(layers, 4, chosen)
    assert {*chosen} <= found.keys()
    assert len(found) == 4
    assert [*found] == [param for param in layers if param in found]


def test_an_error_of_many_layers_can_be_read(tmp_path):
    with pytest.raises(
        MisconfigurationException, match="matches 'conv'; the layers are: "
    ) as raised:
        fit(tmp_path, Deep(), StepsizeMonitor("conv"))
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "max_layers must be >= 1, got 0"),
        (2.5, "max_layers must be an int >= 1 or None, got 2.5"),
        (True, "max_layers must be an int >= 1 or None, got True"),
    ],
)
def test_bad_caps_are_named(value, message):
    with pytest.raises(MisconfigurationException, match=message):
        StepsizeMonitor(max_layers=value)


def test_layers_that_nothing_trains_are_told(tmp_path):
    model = Net()
    model.features.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"frozen, or no optimizer holds them. .*features.weight"):
        fit(tmp_path, model, StepsizeMonitor("features.*"))


class Vectors(Net):
    """Has no weights but vectors of its own."""

    def __init__(self):
        super().__init__()
        self.features = self.head = None
        self.a, self.b = (nn.Parameter(torch.ones(shape)) for shape in (4, ()))

    def loss(self, batch):
        return (self.b + batch[0] @ self.a).square().mean()


def test_what_is_trained_is_logged_where_there_are_no_weights(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(tmp_path, Vectors(), StepsizeMonitor(every_n_steps=1))
    assert logged_layers(tmp_path) == ["a", "b"]
    (told,) = [message for message in caplog.messages if "StepsizeMonitor" in message]
    assert "found no weights" in told
    assert "logs all of these: ['a', 'b']. Choose others with `layers`" in told


class ThawsHead(Callback):
    def on_train_epoch_start(self, trainer, module):
        module.head.weight.requires_grad_(trainer.current_epoch == 1)


def test_biases_are_logged_where_they_alone_are_trained_and_weights_join_them(tmp_path, recwarn):
    model = Net()
    model.features.weight.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters())
    fit(tmp_path, model, StepsizeMonitor(every_n_steps=1), ThawsHead(), max_epochs=2)
    assert {*logged_layers(tmp_path)} == {"features.bias", "head.bias", "head.weight"}
    scalars = read(tmp_path)
    assert sorted(scalars["stepsize_mean/features.bias"]) == [*range(24)]
    assert sorted(scalars["stepsize_mean/head.weight"]) == [*range(12, 24)]
    assert not [w for w in recwarn if "StepsizeMonitor" in str(w.message)]


class LowRank(Net):
    """Many frozen matrices, and some that train."""

    def __init__(self):
        super().__init__()
        self.base = nn.ModuleList(nn.Linear(3, 3) for _ in range(12)).requires_grad_(False)
        self.adapters = nn.ModuleList(nn.Linear(3, 3) for _ in range(5))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())  # the frozen ones too

    def loss(self, batch):
        hidden = self.features(batch[0])
        for layer in (*self.base, *self.adapters):
            hidden = hidden + layer(hidden).tanh()
        return self.head(hidden).square().mean()


ADAPTERS = {f"adapters.{index}.weight" for index in range(5)}
TRAINED = {"features.weight", "head.weight", *ADAPTERS}


@pytest.mark.parametrize("max_layers", [7, 4])
def test_frozen_layers_take_no_place(tmp_path, recwarn, max_layers):
    monitor = StepsizeMonitor(every_n_steps=1, max_layers=max_layers)
    fit(tmp_path, LowRank(), monitor, max_steps=1)
    logged = {*logged_layers(tmp_path)}
    assert len(logged) == max_layers
    assert logged <= TRAINED
    told = [str(w.message) for w in recwarn if "StepsizeMonitor found" in str(w.message)]
    assert ["found 7 layers and logs 4 of them" in message for message in told] == [True] * (
        max_layers < 7
    )


class Thaws(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            module.base.requires_grad_(True)


def test_layers_that_thaw_fill_the_places_that_are_left(tmp_path):
    monitor = StepsizeMonitor(every_n_steps=12, max_layers=10)
    with pytest.warns(UserWarning, match="found 19 layers and logs 10 of them"):
        fit(tmp_path, LowRank(), monitor, Thaws(), max_epochs=2)
    logged = {*logged_layers(tmp_path)}
    assert logged - TRAINED == {"base.0.weight", "base.5.weight", "base.11.weight"}
    scalars = read(tmp_path)
    for layer in logged:
        expected = [11, 23] if layer in TRAINED else [23]
        assert sorted(scalars[f"stepsize_mean/{layer}"]) == expected


class Toggles(LowRank):
    """Two optimizers, each of which freezes the layers of the other for its step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        parts = (nn.ModuleList([self.features, self.head]), self.adapters)
        return [build_optimizer("aida", part) for part in parts]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def test_layers_that_are_frozen_for_another_ones_step_keep_their_places(tmp_path, recwarn):
    monitor = StepsizeMonitor(every_n_steps=1, max_layers=4)
    fit(tmp_path, Toggles(), monitor, max_epochs=1)
    assert len([w for w in recwarn if "StepsizeMonitor" in str(w.message)]) == 1
    means = {tag: points for tag, points in read(tmp_path).items() if "stepsize_mean/" in tag}
    assert len(means) == 4
    assert all(sorted(points) == list(range(12)) for points in means.values())


class Lazy(Net):
    def __init__(self, *layers):
        super().__init__()
        self.features, self.head = layers


@pytest.mark.filterwarnings("ignore:.*Lazy modules are a new feature.*")
@pytest.mark.parametrize("lazy", [1, 2])
def test_lazy_layers_are_chosen_by_the_shape_that_they_get(tmp_path, lazy):
    layers = (
        [nn.LazyLinear(3), nn.LazyLinear(1)] if lazy == 2 else [nn.Linear(4, 3), nn.LazyLinear(1)]
    )
    fit(tmp_path, Lazy(*layers), StepsizeMonitor())
    scalars = read(tmp_path)
    watched = {tag.split("/")[1] for tag in scalars if tag.startswith("stepsize_mean/")}
    assert watched == {"features.weight", "head.weight"}
    assert sorted(scalars["stepsize_mean/head.weight"]) == [4, 9]


class LateLazy(Lazy):
    """The head is first used in the second batch, and the loss is not given to Lightning."""

    def __init__(self):
        super().__init__(nn.Linear(4, 3), nn.LazyLinear(1))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        features = self.features(batch[0]).tanh()
        (self.head(features) if batch_idx else features).square().mean().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*Lazy modules are a new feature.*")
def test_a_layer_that_gets_its_shape_later_joins_in(tmp_path):
    fit(tmp_path, LateLazy(), StepsizeMonitor(every_n_steps=1))
    scalars = read(tmp_path)
    assert sorted(scalars["stepsize_mean/features.weight"]) == list(range(12))
    assert sorted(scalars["stepsize_mean/head.weight"]) == list(range(1, 12))


@pytest.mark.parametrize("layers", [5, ["*", 1], True])
def test_layers_that_are_no_globs_are_refused(layers):
    with pytest.raises(
        MisconfigurationException, match=rf"must be a glob or .*, got {re.escape(repr(layers))}"
    ):
        StepsizeMonitor(layers=layers)
