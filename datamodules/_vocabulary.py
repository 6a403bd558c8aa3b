"""Words and their indices, and batches of sentences of similar lengths."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DistributedSampler
from typing_extensions import override

PAD, UNK, BOS, EOS = range(4)
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
_BATCHES_PER_POOL = 50


class Vocabulary:
    """Number words: the four special tokens first, then the given words.

    Args:
        words: distinct words in the order of their indices, without the special tokens.

    Example:
        >>> vocabulary = Vocabulary.of([["a", "b", "a"], ["a"]], [["c", "c"]], min_frequency=2)
        >>> vocabulary.words
        ['<pad>', '<unk>', '<bos>', '<eos>', 'a', 'c']
        >>> vocabulary.encode(["c", "b"])
        tensor([2, 5, 1, 3])
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = [*SPECIALS, *words]
        self.index = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, *corpora: Iterable[Sequence[str]], min_frequency: int) -> "Vocabulary":
        """Collect the words that are frequent in any one of the corpora, the most frequent first.

        Args:
            corpora: tokenised sentences, one corpus per language.
            min_frequency: number of times that a word must occur in one corpus; if two languages
                share a word, its counts are not added up for this.
        """
        counts = [Counter(word for sentence in corpus for word in sentence) for corpus in corpora]
        total = sum(counts, Counter[str]())
        kept = {word for count in counts for word, n in count.items() if n >= min_frequency}
        return cls(sorted(kept - set(SPECIALS), key=lambda word: (-total[word], word)))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: Iterable[str]) -> Tensor:
        """Return a sentence's indices between ``<bos>`` and ``<eos>``, int64."""
        return torch.tensor([BOS, *(self.index.get(word, UNK) for word in sentence), EOS])

    def decode(self, indices: Tensor | Sequence[int]) -> list[str]:
        """Return the words up to the first ``<eos>``, without ``<bos>`` and ``<pad>``."""
        words = []
        for index in torch.as_tensor(indices).tolist():
            if index == EOS:
                break
            if index not in (BOS, PAD):
                words.append(self.words[index])
        return words


def pad_pairs(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate encoded pairs to sources ``(n, longest source)`` and targets ``(n, longest target)``.

    Shorter sentences are filled with :data:`PAD` on the right.
    """
    sources, targets = zip(*pairs, strict=True)
    return pad_sequence([*sources], True, PAD), pad_sequence([*targets], True, PAD)


class BucketSampler(DistributedSampler[int]):
    """Order sentences so that each batch holds similar lengths, in a new order for each epoch.

    The sentences are shuffled, sorted by length within pools of up to 50 batches, and cut into
    batches, which are shuffled in turn. As with every ``DistributedSampler``, the order is a
    function of the seed and of the epoch, which Lightning sets. Each process gets its share of
    every batch, and Lightning leaves the sampler in place.

    Args:
        lengths: length of each sentence, ``(n,)``, in any unit.
        batch_size: number of sentences per batch and process; a DataLoader that uses the sampler
            must have the same. If it does not divide the number of sentences, the last batch is
            smaller.
        num_replicas: number of processes.
        rank: index of this process, from 0.
        seed: seed that, together with the epoch, determines the order; the same on all processes.

    Example:
        >>> sampler = BucketSampler(torch.tensor([3, 9, 3, 9, 3, 9]), batch_size=3)
        >>> sampler.set_epoch(1)
        >>> list(sampler)
        [1, 5, 3, 2, 0, 4]
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, num_replicas: int = 1, rank: int = 0, seed: int = 0
    ) -> None:
        super().__init__(lengths, num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.lengths = lengths
        self.batch_size = batch_size

    @override
    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        size = self.batch_size * self.num_replicas
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        # The first few are taken twice, so that all processes get equally many.
        shuffled = shuffled[torch.arange(self.total_size) % len(shuffled)]
        count = math.ceil(self.total_size / size)
        # All pools have the same size, because a small last one would hold few similar lengths.
        pool_size = math.ceil(count / math.ceil(count / _BATCHES_PER_POOL)) * size
        pools = torch.split(shuffled, pool_size)
        ordered = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        batches = torch.split(ordered, size)
        # A smaller batch anywhere but at the end would shift all that follow.
        whole = len(ordered) // size
        order = [*torch.randperm(whole, generator=generator).tolist(), *range(whole, len(batches))]
        for i in order:
            yield from batches[i][self.rank :: self.num_replicas].tolist()
