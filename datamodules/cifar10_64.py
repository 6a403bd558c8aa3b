"""CIFAR-10 and the handwritten digits as 64×64 images in [-1, 1], for GANs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from typing_extensions import override

from aida_lightning._lightning import LightningDataModule
from aida_lightning.datamodules._in_memory import InMemoryImages
from aida_lightning.datamodules.cifar10 import CIFAR10DataModule
from aida_lightning.datamodules.digits import DigitsDataModule


class CIFAR10x64DataModule(CIFAR10DataModule):
    """Serve CIFAR-10 as 64×64 images in [-1, 1], as in the paper's training of WGAN-GP.

    The images are stored at 32×32, and each batch is resized when it is drawn: bilinearly and to
    8 bits, as torchvision's ``Resize`` treats a picture, then scaled to [-1, 1]. There is no
    augmentation and no validation loader. Everything else, including errors, is as in
    :class:`~aida_lightning.datamodules.cifar10.CIFAR10DataModule`.

    Args:
        root: folder of the data.
        batch_size: number of images per batch; under DDP, per batch and process.
        num_workers: number of worker processes; with 0, the main process resizes.
        download: whether to fetch torchvision's files into ``root`` if they are missing.

    Example:
        >>> data = CIFAR10x64DataModule("nowhere")
        >>> data.batch_size
        64
    """

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        root = str(root)  # what is saved as a hyperparameter is this function's own variable
        super().__init__(root, batch_size, num_workers, download)

    # A GAN has no validation step, and Lightning warns about a loader without one.
    val_dataloader = LightningDataModule.val_dataloader

    @override
    def _train_transforms(self) -> list[Callable[[Tensor], Tensor]]:
        return _to_64()

    @override
    def _val_transforms(self) -> list[Callable[[Tensor], Tensor]]:
        return _to_64()


class Digitsx64DataModule(DigitsDataModule):
    """Serve scikit-learn's handwritten digits as 64×64 colour images in [-1, 1], to try a GAN.

    There is no validation loader. Arguments and errors are as in
    :class:`~aida_lightning.datamodules.digits.DigitsDataModule`.

    Example:
        >>> data = Digitsx64DataModule()
        >>> data.setup("fit")
        >>> images, _ = next(iter(data.train_dataloader()))
        >>> images.shape, images.min().item(), images.max().item()
        (torch.Size([64, 3, 64, 64]), -1.0, 1.0)
    """

    val_dataloader = LightningDataModule.val_dataloader  # as above

    @override
    def _take(self, scans: Tensor, labels: Tensor, train: list[int], val: list[int]) -> None:
        images = (scans * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1)
        transform = v2.Compose(_to_64())
        self.train_set = InMemoryImages(images[train], labels[train], transform)
        self.val_set = InMemoryImages(images[val], labels[val], transform)


def _to_64() -> list[Callable[[Tensor], Tensor]]:
    return [
        v2.Resize(64, InterpolationMode.BILINEAR, antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True),
    ]
