"""A model that learns to translate, whose optimizer and schedule are chosen by name."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from aida_lightning.datamodules._checks import check_at_least, check_probabilities
from aida_lightning.datamodules._vocabulary import BOS, EOS, PAD
from aida_lightning.example_modules._dropout import SeededDropout
from aida_lightning.example_modules._word_metrics import word_metrics
from aida_lightning.example_modules.transformer import Transformer
from aida_lightning.mixin import OptimizerMixin

_Batch = tuple[Tensor, Tensor]


class InverseSqrtLR(LambdaLR):
    """Raise the learning rate linearly, then lower it with the inverse square root of the step.

    At the n-th step, counted from 1, the rate is
    ``lr · d_model^-½ · min(n^-½, n · warmup_steps^-1.5)`` (arXiv 1706.03762, eq. 3). The
    optimizer's own ``lr`` is therefore only a factor, which is 2 in the paper's experiment. Step
    the schedule after each step of the optimizer, not after each epoch.

    Args:
        optimizer: optimizer whose rates the schedule sets.
        d_model: width of the network.
        warmup_steps: step at which the rate is highest.
        last_epoch: last step taken; -1 to start.

    Raises:
        ValueError: ``d_model`` or ``warmup_steps`` is less than 1.

    Example:
        >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=2.0)
        >>> scheduler = InverseSqrtLR(optimizer, d_model=4, warmup_steps=4)
        >>> scheduler.get_last_lr()  # 2 · ½ · 1 · ⅛
        [0.125]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        d_model: int = 512,
        warmup_steps: int = 128_000,
        last_epoch: int = -1,
    ) -> None:
        check_at_least(1, d_model=d_model, warmup_steps=warmup_steps)

        def factor(steps_taken: int) -> float:
            n = steps_taken + 1
            return float(d_model**-0.5 * min(n**-0.5, n * warmup_steps**-1.5))

        super().__init__(optimizer, factor, last_epoch)


