"""Multi30k, German to English, as batches of indices (arXiv 1605.00459, task 1)."""

import gzip
import os
import random
import zlib
from pathlib import Path

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from aida_lightning._lightning import LightningDataModule
from aida_lightning.datamodules._checks import check_at_least
from aida_lightning.datamodules._download import download
from aida_lightning.datamodules._vocabulary import BucketSampler, Vocabulary, pad_pairs

_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
_SHA256 = {
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
}
_COUNTS = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000}
_LANGUAGES = ("de", "en")
_HOW_TO_GET = (
    "pass download=True to fetch the files (1.3 MB), pass as root a folder that holds "
    "{train,val,test_2016_flickr}.{de,en} or the same with .gz, or pass sample=True"
)
_Pair = tuple[Tensor, Tensor]


class Multi30kDataModule(LightningDataModule):
    """Serve Multi30k's German captions and their English translations.

    Sentences are tokenised by spaCy's rules for the language, which need no trained model, and then
    lower-cased. Both languages share one vocabulary: the words that occur at least
    ``min_frequency`` times in the train split of their language, and four special tokens (9,521 in
    all at the defaults, with spaCy 3.8). Tokenising takes a few seconds and happens once, in
    :meth:`setup`.

    A batch is a pair of int64 tensors, ``(n, longest source)`` and ``(n, longest target)``. Each
    row goes from ``<bos>`` (2) to ``<eos>`` (3), followed by ``<pad>`` (0); ``<unk>`` is 1. Train
    batches hold sentences of similar lengths, so that only 9 % is padding; random batches, which
    the paper's code drew, have more padding than words. In each epoch, the batches are composed and
    ordered anew, from the seed of ``seed_everything`` and the epoch.

    Args:
        root: folder of ``{train,val,test_2016_flickr}.{de,en}``, each plain or with ``.gz``; if
            both exist, the plain file is used.
        batch_size: number of pairs per batch; under DDP, per batch and process.
        min_frequency: number of times that a word must occur in its language to be in the
            vocabulary.
        max_length: largest number of words in a sentence; pairs with a longer sentence are omitted,
            with a warning.
        download: whether to fetch the files that ``root`` lacks, and those with ``.gz`` whose
            checksum is wrong.
        sample: whether to serve a small generated corpus instead of Multi30k: digits spelled out in
            German and in English, which need no files and no spaCy.

    Raises:
        FileNotFoundError: a file is missing (:meth:`prepare_data` or :meth:`setup` raises this and
            the following errors).
        RuntimeError: a file cannot be read, or a download failed.
        ModuleNotFoundError: spaCy is not installed.
        ValueError: a file does not have Multi30k's number of lines or has an empty one,
            ``batch_size``, ``min_frequency`` or ``max_length`` is less than 1, or all pairs of a
            split are longer than ``max_length``.

    Example:
        >>> data = Multi30kDataModule(sample=True, batch_size=8)
        >>> data.setup()
        >>> for sentence in data.train_set[1]:
        ...     print(*data.vocabulary.decode(sentence))
        fünf neun fünf zwei
        five nine five two
        >>> source, target = next(iter(data.train_dataloader()))
        >>> len(source), len(target)
        (8, 8)
    """

    def __init__(
        self,
        root: str | Path = "data/multi30k",
        batch_size: int = 200,
        min_frequency: int = 3,
        max_length: int = 100,
        download: bool = False,
        sample: bool = False,
    ) -> None:
        super().__init__()
        root = str(root)  # a Path would be written into hparams.yaml as a Python object
        check_at_least(1, batch_size=batch_size, min_frequency=min_frequency, max_length=max_length)
        self.save_hyperparameters()
        self.root = Path(root).expanduser().absolute()
        self.batch_size = batch_size
        self.min_frequency = min_frequency
        self.max_length = max_length
        self.download = download
        self.sample = sample
        self.train_set: list[_Pair] = []
        self.val_set: list[_Pair] = []
        self.test_set: list[_Pair] = []

    @override
    def prepare_data(self) -> None:
        if self.sample:
            return
        for name, sha256 in _SHA256.items():
            plain = (self.root / name).with_suffix("")
            if self.download and not plain.is_file():
                download(_URL + name, self.root / name, sha256)
            _find(plain)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read, tokenise and number all splits once, for all stages."""
        if self.train_set:
            return
        splits = _make_sample() if self.sample else _read(self.root)
        self.vocabulary = Vocabulary.of(*splits["train"], min_frequency=self.min_frequency)
        self.train_set, self.val_set, self.test_set = (
            self._encode(split, *splits[split]) for split in _COUNTS
        )

    @property
    def vocab_size(self) -> int:
        """The number of words in the shared vocabulary, including the special tokens."""
        self._check_set_up()
        return len(self.vocabulary)

    @override
    def train_dataloader(self) -> DataLoader[_Pair]:
        self._check_set_up()
        # The longest source and the longest target determine the width of a batch.
        longer = torch.tensor([max(len(source), len(target)) for source, target in self.train_set])
        sampler = BucketSampler(
            longer,
            self.batch_size,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
        )
        return self._loader(self.train_set, sampler)

    @override
    def val_dataloader(self) -> DataLoader[_Pair]:
        return self._loader(self.val_set)

    @override
    def test_dataloader(self) -> DataLoader[_Pair]:
        return self._loader(self.test_set)

    def _check_set_up(self) -> None:
        if not self.train_set:
            raise RuntimeError(
                "Multi30kDataModule has not read its data: call prepare_data() and setup() first, "
                "or let a Trainer do so"
            )

    def _encode(self, split: str, german: list[list[str]], english: list[list[str]]) -> list[_Pair]:
        pairs = list(zip(german, english, strict=True))
        short = [pair for pair in pairs if max(map(len, pair)) <= self.max_length]
        if not short:
            least = min(max(map(len, pair)) for pair in pairs)
            raise ValueError(
                f"Invalid max_length value: {self.max_length}, it must be at least {least}, the "
                f"length of the shortest pair in {split}"
            )
        if len(short) < len(pairs):
            rank_zero_warn(
                f"Multi30kDataModule omits {len(pairs) - len(short)} of {len(pairs)} pairs in "
                f"{split}, which have more than {self.max_length} words"
            )
        return [
            (self.vocabulary.encode(source), self.vocabulary.encode(target))
            for source, target in short
        ]

    def _loader(self, pairs: list[_Pair], sampler: Sampler[int] | None = None) -> DataLoader[_Pair]:
        self._check_set_up()
        # Workers are not needed: padding a batch that is in memory takes a millisecond.
        return DataLoader(
            pairs,  # type: ignore[arg-type]  # a list is a dataset
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=pad_pairs,
            pin_memory=torch.cuda.is_available(),
        )


def _find(plain: Path) -> Path:
    for path in (plain, Path(f"{plain}.gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"There is no file {plain} or {plain.name}.gz: {_HOW_TO_GET}")


def _read(root: Path) -> dict[str, list[list[list[str]]]]:
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Multi30kDataModule needs spaCy, which is not installed: "
            'pip install "aida-lightning[examples]"'
        ) from error
    splits: dict[str, list[list[list[str]]]] = {split: [] for split in _COUNTS}
    for language in _LANGUAGES:
        tokenizer = spacy.blank(language).tokenizer
        for split, count in _COUNTS.items():
            lines = _read_lines(_find(root / f"{split}.{language}"), count)
            # The rules depend on the case: in German, "A.D." is one token, but "a.d." is two.
            splits[split].append([[word.text.lower() for word in tokenizer(s)] for s in lines])
    return splits


def _read_lines(path: Path, count: int) -> list[str]:
    open_text = gzip.open if path.suffix == ".gz" else open
    try:
        # Only "\n" ends a caption, and not the other line ends that Python recognizes.
        with open_text(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = [line.strip() for line in file]
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise RuntimeError(
            f"Cannot read {path}: {error}. Delete it and pass download=True to fetch it again"
        ) from error
    if len(lines) != count:
        raise ValueError(f"{path} must have Multi30k's {count:,} lines, got {len(lines):,}")
    if "" in lines:
        raise ValueError(f"Line {lines.index('') + 1} of {path} is empty")
    return lines


def _make_sample() -> dict[str, list[list[list[str]]]]:
    german = "null eins zwei drei vier fünf sechs sieben acht neun".split()
    english = "zero one two three four five six seven eight nine".split()
    draw = random.Random(0)
    splits: dict[str, list[list[list[str]]]] = {}
    for split, count in (("train", 1000), ("val", 100), ("test_2016_flickr", 100)):
        numbers = [draw.choices(range(10), k=draw.randint(2, 8)) for _ in range(count)]
        splits[split] = [[[words[d] for d in n] for n in numbers] for words in (german, english)]
    return splits
