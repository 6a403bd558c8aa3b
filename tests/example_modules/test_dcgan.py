import pytest
import torch
from torch import nn

from aida_lightning.example_modules import dcgan_critic, dcgan_generator

CHANNELS = [64, 128, 256, 512]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Sequential]:
    torch.manual_seed(0)
    return {"generator": dcgan_generator(), "critic": dcgan_critic()}


def of_type(network: nn.Module, kind: type[nn.Module]) -> list:
    return [module for module in network.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(("name", "count"), [("generator", 3_576_704), ("critic", 2_765_569)])
def test_the_parameter_count_is_the_papers(networks, name, count):
    assert sum(p.numel() for p in networks[name].parameters()) == count


def test_latent_vectors_become_images_in_plus_minus_one(networks):
    with torch.no_grad():
        images = networks["generator"](torch.randn(2, 100) * 10)
    assert images.shape == (2, 3, 64, 64)
    assert images.abs().max() <= 1
    assert images.std() > 0.01


def test_images_become_one_value_each(networks):
    with torch.no_grad():
        values = networks["critic"](torch.randn(3, 3, 64, 64))
    assert values.shape == (3,)
    assert values.unique().numel() == 3


def test_the_generators_convolutions_double_the_image_from_4_to_64(networks):
    sizes = []
    convolutions = of_type(networks["generator"], nn.ConvTranspose2d)
    hooks = [
        conv.register_forward_hook(lambda _module, _args, out: sizes.append(tuple(out.shape[1:])))
        for conv in convolutions
    ]
    with torch.no_grad():
        networks["generator"](torch.randn(2, 100))
    for hook in hooks:
        hook.remove()
    assert sizes == [(512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)]


def test_the_critics_convolutions_halve_the_image_from_64_to_4(networks):
    convolutions = of_type(networks["critic"], nn.Conv2d)
    assert [conv.out_channels for conv in convolutions] == CHANNELS
    assert {(conv.kernel_size, conv.stride) for conv in convolutions} == {((4, 4), (2, 2))}
    assert {leaky.negative_slope for leaky in of_type(networks["critic"], nn.LeakyReLU)} == {0.2}


def test_all_convolutions_but_the_critics_first_and_the_generators_last_are_normalised(networks):
    norms = of_type(networks["critic"], nn.BatchNorm2d)
    assert [norm.num_features for norm in norms] == CHANNELS[1:]
    norms = of_type(networks["generator"], nn.BatchNorm2d)
    assert [norm.num_features for norm in norms] == CHANNELS[::-1]
    assert isinstance(networks["generator"][-1], nn.Tanh)


def test_convolutions_start_at_a_spread_of_two_hundredths_without_biases(networks):
    for network in networks.values():
        for conv in of_type(network, (nn.Conv2d, nn.ConvTranspose2d)):
            assert conv.bias is None
            # Of the 3,072 draws in the smallest layer the deviation is within 1.3 % of its own.
            assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert conv.weight.mean().abs().item() < 0.002


def test_batch_norms_gains_start_around_one_and_their_biases_at_zero(networks):
    norms = [norm for network in networks.values() for norm in of_type(network, nn.BatchNorm2d)]
    gains = torch.cat([norm.weight for norm in norms])
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(norm.bias.any() for norm in norms)


def test_width_and_latent_size_set_the_networks_sizes():
    assert dcgan_generator(latent_size=7, width=2)(torch.randn(2, 7)).shape == (2, 3, 64, 64)
    assert of_type(dcgan_critic(width=2), nn.Linear)[0].in_features == 2 * 8 * 16


def test_sizes_under_one_are_refused():
    with pytest.raises(ValueError, match="latent_size value: 0, it must be at least 1"):
        dcgan_generator(latent_size=0)
    with pytest.raises(ValueError, match="width value: 0, it must be at least 1"):
        dcgan_critic(width=0)
