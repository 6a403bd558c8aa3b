"""scikit-learn's handwritten digits as 32×32 colour images: a real task that needs no download."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from aida_lightning.datamodules._in_memory import InMemoryDataModule, InMemoryImages


class DigitsDataModule(InMemoryDataModule):
    """Serve scikit-learn's 1,797 handwritten digits in the shape of CIFAR-10.

    The 8×8 scans are enlarged to 32×32 by bilinear interpolation, repeated over three channels and
    normalised by the train split's mean and standard deviation, so a network for CIFAR-10 accepts
    them unchanged. The split is stratified by class. There is no third split: the test split is the
    validation split.

    Args:
        batch_size: number of images per batch; under DDP, per batch and process.
        val_fraction: share of the images to keep for validation, between 0 and 1, both excluded.
        num_workers: number of worker processes; 0 loads in the main process, which is enough here.
        seed: seed of the split, which does not depend on the run's own seed.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (raised by :meth:`setup`).
        ValueError: ``val_fraction`` is not between 0 and 1, ``batch_size`` is less than 1, or
            ``num_workers`` is negative.

    Example:
        >>> data = DigitsDataModule(batch_size=64)
        >>> data.setup("fit")
        >>> len(data.train_set), len(data.val_set)
        (1437, 360)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([64, 3, 32, 32]), torch.Size([64]))
    """

    num_classes = 10

    def __init__(
        self, batch_size: int = 64, val_fraction: float = 0.2, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers)
        if not 0 < val_fraction < 1:
            raise ValueError(
                f"Invalid val_fraction value: {val_fraction}, it must be between 0 and 1"
            )
        self.save_hyperparameters()
        self.val_fraction = val_fraction
        self.seed = seed

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read, split and normalise the digits once, for all stages."""
        super().setup(stage)
        if self.train_set is not None:
            return
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "DigitsDataModule needs scikit-learn, which is not installed: "
                'pip install "aida-lightning[examples]"'
            ) from error
        scans, digits = load_digits(return_X_y=True)
        images = torch.as_tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8)
        labels = torch.as_tensor(digits, dtype=torch.int64)
        train, val = train_test_split(
            range(len(labels)), test_size=self.val_fraction, stratify=labels, random_state=self.seed
        )
        self._take(images, labels, train, val)

    def _take(self, scans: Tensor, labels: Tensor, train: list[int], val: list[int]) -> None:
        """Make the splits of ``(n, 1, 8, 8)`` scans, with values from 0 to 16, by their indices."""
        images = interpolate(scans, size=(32, 32), mode="bilinear")
        std, mean = torch.std_mean(images[train], correction=0)
        images = ((images - mean) / std).expand(-1, 3, -1, -1)
        self.train_set = InMemoryImages(images[train], labels[train])
        self.val_set = InMemoryImages(images[val], labels[val])
