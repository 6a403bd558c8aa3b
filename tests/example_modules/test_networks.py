import pytest
import torch
from torch import nn

from aida_lightning.example_modules import NETWORKS, resnet34, vgg11

PARAMETERS = {"vgg11": 9_750_922, "vgg11_x0_25": 611_434, "resnet34": 21_282_122}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: build(10) for name, build in NETWORKS.items()}


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameter_count_is_the_architectures(networks, name):
    assert sum(p.numel() for p in networks[name].parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_images_become_one_logit_a_class(networks, name):
    with torch.no_grad():
        assert networks[name].eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("build", [vgg11, resnet34])
def test_num_classes_sets_the_last_layers_width(build):
    assert list(build(num_classes=7).parameters())[-1].shape == (7,)


def test_vgg11_has_eleven_weights_and_the_names_of_torchvisions(networks):
    names = [name for name, p in networks["vgg11"].named_parameters() if p.ndim > 1]
    assert len(names) == 11
    assert names[0] == "features.0.weight"
    assert names[-1] == "classifier.6.weight"


def test_vgg11_convolutions_start_at_the_papers_spread_without_bias(networks):
    convs = convolutions(networks["vgg11"])
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 256, 512, 512, 512, 512]
    for conv in convs:
        expected = (2 / (9 * conv.out_channels)) ** 0.5
        # Of 1,728 draws in the first layer the standard deviation is within 1.7 % of its own.
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.06)
        assert conv.weight.mean().abs().item() < 0.1 * expected
        assert not conv.bias.any()


def test_vgg11_of_a_quarter_of_the_width_has_the_same_layers(networks):
    narrow, full = networks["vgg11_x0_25"], networks["vgg11"]
    assert [type(module) for module in narrow.modules()] == [type(m) for m in full.modules()]
    assert [4 * p.numel() for p in narrow.parameters() if p.ndim == 1][:-1] == [
        p.numel() for p in full.parameters() if p.ndim == 1
    ][:-1]
    assert narrow.classifier[6].weight.shape == (10, 128)


def test_a_tiny_width_keeps_a_channel_in_each_layer():
    assert {p.shape[0] for p in vgg11(width_mult=1e-3).parameters()} == {1, 10}


@pytest.mark.parametrize("width_mult", [0, -1.0, float("nan")])
def test_a_width_that_is_not_positive_is_refused(width_mult):
    with pytest.raises(ValueError, match=f"width_mult value: {width_mult}, it must be positive"):
        vgg11(width_mult=width_mult)


def test_vgg11_drops_half_before_each_hidden_linear_layer(networks):
    kinds = [type(module) for module in networks["vgg11"].classifier]
    assert kinds == [
        *(nn.Dropout, nn.Linear, nn.ReLU),
        *(nn.Dropout, nn.Linear, nn.ReLU),
        nn.Linear,
    ]
    assert networks["vgg11"].classifier[0].p == 0.5


def test_vgg11_has_no_batch_normalisation(networks):
    assert not any(isinstance(m, nn.BatchNorm2d) for m in networks["vgg11"].modules())


def test_resnet34_keeps_the_resolution_up_to_the_first_stage(networks):
    network = networks["resnet34"].eval()
    sizes = []
    hooks = [
        stage.register_forward_hook(lambda _module, _args, out: sizes.append(out.shape[1:]))
        for stage in (network.conv1, network.layer1, network.layer2, network.layer3, network.layer4)
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert sizes == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_resnet34_has_the_3_4_6_3_blocks_and_a_1x1_shortcut_where_the_width_grows(networks):
    network = networks["resnet34"]
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    assert [len(stage) for stage in stages] == [3, 4, 6, 3]
    assert stages[0][0].downsample is None
    for stage in stages[1:]:
        conv, norm = stage[0].downsample
        assert conv.kernel_size == (1, 1)
        assert isinstance(norm, nn.BatchNorm2d)
