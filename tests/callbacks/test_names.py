"""The names of layers in wrappers, of tied and of parametrized ones."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from toy import Net, fit, read

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.measuring._names import names_of, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def logged(folder):
    return {tag.partition("/")[2] for tag in read(folder) if tag.startswith("stepsize_mean/")}


class Wrapped(Net):
    def __init__(self, wrap):
        super().__init__()
        self.features, self.head = wrap(self.features), wrap(self.head)


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_checkpoint(module):
    return compiled(checkpoint_wrapper(module))


class Replica(nn.parallel.DistributedDataParallel):
    """Wraps as its base does, without processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


def in_a_module_of_its_own(module):
    """Return a module whose part is called as DDP calls what it wraps."""
    wrapper = nn.Sequential()
    wrapper.module = module
    return wrapper


def compiled_replica(module):
    return Replica(compiled(module))


@pytest.mark.parametrize(
    "wrap", [checkpoint_wrapper, compiled, compiled_checkpoint, Replica, compiled_replica]
)
@pytest.mark.parametrize("layers", [None, ["head.weight", "f*.weight"]])
def test_wrappers_are_in_neither_tags_nor_globs(tmp_path, wrap, layers):
    with torch.compiler.set_stance("force_eager"):  # The names are the same.
        fit(tmp_path, Wrapped(wrap), StepsizeMonitor(layers))
    assert logged(tmp_path) == {"features.weight", "head.weight"}


def test_names_are_those_of_the_state_dict_where_torch_leaves_the_wrapper_out():
    module = nn.Sequential(checkpoint_wrapper(nn.Sequential(checkpoint_wrapper(nn.Linear(1, 1)))))
    assert [own[0] for own in names_of(module).values()] == [*module.state_dict()]


def test_a_glob_may_name_the_wrapper(tmp_path):
    layers = ["head._checkpoint_wrapped_module.weight"]
    fit(tmp_path, Wrapped(checkpoint_wrapper), StepsizeMonitor(layers))
    assert logged(tmp_path) == {"head.weight"}


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    fit(tmp_path, Wrapped(in_a_module_of_its_own), StepsizeMonitor())
    assert logged(tmp_path) == {"features.module.weight", "head.module.weight"}


class Bracketed(Net):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"[0]": nn.Linear(3, 3), "0": nn.Linear(3, 3)})

    def loss(self, batch):
        hidden = self.features(batch[0])
        for block in self.blocks.values():
            hidden = block(hidden).tanh()
        return self.head(hidden).square().mean()


@pytest.mark.parametrize("layer", ["[0]", "0", "[1-]"])
def test_an_exact_name_is_taken_before_it_is_read_as_a_glob(tmp_path, layer):
    module = Bracketed()
    if layer == "[1-]":
        module.blocks["1"] = nn.Linear(3, 3)
    fit(tmp_path, module, StepsizeMonitor(f"blocks.{layer}.weight"))
    assert logged(tmp_path) == {f"blocks.{'1' if layer == '[1-]' else layer}.weight"}


class Tied(Bracketed):
    def __init__(self):
        super().__init__()
        self.blocks["0"].weight = self.blocks["[0]"].weight


@pytest.mark.parametrize("layers", [None, "blocks.[0].weight", "blocks.0.weight", "*.0.w*", "bl*t"])
def test_a_tied_weight_has_either_name_and_is_logged_under_the_first(tmp_path, layers):
    fit(tmp_path, Tied(), StepsizeMonitor(layers))
    assert {name for name in logged(tmp_path) if "blocks" in name} == {"blocks.[0].weight"}


def weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The older function is deprecated.
        return nn.utils.weight_norm(module)


@pytest.mark.parametrize(
    ("wrap", "suffix"),
    [
        (parametrizations.weight_norm, "parametrizations.weight.original1"),
        (parametrizations.spectral_norm, "parametrizations.weight.original"),
        (weight_norm, "weight_v"),
    ],
)
def test_a_gain_is_no_weight_and_not_chosen_by_default(tmp_path, wrap, suffix):
    fit(tmp_path, Wrapped(wrap), StepsizeMonitor())
    assert logged(tmp_path) == {f"features.{suffix}", f"head.{suffix}"}


class RMS(nn.Module):
    """A norm whose class does not say so."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class LlamaRMSNorm(RMS):
    pass


class Scaled(RMS):
    """Has a gain beside its weight."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 3))


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(3))


class Paths(RMS):
    """Keeps its weights in one dimension, as e3nn does."""


def test_weights_are_matrices_and_what_parts_call_their_only_weight():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 3),
            "layer": nn.LayerNorm(3),
            "group": nn.GroupNorm(1, 3),
            "batch": nn.BatchNorm1d(3),
            "instance": nn.InstanceNorm1d(3, affine=True),
            "llama": LlamaRMSNorm(),
            "norm1": RMS(),
            "slope": nn.PReLU(3),
            "scaled": Scaled(),
            "layer_scale": LayerScale(),
            "tensor_product": Paths(),
        }
    )
    net.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
    chosen = [own[0] for param, own in names_of(net).items() if param in weights(net)]
    assert chosen == ["cls_token", "linear.weight", "scaled.matrix", "tensor_product.weight"]


def test_a_parametrized_layer_is_chosen_by_the_name_of_its_result(tmp_path):
    fit(tmp_path, Wrapped(parametrizations.weight_norm), StepsizeMonitor(["he*.weight"]))
    assert logged(tmp_path) == {f"head.parametrizations.weight.original{n}" for n in (0, 1)}


def test_checkpointed_layers_keep_their_names_under_fsdp2():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        expected = [[name] for name, _ in net.named_parameters()]
        net[0] = checkpoint_wrapper(net[0])
        mesh = init_device_mesh("cpu", (1,))
        for part in (net[0], net):
            fully_shard(part, mesh=mesh)
        assert any("_checkpoint_wrapped_module" in name for name, _ in net.named_parameters())
        assert [*names_of(net).values()] == expected
    finally:
        dist.destroy_process_group()
