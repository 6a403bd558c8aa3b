"""The two networks of the paper's CIFAR-10 experiments (arXiv 2203.13273, Table I)."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import cfgs, make_layers


def vgg11(num_classes: int = 10, width_mult: float = 1.0) -> nn.Module:
    """Build VGG11 without batch normalisation for 32×32 images.

    The network has eight 3×3 convolutions (64, 128, 256, 256, 512, 512, 512, 512 channels, five
    max-pools) and three linear layers of width 512 with dropout 0.5: 9,750,922 parameters in 22
    layers. The convolutions' weights are drawn from N(0, σ²) with σ = sqrt(2 / (9·out_channels)),
    and their biases are 0; the linear layers keep torch's initialisation.

    Args:
        num_classes: width of the last layer.
        width_mult: factor of the width of every other layer, as in torchvision's ``mobilenet_v2``;
            the resulting width is rounded, and at least 1.

    Returns:
        A network from ``(n, 3, 32, 32)`` images to ``(n, num_classes)`` logits.

    Raises:
        ValueError: ``width_mult`` is not positive.

    Example:
        >>> sum(p.numel() for p in vgg11().parameters())
        9750922
        >>> sum(p.numel() for p in vgg11(width_mult=0.25).parameters())
        611434
    """
    if not width_mult > 0:
        raise ValueError(f"Invalid width_mult value: {width_mult}, it must be positive")

    def width(channels: int) -> int:
        return max(1, round(width_mult * channels))

    features = make_layers([v if isinstance(v, str) else width(v) for v in cfgs["A"]])
    for module in features:
        if isinstance(module, nn.Conv2d):
            _init_conv(module)
    classifier = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(width(512), width(512)),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(width(512), width(512)),
        nn.ReLU(inplace=True),
        nn.Linear(width(512), num_classes),
    )
    return nn.Sequential(
        OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier)
    )


def resnet34(num_classes: int = 10) -> nn.Module:
    """Build ResNet34 for 32×32 images: a 3×3 stem of stride 1, and no max-pool.

    The four stages of 3, 4, 6 and 3 blocks and their initialisation come from torchvision. The
    network has 21,282,122 parameters.

    Args:
        num_classes: width of the last layer.

    Returns:
        A network from ``(n, 3, 32, 32)`` images to ``(n, num_classes)`` logits.

    Example:
        >>> sum(p.numel() for p in resnet34().parameters())
        21282122
    """
    stem = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    _init_conv(stem)
    network: nn.Module = ResNet(BasicBlock, [3, 4, 6, 3], num_classes=num_classes)
    network.conv1 = stem
    network.maxpool = nn.Identity()
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vgg11": vgg11,
    "vgg11_x0_25": partial(vgg11, width_mult=0.25),
    "resnet34": resnet34,
}
"""The networks by name; a suffix gives the width as in torchvision, ``x0_25`` for a quarter."""


def _init_conv(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
