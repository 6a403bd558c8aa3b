"""The DCGAN networks of the paper's GAN experiment (arXiv 2203.13273, Table III), for 64×64."""

from torch import nn

from aida_lightning.datamodules._checks import check_at_least


def dcgan_generator(latent_size: int = 100, width: int = 64) -> nn.Sequential:
    """Build the generator: five transposed 4×4 convolutions from 1×1 to 64×64 pixels.

    The convolutions have ``latent_size``→8·width→4·width→2·width→width→3 channels and no biases,
    with batch norm and ReLU between them and a tanh at the end: 3,576,704 parameters at the
    defaults. Their weights are drawn from N(0, 0.02²) and the norms' gains from N(1, 0.02²), as in
    DCGAN (arXiv 1511.06434).

    Args:
        latent_size: number of elements of a latent vector.
        width: number of channels before the last layer.

    Returns:
        A network from ``(n, latent_size)`` latent vectors to ``(n, 3, 64, 64)`` images in ±1.

    Raises:
        ValueError: an argument is less than 1.

    Example:
        >>> sum(p.numel() for p in dcgan_generator().parameters())
        3576704
    """
    check_at_least(1, latent_size=latent_size, width=width)
    layers: list[nn.Module] = [nn.Unflatten(1, (latent_size, 1, 1))]
    channels, stride, padding = latent_size, 1, 0
    for out in (8 * width, 4 * width, 2 * width, width):
        layers += [
            nn.ConvTranspose2d(channels, out, 4, stride, padding, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        channels, stride, padding = out, 2, 1
    layers += [nn.ConvTranspose2d(channels, 3, 4, stride, padding, bias=False), nn.Tanh()]
    return nn.Sequential(*layers).apply(_init)


def dcgan_critic(width: int = 64) -> nn.Sequential:
    """Build the critic: four 4×4 convolutions of stride 2 and a linear layer.

    The convolutions have 3→width→2·width→4·width→8·width channels and no biases, with LeakyReLU of
    slope 0.2 after each: 2,765,569 parameters at the default. As published, all convolutions except
    the first have batch norm; :func:`~aida_lightning.example_modules.wgan_gp.gradient_penalty`
    explains the consequence for a gradient penalty. The weights are initialised like the
    generator's; the linear layer keeps torch's initialisation, as in the published script.

    Args:
        width: number of channels after the first layer.

    Returns:
        A network from ``(n, 3, 64, 64)`` images to ``(n,)`` values.

    Raises:
        ValueError: ``width`` is less than 1.

    Example:
        >>> sum(p.numel() for p in dcgan_critic().parameters())
        2765569
    """
    check_at_least(1, width=width)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for channels in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    layers += [nn.Flatten(), nn.Linear(8 * width * 4 * 4, 1), nn.Flatten(0)]
    return nn.Sequential(*layers).apply(_init)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
