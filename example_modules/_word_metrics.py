"""Metrics that evaluate a model of words: its mean loss per word, and its perplexity."""

import math

from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from typing_extensions import override


class Perplexity(MeanMetric):
    """Compute the exponential of a mean cross-entropy."""

    @override
    def compute(self) -> Tensor:
        return super().compute().exp()


def word_metrics(stage: str) -> MetricCollection:
    """Build the metrics ``{stage}_loss`` and ``{stage}_perplexity`` over batches and processes.

    Update them with a batch's mean cross-entropy per word, a scalar in nats, and the batch's number
    of words as its weight.

    Args:
        stage: ``"val"`` or ``"test"``.

    Example:
        >>> import torch
        >>> metrics = word_metrics("val")
        >>> metrics.update(torch.tensor(2.0).log(), 3.0)
        >>> metrics.update(torch.tensor(32.0).log(), 1.0)
        >>> {name: round(value.item(), 4) for name, value in metrics.compute().items()}
        {'val_loss': 1.3863, 'val_perplexity': 4.0}
    """
    # A NaN replaces each NaN: by default, NaNs are omitted, and "disable" ignores the weights.
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": MeanMetric(nan_strategy=math.nan),
        "perplexity": Perplexity(nan_strategy=math.nan),
    }
    return MetricCollection(metrics, prefix=f"{stage}_", compute_groups=False)
