"""The AWD-LSTM of the paper's language models (arXiv 2203.13273, Fig. 7)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding
from typing_extensions import override

from aida_lightning.datamodules._checks import check_at_least, check_probabilities

State = tuple[Tensor, Tensor]
"""The hidden state and the cell state of an LSTM, each of shape ``(1, batch, hidden)``."""


class AWDLSTMOutput(NamedTuple):
    """The output of :class:`AWDLSTM`.

    Attributes:
        logits: logits ``(time, batch, vocab_size)``.
        states: state of each layer after the last time step, to pass to the next call.
        raw: output of the last layer, ``(time, batch, embedding_size)``.
        dropped: ``raw`` after the output dropout; the same tensor in evaluation.
    """

    logits: Tensor
    states: list[State]
    raw: Tensor
    dropped: Tensor


class AWDLSTM(nn.Module):
    """Predict each next word with LSTMs whose weights are dropped (arXiv 1708.02182, Section 4).

    The last layer is as wide as the embedding, which shares its matrix with the output layer. With
    the default sizes, a network of 1, 2 or 3 layers has 5,293,200, 13,632,400 or 24,221,600
    parameters. The embedding is drawn from U(−0.1, 0.1), the output bias is 0, and the LSTMs keep
    torch's initialisation.

    Args:
        vocab_size: number of words in the vocabulary.
        num_layers: number of stacked LSTMs.
        embedding_size: width of the embedding and of the last layer.
        hidden_size: width of the other layers.
        input_dropout: probability of dropping an element of the embedded words.
        hidden_dropout: probability of dropping an element between the layers.
        output_dropout: probability of dropping an element of the last layer's output. These three
            kinds of dropout draw one mask per sequence, which is the same at each time step.
        word_dropout: probability of dropping a word of the vocabulary wherever it occurs.
        weight_dropout: probability of dropping an element of the hidden-to-hidden weights.

    Raises:
        ValueError: a size is less than 1, or a probability is outside [0, 1).

    Example:
        >>> network = AWDLSTM(vocab_size=10_000, num_layers=1)
        >>> sum(p.numel() for p in network.parameters())
        5293200
        >>> first = network(torch.zeros(70, 20, dtype=torch.int64))
        >>> first.logits.shape
        torch.Size([70, 20, 10000])
        >>> second = network(torch.ones(35, 20, dtype=torch.int64), first.states)
    """

    def __init__(
        self,
        vocab_size: int = 10_000,
        num_layers: int = 3,
        embedding_size: int = 400,
        hidden_size: int = 1150,
        input_dropout: float = 0.4,
        hidden_dropout: float = 0.25,
        output_dropout: float = 0.4,
        word_dropout: float = 0.1,
        weight_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_at_least(
            1,
            vocab_size=vocab_size,
            num_layers=num_layers,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
        )
        check_probabilities(
            input_dropout=input_dropout,
            hidden_dropout=hidden_dropout,
            output_dropout=output_dropout,
            word_dropout=word_dropout,
            weight_dropout=weight_dropout,
        )
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.output_dropout = output_dropout
        self.word_dropout = word_dropout
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        widths = [embedding_size, *[hidden_size] * (num_layers - 1), embedding_size]
        self.lstms = nn.ModuleList(
            WeightDropLSTM(widths[i], widths[i + 1], weight_dropout) for i in range(num_layers)
        )
        self.decoder = nn.Linear(embedding_size, vocab_size)
        self.decoder.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    @override
    def forward(self, words: Tensor, states: list[State] | None = None) -> AWDLSTMOutput:
        """Compute the logits of each next word.

        Args:
            words: indices ``(time, batch)``, int64.
            states: states that the call on the preceding words returned; None starts from zeros.

        Raises:
            ValueError: the number of states differs from the number of layers.
        """
        if states is not None and len(states) != len(self.lstms):
            raise ValueError(f"Expected {len(self.lstms)} states, one per layer, got {len(states)}")
        hidden = self._embed(words)
        new_states: list[State] = []
        for i, lstm in enumerate(self.lstms):
            p = self.input_dropout if i == 0 else self.hidden_dropout
            hidden = locked_dropout(hidden, p, self.training)
            hidden, state = lstm(hidden, None if states is None else states[i])
            new_states.append(state)
        dropped = locked_dropout(hidden, self.output_dropout, self.training)
        return AWDLSTMOutput(self.decoder(dropped), new_states, hidden, dropped)

    def _embed(self, words: Tensor) -> Tensor:
        weight = self.embedding.weight
        # Looking up one draw per word of the vocabulary drops the matrix's rows without a second
        # matrix. The output layer, although tied, loses no rows.
        kept = dropout(weight.new_ones(len(weight), 1), self.word_dropout, self.training)
        return embedding(words, weight) * embedding(words, kept)


class WeightDropLSTM(nn.LSTM):
    """Run one LSTM layer, dropping new elements of its hidden-to-hidden weight at each call.

    The dropped weight is a function of the parameter, so gradients reach the parameter itself. (The
    code published with the paper makes the dropped weight a new parameter at each step, so the
    parameter that the optimizer holds is never used and never trained.)

    Args:
        input_size: number of features of the input.
        hidden_size: number of features of the state.
        weight_dropout: probability of dropping an element in training; kept elements are scaled by
            ``1 / (1 − weight_dropout)``.

    Example:
        >>> lstm = WeightDropLSTM(3, 4, weight_dropout=0.5)
        >>> output, (h, c) = lstm(torch.zeros(5, 2, 3))
        >>> output.shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_dropout = weight_dropout

    @override
    def forward(  # type: ignore[override]  # no packed sequences
        self, input: Tensor, hx: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            input: inputs ``(time, batch, input_size)``.
            hx: state to start from; None for zeros.

        Returns:
            The outputs ``(time, batch, hidden_size)``, and the state after the last one.
        """
        if hx is None:
            zeros = input.new_zeros(1, input.size(1), self.hidden_size)
            hx = (zeros, zeros)
        self.check_forward_args(input, hx, None)
        weight_ih, weight_hh, bias_ih, bias_hh = self.all_weights[0]
        dropped = dropout(weight_hh, self.weight_dropout, self.training)
        # nn.LSTM's own forward accepts no weights other than the module's.
        output, h, c = torch.lstm(
            input,
            hx,
            [weight_ih, dropped, bias_ih, bias_hh],
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=False,
        )
        return output, (h, c)


def locked_dropout(input: Tensor, p: float, training: bool = True) -> Tensor:
    """Drop the same elements at each time step, and scale the others by ``1 / (1 − p)``.

    Args:
        input: tensor ``(time, batch, features)``.
        p: probability of dropping an element.
        training: whether to drop elements; False returns ``input`` itself.
    """
    if not training or p == 0:
        return input
    return input * dropout(torch.ones_like(input[:1]), p)
