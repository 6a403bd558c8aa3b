"""Image splits held in memory, and the data module that serves them in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from aida_lightning._lightning import LightningDataModule
from aida_lightning.datamodules._checks import check_at_least


class InMemoryImages(Dataset[tuple[Tensor, int]]):
    """Serve a labelled split from one tensor, transforming a whole batch in one call.

    Args:
        images: images ``(n, channels, height, width)`` of any dtype.
        labels: labels ``(n,)``, int64.
        transform: function to apply to a batch ``(b, channels, height, width)`` each time that it
            is drawn; it must draw its random numbers separately for each image. None leaves the
            images unchanged.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        # If a dataset has this method, DataLoader passes all indices of a batch at once: this has
        # ten times the throughput of transforming the images one by one.
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if self.transform is not None:
            images = self.transform(images)
        return list(zip(images.unbind(), self.labels[chosen].tolist(), strict=True))


def random_crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Shift and mirror each image of a batch by its own random draw.

    The distribution is that of torchvision's ``RandomCrop(size, padding)`` and
    ``RandomHorizontalFlip()`` on one image at a time; on a batch, these draw only once.

    Args:
        images: images ``(n, channels, height, width)``.
        padding: width of the zeros added on every side before the crop, in pixels.

    Returns:
        A new tensor of the shape and dtype of ``images``.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, n))
    flipped = (torch.rand(n) < 0.5).view(n, 1, 1, 1)
    windows = pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(n), :, top, left]
    return torch.where(flipped, crops.flip(-1), crops)


class EpochSampler(DistributedSampler[Any]):
    """Shuffle by a seed and the epoch alone, so that a resumed run keeps the order.

    Lightning's checkpoints keep the epoch, but not the random state from which torch's
    RandomSampler draws its order. This sampler also selects a process's share of the order, so
    Lightning leaves it in place under DDP.
    """

    @override
    def __iter__(self) -> Iterator[Any]:
        indices = super().__iter__()
        self.epoch += 1  # for loops that, unlike Lightning's, do not call set_epoch
        return indices


class InMemoryDataModule(LightningDataModule):
    """Serve ``train_set`` shuffled, and ``val_set`` unshuffled for validation, test and prediction.

    The order of each epoch is derived from torch's seed at :meth:`setup` and from the epoch.
    Lightning's checkpoints keep the seed, so a run that is resumed from one continues its order.

    Args:
        batch_size: number of images per batch; under DDP, per batch and process.
        num_workers: number of worker processes; 0 loads in the main process.

    Raises:
        ValueError: ``batch_size`` is less than 1, or ``num_workers`` is negative.
    """

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_set: InMemoryImages | None = None
        self.val_set: InMemoryImages | None = None
        self.shuffle_seed = 0

    @override
    def setup(self, stage: str | None = None) -> None:
        """Use torch's seed for the order of the train split; subclasses read the splits."""
        seed = torch.initial_seed() % 2**63
        # Unseeded processes have seeds of their own, but must share one order.
        self.shuffle_seed = self.trainer.strategy.broadcast(seed) if self.trainer else seed

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"shuffle_seed": self.shuffle_seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.shuffle_seed = state_dict["shuffle_seed"]

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        dataset = self._loaded(self.train_set, "train")
        trainer = self.trainer
        sampler = EpochSampler(
            dataset,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=self.shuffle_seed,
        )
        if trainer:
            # Workers fetch a resumed run's first batches before Lightning sets the epoch.
            progress: Any = trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        return self._loader(dataset, sampler)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self._loader(self._loaded(self.val_set, "validation"))

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self.val_dataloader()

    @override
    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self.val_dataloader()

    def _loaded(self, dataset: InMemoryImages | None, split: str) -> InMemoryImages:
        if dataset is None:
            raise RuntimeError(
                f"{type(self).__name__} has not loaded its {split} split: "
                "call prepare_data() and setup() first, or let a Trainer do so"
            )
        return dataset

    def _loader(
        self, dataset: InMemoryImages, sampler: EpochSampler | None = None
    ) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
