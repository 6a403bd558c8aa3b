"""The Transformer of the paper's translation experiment (arXiv 2203.13273, Table II)."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from typing_extensions import override

# This ε is that of the code behind the paper's experiment; torch's default is 1e-5.
_layer_norm = partial(nn.LayerNorm, eps=1e-6)


class Transformer(nn.Module):
    """Map source sentences and target prefixes to logits of each next target word.

    The network is the encoder-decoder of Vaswani et al. (arXiv 1706.03762) with the norm after each
    residual sum. The sum of embedding and sinusoidal position passes through dropout and a layer
    norm, without the factor sqrt(d_model) on the embedding; instead, the logits are multiplied by
    d_model^-½. One matrix serves as source embedding, target embedding and output layer. The
    projections of the attention have no bias, and dropout acts on the attention's weights and
    before each residual sum. Matrices are initialised from Xavier's uniform distribution.

    ``torch.nn.Transformer`` is a different network: it has biases everywhere or nowhere, and it
    keeps queries, keys and values in one parameter, which a layerwise optimizer treats as one
    layer.

    Args:
        vocab_size: number of words of both languages together.
        d_model: width of the embeddings and of each layer's output.
        nhead: number of attention heads, a divisor of ``d_model``.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        dim_feedforward: hidden width of the feed-forward blocks.
        dropout: probability of dropping an element, everywhere.
        max_length: length of the longest sentence, in tokens.
        pad_index: index of the word that pads a shorter sentence on the right.

    Raises:
        ValueError: ``nhead`` does not divide ``d_model``, or ``d_model`` is odd.

    Example:
        >>> sum(p.numel() for p in Transformer(vocab_size=9521).parameters())
        48978432
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
        max_length: int = 200,
        pad_index: int = 0,
    ) -> None:
        super().__init__()
        if d_model % nhead or d_model % 2:
            raise ValueError(
                f"Invalid d_model value: {d_model}, it must be even and a multiple of nhead={nhead}"
            )
        self.pad_index = pad_index
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.encoder_norm = _layer_norm(d_model)
        self.encoder = nn.ModuleList(
            _EncoderLayer(d_model, nhead, dim_feedforward, dropout)
            for _ in range(num_encoder_layers)
        )
        self.decoder_norm = _layer_norm(d_model)
        self.decoder = nn.ModuleList(
            _DecoderLayer(d_model, nhead, dim_feedforward, dropout)
            for _ in range(num_decoder_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.positions: Tensor
        self.register_buffer("positions", _sinusoids(max_length, d_model), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @override
    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the word that follows each target word.

        Args:
            source: indices ``(n, s)``, int64, each row padded on the right.
            target: indices ``(n, t)``, int64, each row padded on the right.

        Returns:
            Logits ``(n, t, vocab_size)``; position i depends on the source and the targets up to i.
            The logits at positions of padding are meaningless.

        Raises:
            ValueError: a sentence has more than ``max_length`` tokens.
        """
        return self.decode(target, self.encode(source), source)

    def encode(self, source: Tensor) -> Tensor:
        """Return the encoder's output ``(n, s, d_model)`` for sources ``(n, s)``."""
        x = self._embed(source, self.encoder_norm)
        mask = self._attend_to(source)
        for layer in self.encoder:
            x = layer(x, mask)
        return x

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Return the logits ``(n, t, vocab_size)`` from the encoder's output for ``source``."""
        x = self._embed(target, self.decoder_norm)
        mask = self._attend_to(source)
        for layer in self.decoder:
            x = layer(x, memory, mask)
        logits: Tensor = linear(x, self.embedding.weight)
        return logits / math.sqrt(self.embedding.embedding_dim)

    def _embed(self, words: Tensor, norm: nn.LayerNorm) -> Tensor:
        length, longest = words.shape[1], len(self.positions)
        if length > longest:
            raise ValueError(
                f"A sentence has {length} tokens, but the Transformer was built with max_length="
                f"{longest}"
            )
        embedded: Tensor = norm(self.dropout(self.embedding(words) + self.positions[:length]))
        return embedded

    def _attend_to(self, source: Tensor) -> Tensor:
        return (source != self.pad_index)[:, None, None, :]  # for each head and each query


class _Attention(nn.Module):
    """Attend with several heads, without biases, by four projections that are separate layers."""

    def __init__(self, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead = nhead
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    @override
    def forward(
        self, x: Tensor, memory: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        heads = (self.nhead, -1)
        attended = scaled_dot_product_attention(
            self.query(x).unflatten(-1, heads).transpose(1, 2),
            self.key(memory).unflatten(-1, heads).transpose(1, 2),
            self.value(memory).unflatten(-1, heads).transpose(1, 2),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class _EncoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(d_model, nhead, dropout)
        self.attention_norm = _layer_norm(d_model)
        self.feedforward = _feedforward(d_model, dim_feedforward)
        self.feedforward_norm = _layer_norm(d_model)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, x, mask)))
        x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x


class _DecoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(d_model, nhead, dropout)
        self.attention_norm = _layer_norm(d_model)
        self.cross_attention = _Attention(d_model, nhead, dropout)
        self.cross_attention_norm = _layer_norm(d_model)
        self.feedforward = _feedforward(d_model, dim_feedforward)
        self.feedforward_norm = _layer_norm(d_model)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        # Padding on the right lies in the future of every word, so the causal mask hides it.
        x = self.attention_norm(x + self.dropout(self.attention(x, x, is_causal=True)))
        attended = self.cross_attention(x, memory, mask)
        x = self.cross_attention_norm(x + self.dropout(attended))
        x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x


def _feedforward(d_model: int, dim_feedforward: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_model, dim_feedforward), nn.ReLU(), nn.Linear(dim_feedforward, d_model)
    )


def _sinusoids(length: int, d_model: int) -> Tensor:
    """Return ``(length, d_model)``: sines of the position in even columns, cosines in odd ones."""
    columns = torch.arange(0, d_model, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] / 10_000 ** (columns / d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()
