"""A classifier whose network, optimizer and schedule are chosen by name."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from aida_lightning._lightning import LightningModule
from aida_lightning.example_modules.networks import NETWORKS
from aida_lightning.mixin import OptimizerMixin


class ImageClassifier(OptimizerMixin, LightningModule):
    """Train a network by cross-entropy on batches of images ``(n, …)`` and labels ``(n,)``.

    The losses are the mean cross-entropy per image, in nats; the accuracies are the share of images
    that are classified correctly. The module logs:

    - at each step, ``train_loss`` of the batch;
    - at the end of an epoch, ``train_accuracy`` of its batches at the time they were trained on;
    - at the end of a validation, ``val_loss`` and ``val_accuracy``;
    - at the end of a test, ``test_loss`` and ``test_accuracy``.

    Args:
        model: name in :data:`NETWORKS`, or a network from ``(n, …)`` images to
            ``(n, num_classes)`` logits. A network that you pass is not saved with the
            hyperparameters, so pass it again to ``load_from_checkpoint``.
        num_classes: number of classes, and the width of a named network's last layer.
        optimizer: name of the optimizer.
        optimizer_options: keyword arguments of the optimizer, such as ``{"lr": 1e-3}``.
        lr_scheduler: name of the learning-rate schedule; None for a constant rate.
        lr_scheduler_options: keyword arguments of the schedule.

    Raises:
        ValueError: ``model`` is an unknown name.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
        >>> classifier = ImageClassifier(network, optimizer="aida", optimizer_options={"lr": 1e-3})
        >>> classifier(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: str | nn.Module = "vgg11",
        num_classes: int = 10,
        optimizer: str = "aida",
        optimizer_options: dict[str, Any] | None = None,
        lr_scheduler: str | None = None,
        lr_scheduler_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Lightning saves a module's weights anyway, and cannot write a module into hparams.yaml.
        self.save_hyperparameters(ignore=["model"] if isinstance(model, nn.Module) else [])
        if isinstance(model, str):
            if model not in NETWORKS:
                raise ValueError(
                    f"Invalid model value: {model!r}, it must be one of {sorted(NETWORKS)} "
                    "or a torch.nn.Module"
                )
            model = NETWORKS[model](num_classes)
        self.model = model
        self.optimizer = optimizer
        self.optimizer_options = dict(optimizer_options or {})
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_options = dict(lr_scheduler_options or {})
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, num_classes)`` for images, ``(n, 3, 32, 32)`` for a named network."""
        logits: Tensor = self.model(images)
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=False)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("val", self.val_accuracy, batch)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", self.test_accuracy, batch)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self(batch[0])
        return logits

    def _evaluate(
        self, stage: str, accuracy: MulticlassAccuracy, batch: tuple[Tensor, Tensor]
    ) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        # A metric synchronises itself over the processes.
        self.log(f"{stage}_loss", cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True)
