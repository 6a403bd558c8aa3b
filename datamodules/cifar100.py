"""CIFAR-100, augmented in the same way as CIFAR-10."""

from torchvision.datasets import CIFAR100

from aida_lightning.datamodules._cifar import CIFARDataModule

# The train split's statistics, as github.com/weiaicunzai/pytorch-cifar100 gives them, rounded.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)


class CIFAR100DataModule(CIFARDataModule):
    """Serve CIFAR-100 with its 100 fine labels, augmented and split in the same way as CIFAR-10.

    Images are normalised by the train split's own :data:`MEAN` and :data:`STD`. torchvision's files
    are in ``cifar-100-python/``; a tree of pictures has 100 classes. Everything else, including
    arguments and errors, is as in
    :class:`~aida_lightning.datamodules.cifar10.CIFAR10DataModule`.

    Args:
        root: folder of the data.
        batch_size: number of images per batch; under DDP, per batch and process.
        num_workers: number of worker processes; with 0, the main process augments.
        download: whether to fetch torchvision's files into ``root`` if they are missing or damaged,
            unless ``root`` holds a tree of pictures.

    Example:
        >>> data = CIFAR100DataModule("nowhere")
        >>> data.prepare_data()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: no CIFAR-100: there is no folder .../nowhere: pass download=True ...
    """

    files = CIFAR100
    # The checksum of the archive whose MD5 torchvision records; Keras uses the same checksum.
    archive_sha256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    title = "CIFAR-100"
    num_classes = 100
    mean, std = MEAN, STD
