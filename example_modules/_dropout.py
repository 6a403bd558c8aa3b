"""Dropout whose masks follow from a seed and the batch, so that a resumed run draws them again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from typing_extensions import override


class SeededDropout(LightningModule):
    """Base of modules that draw from a generator of each training batch's own.

    Lightning's checkpoints leave torch's random state out. The seed is torch's at construction, and
    that of the run that is resumed; each process and each batch draws differently.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dropout_seed = torch.initial_seed()

    @contextmanager
    def seeded(self, batch_idx: int) -> Iterator[None]:
        """Seed torch for a batch of the current epoch, and put its random state back afterwards.

        Args:
            batch_idx: which batch of the epoch.
        """
        entropy = (self._dropout_seed, self.global_rank, self.current_epoch, batch_idx)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
            yield

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the seed.

        Args:
            checkpoint: what is to be saved.
        """
        checkpoint["dropout_seed"] = self._dropout_seed

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the seed of the run that is resumed.

        Args:
            checkpoint: what :meth:`on_save_checkpoint` was given.
        """
        self._dropout_seed = checkpoint["dropout_seed"]
