"""A language model, trained as AWD-LSTM, whose optimizer and schedule are chosen by name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from typing_extensions import override

from aida_lightning._lightning import LightningOptimizer
from aida_lightning.datamodules._checks import check_at_least
from aida_lightning.datamodules._text import TextBatch
from aida_lightning.example_modules._dropout import SeededDropout
from aida_lightning.example_modules._word_metrics import word_metrics
from aida_lightning.example_modules.awd_lstm import AWDLSTM, AWDLSTMOutput, State
from aida_lightning.mixin import OptimizerMixin


class LanguageModel(OptimizerMixin, SeededDropout):
    """Train an AWD-LSTM by cross-entropy and two regularisers on batches of :class:`TextBatch`.

    The loss of a batch is the mean cross-entropy per word, plus ``activation_reg`` times the mean
    square of the last layer's output after dropout, plus ``temporal_activation_reg`` times the mean
    square of the difference between the outputs, before dropout, of neighbouring time steps (AR and
    TAR, arXiv 1708.02182, Section 4.6). The module logs only the mean cross-entropy per word, in
    nats:

    - at each step, ``train_loss`` of the batch;
    - at the end of a validation, ``val_loss`` and its exponential, ``val_perplexity``;
    - at the end of a test, ``test_loss`` and its exponential, ``test_perplexity``.

    The state of a layer carries over from batch to batch, without its gradients, and is zero at the
    start of an epoch. Each step's learning rate is multiplied by the ``lr_scale`` of the batch, or
    of the last batch if gradients are accumulated; schedulers see the rate without this factor. The
    Trainer clips the gradients: the paper uses ``Trainer(gradient_clip_val=0.25)``.

    Dropout is drawn from the epoch, the batch's index and a seed that checkpoints keep, so a run
    that is resumed at the end of an epoch ends like an unbroken one.

    Args:
        num_layers: number of stacked LSTMs.
        vocab_size: number of words in the vocabulary.
        network_options: other keyword arguments of :class:`AWDLSTM`, such as
            ``{"weight_dropout": 0.2}``.
        activation_reg: factor of AR, α in the source.
        temporal_activation_reg: factor of TAR, β in the source.
        optimizer: name of the optimizer.
        optimizer_options: keyword arguments of the optimizer, such as ``{"lr": 1e-3}``.
        lr_scheduler: name of the learning-rate schedule; None for a constant rate.
        lr_scheduler_options: keyword arguments of the schedule.

    Raises:
        ValueError: a size is less than 1, a probability is outside [0, 1), or a factor is negative.
        TypeError: the network lacks an option.

    Example:
        >>> import torch
        >>> model = LanguageModel(num_layers=1, optimizer_options={"lr": 1e-3, "eps": 1e-16})
        >>> logits, states = model(torch.zeros(70, 20, dtype=torch.int64))
        >>> logits.shape
        torch.Size([70, 20, 10000])
    """

    def __init__(
        self,
        num_layers: int = 1,
        vocab_size: int = 10_000,
        network_options: dict[str, Any] | None = None,
        activation_reg: float = 2.0,
        temporal_activation_reg: float = 1.0,
        optimizer: str = "aida",
        optimizer_options: dict[str, Any] | None = None,
        lr_scheduler: str | None = None,
        lr_scheduler_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_at_least(
            0, activation_reg=activation_reg, temporal_activation_reg=temporal_activation_reg
        )
        self.save_hyperparameters()
        self.model = AWDLSTM(vocab_size, num_layers, **(network_options or {}))
        self.activation_reg = activation_reg
        self.temporal_activation_reg = temporal_activation_reg
        self.optimizer = optimizer
        self.optimizer_options = dict(optimizer_options or {})
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_options = dict(lr_scheduler_options or {})
        self.val_metrics = word_metrics("val")
        self.test_metrics = word_metrics("test")
        self._lr_scale = 1.0
        # Validation may interrupt a training epoch, whose states must survive it.
        self._states: dict[str, list[State]] = {}

    @override
    def forward(
        self, words: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Return the logits of each next word, and the states for the next call.

        Args:
            words: indices ``(time, batch)``, int64.
            states: states that the call on the preceding words returned; None starts from zeros.

        Returns:
            Logits ``(time, batch, vocab_size)`` and each layer's state.
        """
        output: AWDLSTMOutput = self.model(words, states)
        return output.logits, output.states

    @override
    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        self._lr_scale = batch.lr_scale

    @override
    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        with self.seeded(batch_idx):
            output: AWDLSTMOutput = self.model(batch.inputs, self._carried("train", batch_idx))
        self._states["train"] = _detach(output.states)
        loss = _cross_entropy(output.logits, batch.targets)
        self.log("train_loss", loss, on_step=True, on_epoch=False, batch_size=1)
        loss = loss + self.activation_reg * output.dropped.square().mean()
        if len(batch.inputs) > 1:
            changes = output.raw.diff(dim=0)
            loss = loss + self.temporal_activation_reg * changes.square().mean()
        return loss

    @override
    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate("val", self.val_metrics, batch, batch_idx)

    @override
    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate("test", self.test_metrics, batch, batch_idx)

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take a step at the scaled learning rate, and then restore the rate."""
        rates = [group["lr"] for group in optimizer.param_groups]
        try:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._lr_scale
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _carried(self, stage: str, batch_idx: int) -> list[State] | None:
        return self._states.get(stage) if batch_idx else None

    def _evaluate(
        self, stage: str, metrics: MetricCollection, batch: TextBatch, batch_idx: int
    ) -> None:
        logits, states = self(batch.inputs, self._carried(stage, batch_idx))
        self._states[stage] = _detach(states)
        loss = _cross_entropy(logits, batch.targets)
        metrics.update(loss, float(batch.targets.numel()))
        self.log_dict(metrics, prog_bar=True)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def _detach(states: list[State]) -> list[State]:
    return [(hidden.detach(), cell.detach()) for hidden, cell in states]
