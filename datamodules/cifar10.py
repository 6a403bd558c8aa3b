"""CIFAR-10, augmented as in the paper."""

from torchvision.datasets import CIFAR10

from aida_lightning.datamodules._cifar import CIFARDataModule

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


class CIFAR10DataModule(CIFARDataModule):
    """Serve CIFAR-10 with the augmentation and normalisation of the paper's experiments.

    Each train image is padded with 4 pixels of zeros, cropped to 32×32 and mirrored with
    probability 1/2, by its own draw. Both splits are normalised by :data:`MEAN` and :data:`STD`. As
    in the paper, the validation split and the test split are both CIFAR-10's test split.

    ``root`` holds either torchvision's files, ``cifar-10-batches-py/``, or a tree of 32×32
    pictures, ``train/<class>/*`` and ``test/<class>/*``. The tree has the same ten classes in both
    splits, numbered in alphabetical order as in CIFAR-10. If both exist, torchvision's files take
    precedence. :meth:`setup` decodes all images once, into one uint8 tensor per split (184 MB
    together). A tree of 60,000 pictures takes some 10 to 30 seconds, and its images get one fixed
    mixed order.

    Args:
        root: folder of the data.
        batch_size: number of images per batch; under DDP, per batch and process.
        num_workers: number of worker processes. With 0, the main process augments, several times
            faster than a CPU trains. One or two workers hide that time behind the work of a fast
            GPU, and are faster when other programs keep the CPU's cores busy.
        download: whether to fetch torchvision's files into ``root`` if they are missing or damaged,
            unless ``root`` holds a tree of pictures.

    Raises:
        FileNotFoundError: there is no data in ``root``, or a folder of the tree is missing or
            empty (this and the errors below are raised by :meth:`prepare_data` or :meth:`setup`).
        RuntimeError: one of torchvision's files is missing or has a wrong checksum, the download
            fails, or a picture cannot be decoded.
        ValueError: a picture is not 32×32, the tree does not have the same ten classes in both
            splits, ``batch_size`` is below 1, or ``num_workers`` is below 0.

    Example:
        >>> data = CIFAR10DataModule("nowhere")
        >>> data.prepare_data()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: no CIFAR-10: there is no folder .../nowhere: pass download=True ...
    """

    files = CIFAR10
    # torchvision records the MD5 of the same archive.
    archive_sha256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    title = "CIFAR-10"
    num_classes = 10
    mean, std = MEAN, STD
