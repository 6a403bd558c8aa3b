"""CIFAR-10 and -100 from torchvision's files or a tree of pictures, augmented as in the paper."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

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

_COUNTS = {"train": 50_000, "test": 10_000}
_HOW_TO_GET = (
    "pass download=True to fetch torchvision's files (170 MB), or give as root the folder that "
    "holds {folder}/, or one with pictures train/<class>/* and test/<class>/*"
)


class CIFARDataModule(InMemoryDataModule):
    """Serve one of the CIFAR data sets, with 50,000 + 10,000 pictures of 32×32 pixels.

    Attributes:
        files: torchvision's class, which knows the files' names, MD5 checksums and address.
        archive_sha256: SHA-256 checksum of the archive at the address.
        title: name of the data set in messages.
        num_classes: number of classes.
        mean: mean of each channel for the normalisation.
        std: standard deviation of each channel for the normalisation.

    Args:
        root: folder of the data.
        batch_size: number of images per batch; under DDP, per batch and process.
        num_workers: number of worker processes.
        download: whether to fetch torchvision's files into ``root`` if they are missing or damaged,
            unless ``root`` holds a tree of pictures.
    """

    files: ClassVar[type[CIFAR10]]
    archive_sha256: ClassVar[str]
    title: ClassVar[str]
    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

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
            self._fetch()
        self._check_there()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read each split once: both for the stage ``"fit"`` or None, otherwise the test split."""
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
        return [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(self.mean, self.std, inplace=True),
        ]

    @property
    def _folder(self) -> Path:
        return self.root / str(self.files.base_folder)

    @property
    def _how_to_get(self) -> str:
        return _HOW_TO_GET.format(folder=self.files.base_folder)

    def _has_files(self) -> bool:
        return self._folder.is_dir()

    def _has_pictures(self) -> bool:
        return any((self.root / split).is_dir() for split in _COUNTS)

    def _check_there(self) -> None:
        if not self._has_files() and not self._has_pictures():
            where = " in" if self.root.is_dir() else ": there is no folder"
            raise FileNotFoundError(f"no {self.title}{where} {self.root}: {self._how_to_get}")

    def _read(self, split: str) -> tuple[Tensor, Tensor]:
        if self._has_files():
            images, labels, self.classes = self._read_files(split)
        else:
            images, labels, self.classes = self._read_pictures(split)
        if len(images) != _COUNTS[split]:
            rank_zero_warn(
                f"the {split} split in {self.root} has {len(images):,} images, but "
                f"{self.title}'s has {_COUNTS[split]:,}"
            )
        return images, labels

    def _fetch(self) -> None:
        if not any(self._faults()):
            return
        archive = self.root / self.files.filename
        download(self.files.url, archive, self.archive_sha256)
        try:
            extract_archive(archive, self.root)
        except OSError as error:
            raise RuntimeError(f"could not unpack {archive} to {self.root}: {error}") from error

    def _read_files(self, split: str) -> tuple[Tensor, Tensor, list[str]]:
        try:
            data = self.files(self.root, train=split == "train")
        except RuntimeError as error:
            faults = "; ".join(self._faults()) or str(error)
            raise RuntimeError(
                f"{self.title} in {self._folder} is incomplete or damaged: {faults}. Pass "
                "download=True to fetch it again, or delete the folder to use a tree of pictures "
                "instead"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(data.targets), list(data.classes)

    def _faults(self) -> Iterator[str]:
        meta = (self.files.meta["filename"], self.files.meta["md5"])
        for name, md5 in [*self.files.train_list, *self.files.test_list, meta]:
            if not (self._folder / name).is_file():
                yield f"{name} is missing"
            elif not check_integrity(self._folder / name, md5):
                yield f"{name} does not have the MD5 {md5}"

    def _read_pictures(self, split: str) -> tuple[Tensor, Tensor, list[str]]:
        self._check_classes()
        folder = self.root / split
        try:
            tree = ImageFolder(folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"a class in {folder} has no pictures: {error}") from error
        images = torch.empty(len(tree), 3, 32, 32, dtype=torch.uint8)
        # A tree lists class after class. The images are mixed as in torchvision's files, so that
        # the first few batches of a validation with limit_val_batches are not all of one class.
        order = torch.randperm(len(tree), generator=torch.Generator().manual_seed(0))
        for image, index in zip(images, order.tolist(), strict=True):
            image.copy_(_read_picture(tree.samples[index][0]))
        return images, torch.tensor(tree.targets)[order], tree.classes

    def _check_classes(self) -> None:
        classes: dict[str, list[str]] = {}
        for split in _COUNTS:
            try:
                classes[split], _ = find_classes(self.root / split)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"no folders of pictures {self.root / split}/<class>/: {self._how_to_get}"
                ) from error
        train, test = classes["train"], classes["test"]
        if train != test:
            raise ValueError(
                f"the classes in {self.root} differ between the splits: only in train/: "
                f"{sorted({*train} - {*test})}, only in test/: {sorted({*test} - {*train})}"
            )
        if len(train) != self.num_classes:
            raise ValueError(
                f"{self.root / 'train'} has {len(train)} classes, but {self.title} has "
                f"{self.num_classes}: {train}"
            )


def _read_picture(path: str) -> Tensor:
    try:
        picture = default_loader(path)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises, by format
        raise RuntimeError(f"cannot decode the picture {path}: {error}") from error
    if picture.size != (32, 32):
        width, height = picture.size
        raise ValueError(f"the picture {path} is {width}×{height} pixels, but must be 32×32")
    image: Tensor = pil_to_tensor(picture)
    return image
