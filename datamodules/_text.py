"""A text as parallel streams, cut into segments of time for truncated back-propagation."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler
from typing_extensions import override

_STD = 5.0
_SHORTEST = 5
_HALVED = 0.05


class TextBatch(NamedTuple):
    """A segment of every stream.

    Attributes:
        inputs: indices of words, ``(time, batch)``, int64. Each column continues where the same
            column of the preceding batch ended.
        targets: next word of each input, of the same shape.
        lr_scale: factor of the learning rate in this batch's step.
    """

    inputs: Tensor
    targets: Tensor
    lr_scale: float


class Streams(Dataset[TextBatch]):
    """Lay out a text in ``batch_size`` parallel streams, each a contiguous part of it.

    An index is a slice of time, as :class:`SegmentSampler` draws them. The words at the end that do
    not fill a last row, fewer than ``batch_size``, are omitted.

    Args:
        words: text as indices ``(n,)``, int64.
        batch_size: number of streams.
        bptt: length at which a segment's ``lr_scale`` is 1, in words; None for 1 at any length.
        name: name of the text in an error.

    Raises:
        ValueError: the text is too short to give each stream two words.

    Example:
        >>> import torch
        >>> streams = Streams(torch.arange(9), batch_size=2, bptt=4)
        >>> streams[slice(0, 2)]
        TextBatch(inputs=tensor([[0, 4],
                [1, 5]]), targets=tensor([[1, 5],
                [2, 6]]), lr_scale=0.5)
    """

    def __init__(
        self, words: Tensor, batch_size: int, bptt: int | None = None, name: str = "the text"
    ) -> None:
        rows = len(words) // batch_size
        if rows < 2:
            raise ValueError(
                f"{name} has {len(words):,} words, but {batch_size} streams need at least "
                f"{2 * batch_size:,}; reduce the batch size"
            )
        self.words = words[: rows * batch_size].view(batch_size, rows).t().contiguous()
        self.bptt = bptt

    def __len__(self) -> int:
        return len(self.words) - 1  # The last word is only predicted.

    @override
    def __getitem__(self, time: slice) -> TextBatch:
        inputs = self.words[:-1][time]
        scale = 1.0 if self.bptt is None else len(inputs) / self.bptt
        return TextBatch(inputs, self.words[1:][time], scale)


class SegmentSampler(DistributedSampler[TextBatch]):
    """Cut the streams into segments of random lengths or of one length.

    Random lengths follow AWD-LSTM (arXiv 1708.02182, Section 4.1): they are normal around ``bptt``,
    or around half of it with probability 0.05, with a standard deviation of 5, rounded down and at
    least 5. Their number is fixed, because a Trainer counts an epoch's batches only once. One
    factor stretches or shrinks all of them to fill the epoch exactly; with Penn Treebank's 46,478
    words per stream, this changes a length by about half a percent. (The published code draws
    lengths until the words are used up and cuts the last one, but scales the rate by the drawn
    length.)

    The base class provides :meth:`set_epoch`, and a distributed Trainer leaves its subclasses in
    place: each process has its own streams and cuts them in the same way.

    Args:
        streams: the streams.
        bptt: length of a segment, in words.
        seed: seed from which, together with the epoch, random lengths are drawn; None for segments
            of ``bptt`` words, of which the last holds the remainder.

    Example:
        >>> import torch
        >>> streams = Streams(torch.arange(1000), batch_size=2)
        >>> [time.stop - time.start for time in SegmentSampler(streams, bptt=70)]
        [70, 70, 70, 70, 70, 70, 70, 9]
        >>> lengths = [time.stop - time.start for time in SegmentSampler(streams, bptt=70, seed=0)]
        >>> len(lengths), sum(lengths)
        (7, 499)
    """

    def __init__(self, streams: Streams, bptt: int, seed: int | None = None) -> None:
        super().__init__(streams, num_replicas=1, rank=0, shuffle=False)
        self.bptt = bptt
        self.is_random = seed is not None
        self.seed = seed or 0
        self.total = len(streams)

    @override
    def __len__(self) -> int:
        if not self.is_random:
            return -(-self.total // self.bptt)
        mean = (1 - _HALVED / 2) * self.bptt - 0.5  # Rounding down subtracts a half on average.
        return max(1, round(self.total / mean))

    @override
    def __iter__(self) -> Iterator[slice]:  # type: ignore[override]
        if self.is_random:
            lengths = self._draw_lengths()
            ends = np.rint(lengths.cumsum() * (self.total / lengths.sum())).astype(int).tolist()
        else:
            ends = [min((i + 1) * self.bptt, self.total) for i in range(len(self))]
        start = 0
        for end in ends:
            yield slice(start, end)
            start = end

    def _draw_lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        # A separate generator draws an epoch's lengths again after a resume.
        rng = np.random.default_rng((self.seed, self.epoch))
        center = np.where(rng.random(len(self)) < _HALVED, self.bptt / 2, self.bptt)
        return np.maximum(_SHORTEST, rng.normal(center, _STD).astype(np.int64))
