"""CIFAR-100, augmented as CIFAR-10 is."""

from torchvision.datasets import CIFAR100

from aida_lightning.datamodules._cifar import CIFARDataModule

# Of the train split's pixels, as github.com/weiaicunzai/pytorch-cifar100 computed them, rounded.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)


class CIFAR100DataModule(CIFARDataModule):
    """Serve CIFAR-100 with its 100 fine labels, augmented and split as CIFAR-10 is.

    It is normalised by :data:`MEAN` and :data:`STD`, the train split's own. torchvision's files are
    ``cifar-100-python/``; a tree of pictures has 100 classes. Everything else, arguments and errors
    included, is :class:`~aida_lightning.datamodules.cifar10.CIFAR10DataModule`'s.

    Args:
        root: folder of the data.
        batch_size: images per batch; under DDP, per batch and process.
        num_workers: worker processes; 0 augments in the main process.
        download: fetch torchvision's files into ``root`` where they are not there yet or damaged,
            unless ``root`` holds a tree of pictures.

    Example:
        >>> data = CIFAR100DataModule("nowhere")
        >>> data.prepare_data()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: no CIFAR-100: there is no folder .../nowhere: pass download=True ...
    """

    files = CIFAR100
    # That of the archive of which torchvision knows the MD5; Keras has the same.
    archive_sha256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    title = "CIFAR-100"
    num_classes = 100
    mean, std = MEAN, STD
