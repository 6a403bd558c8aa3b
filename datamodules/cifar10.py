"""CIFAR-10 from torchvision's files or from a tree of pictures, augmented as in the paper."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import default_loader, find_classes
from torchvision.datasets.utils import check_integrity, extract_archive
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from typing_extensions import override

from aida_lightning.datamodules._download import download
from aida_lightning.datamodules._in_memory import (
    InMemoryDataModule,
    InMemoryImages,
    random_crop_and_flip,
)

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
_FOLDER: str = CIFAR10.base_folder
# torchvision knows the MD5 of the same archive.
_ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_COUNTS = {"train": 50_000, "test": 10_000}
_HOW_TO_GET = (
    "pass download=True to fetch torchvision's files (170 MB), or give as root the folder that "
    f"holds {_FOLDER}/, or one with pictures train/<class>/* and test/<class>/*"
)


class CIFAR10DataModule(InMemoryDataModule):
    """Serve CIFAR-10 with the augmentation and normalisation of the paper's experiments.

    The train split is cropped to 32×32 after 4 pixels of zero padding and mirrored half of the
    time, each image by its own draw; both splits are normalised by :data:`MEAN` and :data:`STD`.
    As in the paper, the validation split is CIFAR-10's test split, and so is the test split.

    ``root`` holds either torchvision's files, ``cifar-10-batches-py/``, or a tree of 32×32
    pictures, ``train/<class>/*`` and ``test/<class>/*`` with the same ten classes, numbered in
    alphabetical order as CIFAR-10's are; torchvision's files win where there are both. All images
    are decoded once, in :meth:`setup`, into one uint8 tensor per split (184 MB together). A tree of
    60,000 pictures takes some 10 to 30 seconds, and its images are brought into one fixed mixed
    order.

    Args:
        root: folder of the data.
        batch_size: images per batch; under DDP, per batch and process.
        num_workers: worker processes. 0 augments in the main process, several times faster than a
            CPU trains; one or two hide that time behind the work of a fast GPU, and are faster
            where other programs keep the CPU's cores busy.
        download: fetch torchvision's files into ``root`` where they are not there yet or damaged,
            unless ``root`` holds a tree of pictures.

    Raises:
        FileNotFoundError: there is no data in ``root``, or a folder of the tree is missing or
            empty (this and the errors below are raised by :meth:`prepare_data` or :meth:`setup`).
        RuntimeError: a file of torchvision's is missing or has a wrong checksum, the download
            failed, or a picture cannot be decoded.
        ValueError: a picture is not 32×32, the tree does not have the same ten classes in both
            splits, ``batch_size`` is under 1 or ``num_workers`` under 0.

    Example:
        >>> data = CIFAR10DataModule("nowhere")
        >>> data.prepare_data()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: no CIFAR-10: there is no folder .../nowhere: pass download=True ...
    """

    num_classes = 10

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers)
        root = str(root)  # a Path would be written into hparams.yaml as a Python object
        self.save_hyperparameters()
        self.root = Path(root).expanduser().absolute()
        self.download = download
        self.classes: list[str] = []

    @override
    def prepare_data(self) -> None:
        if self.download and (self._has_files() or not self._has_pictures()):
            _fetch(self.root)
        self._check_there()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read both splits for the stage ``"fit"`` or None, otherwise the test split; each once."""
        super().setup(stage)
        self._check_there()
        if self.train_set is None and stage in ("fit", None):
            transform = v2.Compose(self._train_transforms())
            self.train_set = InMemoryImages(*self._read("train"), transform)
        if self.val_set is None:
            transform = v2.Compose(self._val_transforms())
            self.val_set = InMemoryImages(*self._read("test"), transform)

    def _train_transforms(self) -> list[Callable[[Tensor], Tensor]]:
        return [random_crop_and_flip, *self._val_transforms()]

    def _val_transforms(self) -> list[Callable[[Tensor], Tensor]]:
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD, inplace=True)]

    def _has_files(self) -> bool:
        return (self.root / _FOLDER).is_dir()

    def _has_pictures(self) -> bool:
        return any((self.root / split).is_dir() for split in _COUNTS)

    def _check_there(self) -> None:
        if not self._has_files() and not self._has_pictures():
            what = "no CIFAR-10 in" if self.root.is_dir() else "no CIFAR-10: there is no folder"
            raise FileNotFoundError(f"{what} {self.root}: {_HOW_TO_GET}")

    def _read(self, split: str) -> tuple[Tensor, Tensor]:
        if self._has_files():
            images, labels, self.classes = _read_files(self.root, split)
        else:
            images, labels, self.classes = _read_pictures(self.root, split)
        if len(images) != _COUNTS[split]:
            rank_zero_warn(
                f"the {split} split in {self.root} has {len(images):,} images, "
                f"CIFAR-10's has {_COUNTS[split]:,}"
            )
        return images, labels


def _fetch(root: Path) -> None:
    if not any(_faults(root / _FOLDER)):
        return
    archive = root / CIFAR10.filename
    download(CIFAR10.url, archive, _ARCHIVE_SHA256)
    try:
        extract_archive(archive, root)
    except OSError as error:
        raise RuntimeError(f"could not unpack {archive} to {root}: {error}") from error


def _read_files(root: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    try:
        data = CIFAR10(root, train=split == "train")
    except RuntimeError as error:
        folder = root / _FOLDER
        faults = "; ".join(_faults(folder)) or str(error)
        raise RuntimeError(
            f"CIFAR-10 in {folder} is incomplete or damaged: {faults}. Pass download=True to "
            "fetch it again, or delete the folder to use a tree of pictures instead"
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(data.targets), list(data.classes)


def _faults(folder: Path) -> Iterator[str]:
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif not check_integrity(folder / name, md5):
            yield f"{name} does not have the MD5 {md5}"


def _read_pictures(root: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    _check_classes(root)
    try:
        tree = ImageFolder(root / split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"a class in {root / split} has no pictures: {error}") from error
    images = torch.empty(len(tree), 3, 32, 32, dtype=torch.uint8)
    # A tree lists class after class; mixed, as torchvision's files are, so that the first few
    # batches of a validation cut short by limit_val_batches are not all of one class.
    order = torch.randperm(len(tree), generator=torch.Generator().manual_seed(0))
    for image, index in zip(images, order.tolist(), strict=True):
        image.copy_(_read_picture(tree.samples[index][0]))
    return images, torch.tensor(tree.targets)[order], tree.classes


def _check_classes(root: Path) -> None:
    classes: dict[str, list[str]] = {}
    for split in _COUNTS:
        try:
            classes[split], _ = find_classes(root / split)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no folders of pictures {root / split}/<class>/: {_HOW_TO_GET}"
            ) from error
    train, test = classes["train"], classes["test"]
    if train != test:
        raise ValueError(
            f"the classes in {root} differ between the splits: only in train/: "
            f"{sorted({*train} - {*test})}, only in test/: {sorted({*test} - {*train})}"
        )
    if len(train) != CIFAR10DataModule.num_classes:
        raise ValueError(
            f"{root / 'train'} has {len(train)} classes, CIFAR-10 has "
            f"{CIFAR10DataModule.num_classes}: {train}"
        )


def _read_picture(path: str) -> Tensor:
    try:
        picture = default_loader(path)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises, by format
        raise RuntimeError(f"cannot decode the picture {path}: {error}") from error
    if picture.size != (32, 32):
        width, height = picture.size
        raise ValueError(f"the picture {path} is {width}×{height} pixels, it must be 32×32")
    image: Tensor = pil_to_tensor(picture)
    return image