class TranslationModel(OptimizerMixin, SeededDropout):
    """Train a :class:`Transformer` on pairs of sentences by cross-entropy with teacher forcing.

    A batch holds sources ``(n, s)`` and targets ``(n, t)``, int64, where each row goes from
    ``<bos>`` to ``<eos>`` and is padded on the right. The minimised loss is label-smoothed and
    summed over the batch's words, as in the paper, so its scale matters for ε and for a clipping
    threshold. The logged losses are the mean cross-entropy per word, in nats. The accuracies, which
    are the paper's measure, are the share of words that are the most probable ones given the true
    words before them. Padding never counts. The module logs:

    - at each step, ``train_loss`` of the batch, label-smoothed;
    - at the end of an epoch, ``train_accuracy`` of its batches at the time they were trained on;
    - at the end of a validation, ``val_loss``, its exponential ``val_perplexity``, and
      ``val_accuracy``;
    - at the end of a test, ``test_loss``, its exponential ``test_perplexity``, and
      ``test_accuracy``.

    Dropout is drawn from the epoch, the batch's index and a seed that checkpoints keep, so a run
    that is resumed at the end of an epoch ends like an unbroken one.

    Args:
        vocab_size: number of words in the vocabulary, such as ``Multi30kDataModule.vocab_size``
            after its ``setup``.
        d_model: width of the Transformer.
        nhead: number of attention heads.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        dim_feedforward: hidden width of the feed-forward blocks.
        dropout: probability of dropping an element.
        label_smoothing: probability that is spread over the whole vocabulary, in [0, 1).
        optimizer: name of the optimizer.
        optimizer_options: keyword arguments of the optimizer, such as ``{"lr": 1e-3}``.
        lr_scheduler: ``"InverseSqrtLR"`` (:class:`InverseSqrtLR`, stepped at each step), or the
            name of a schedule of torch's (stepped at each epoch); None for a constant rate.
        lr_scheduler_options: keyword arguments of the schedule.

    Raises:
        ValueError: ``label_smoothing`` is outside [0, 1), or the Transformer refuses its widths.

    Example:
        >>> options = {"optimizer_options": {"lr": 2.0}, "lr_scheduler": "InverseSqrtLR"}
        >>> model = TranslationModel(9521, num_encoder_layers=1, num_decoder_layers=1, **options)
        >>> source, target = torch.tensor([[2, 7, 8, 3]]), torch.tensor([[2, 5]])
        >>> model(source, target).shape
        torch.Size([1, 2, 9521])
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        optimizer: str = "aida",
        optimizer_options: dict[str, Any] | None = None,
        lr_scheduler: str | None = None,
        lr_scheduler_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_probabilities(label_smoothing=label_smoothing)
        self.save_hyperparameters()
        sizes = (d_model, nhead, num_encoder_layers, num_decoder_layers, dim_feedforward)
        self.model = Transformer(vocab_size, *sizes, dropout, pad_index=PAD)
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.optimizer_options = dict(optimizer_options or {})
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_options = dict(lr_scheduler_options or {})
        if lr_scheduler == InverseSqrtLR.__name__:
            self.lr_scheduler, self.lr_scheduler_config = InverseSqrtLR, {"interval": "step"}
        self.train_accuracy = _token_accuracy(vocab_size)
        self.val_metrics, self.val_accuracy = word_metrics("val"), _token_accuracy(vocab_size)
        self.test_metrics, self.test_accuracy = word_metrics("test"), _token_accuracy(vocab_size)

    @override
    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits ``(n, t, vocab_size)`` of the word that follows each target word."""
        logits: Tensor = self.model(source, target)
        return logits

    @torch.no_grad()
    def translate(self, source: Tensor, max_length: int = 100) -> Tensor:
        """Translate by taking the most probable word at each position (greedy decoding).

        Args:
            source: indices ``(n, s)``, int64, each row from ``<bos>`` to ``<eos>``.
            max_length: number of words after which a row without ``<eos>`` ends.

        Returns:
            Indices ``(n, t)``, int64, where ``t`` is at most ``max_length + 1``. Each row starts
            with ``<bos>`` and has ``<pad>`` after its ``<eos>``. To turn dropout off, call
            ``eval()`` first.
        """
        memory = self.model.encode(source)
        target = source.new_full((len(source), 1), BOS)
        for _ in range(max_length):
            word = self.model.decode(target, memory, source)[:, -1].argmax(dim=-1)
            is_over = (target == EOS).any(dim=1)
            target = torch.cat([target, word.masked_fill(is_over, PAD)[:, None]], dim=1)
            if (target == EOS).any(dim=1).all():
                break
        return target

    @override
    def training_step(self, batch: _Batch, batch_idx: int) -> Tensor:
        with self.seeded(batch_idx):
            logits, gold = self._predict(batch)
        loss = cross_entropy(
            logits, gold, ignore_index=PAD, reduction="sum", label_smoothing=self.label_smoothing
        )
        self.train_accuracy(logits, gold)
        self.log("train_loss", loss / (gold != PAD).sum(), on_step=True, on_epoch=False)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: _Batch, batch_idx: int) -> None:
        self._evaluate("val", self.val_metrics, self.val_accuracy, batch)

    @override
    def test_step(self, batch: _Batch, batch_idx: int) -> None:
        self._evaluate("test", self.test_metrics, self.test_accuracy, batch)

    def _predict(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Return logits ``(n·t, vocab_size)`` and the words to predict, ``(n·t,)``."""
        source, target = batch
        return self(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()

    def _evaluate(
        self, stage: str, metrics: MetricCollection, accuracy: MulticlassAccuracy, batch: _Batch
    ) -> None:
        logits, gold = self._predict(batch)
        loss = cross_entropy(logits, gold, ignore_index=PAD)
        metrics.update(loss, (gold != PAD).sum().float())
        accuracy(logits, gold)
        self.log_dict(metrics, prog_bar=True)
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True)


def _token_accuracy(vocab_size: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(vocab_size, average="micro", ignore_index=PAD)
