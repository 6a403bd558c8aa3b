"""Dropout whose masks follow from a seed and the batch, so that a resumed run repeats them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from aida_lightning._lightning import LightningModule


class SeededDropout(LightningModule):
    """Draw dropout from a separate seed for each training batch.

    The seed is derived from torch's seed at the module's construction, the process, the epoch and
    the batch's index. Lightning's checkpoints omit torch's random state but keep this seed, so a
    run that is resumed at the end of an epoch draws the same masks as an unbroken one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dropout_seed = torch.initial_seed()

    @contextmanager
    def seeded(self, batch_idx: int) -> Iterator[None]:
        """Seed torch for a batch of the current epoch, and restore its random state afterwards."""
        entropy = (self._dropout_seed, self.global_rank, self.current_epoch, batch_idx)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
            yield

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dropout_seed"] = self._dropout_seed

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._dropout_seed = checkpoint["dropout_seed"]
