import hashlib
import itertools
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from aida_lightning.datamodules import PennTreebankDataModule, penn_treebank
from aida_lightning.datamodules._text import SegmentSampler, Streams

TEXTS = {
    "train": " the cat sat \n on the  mat \n\n",
    "valid": " the mat sat \n",
    "test": "the cat on the cat",
}
WORDS = {
    "train": ["the", "cat", "sat", "<eos>", "on", "the", "mat", "<eos>", "<eos>"],
    "valid": ["the", "mat", "sat", "<eos>"],
    "test": ["the", "cat", "on", "the", "cat", "<eos>"],
}
VOCABULARY = ["the", "cat", "sat", "<eos>", "on", "mat"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of a few words, taken for the whole of Penn Treebank."""
    folder = tmp_path / "ptb"
    folder.mkdir()
    for split, text in TEXTS.items():
        (folder / f"ptb.{split}.txt").write_text(text)
    counts = {split: len(words) for split, words in WORDS.items()}
    monkeypatch.setattr(penn_treebank, "_TOKENS", counts)
    monkeypatch.setattr(penn_treebank, "_VOCAB_SIZE", len(VOCABULARY))
    return folder


def loaded(root: Path = Path("data"), **options) -> PennTreebankDataModule:
    data = PennTreebankDataModule(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def lengths(sampler: SegmentSampler) -> list[int]:
    return [time.stop - time.start for time in sampler]


def test_words_are_numbered_as_they_first_occur_and_every_line_ends(folder):
    data = loaded(folder)
    assert data.vocabulary == VOCABULARY
    assert data.vocab_size == len(VOCABULARY)
    for split, words in WORDS.items():
        assert [VOCABULARY[i] for i in data.words[split]] == words


def test_another_systems_line_ends_read_the_same(folder):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [VOCABULARY[i] for i in loaded(folder).words["train"]] == WORDS["train"]


def test_streams_are_contiguous_parts_and_targets_their_next_words():
    words = torch.randint(100, (1013,))
    streams = Streams(words, batch_size=4)
    segments = [streams[time] for time in SegmentSampler(streams, bptt=70)]
    rows = 1013 // 4
    for column in range(4):
        part = words[column * rows : (column + 1) * rows]
        assert torch.equal(torch.cat([s.inputs[:, column] for s in segments]), part[:-1])
        assert torch.equal(torch.cat([s.targets[:, column] for s in segments]), part[1:])


def test_evaluation_has_segments_of_bptt_and_leaves_the_rate_alone():
    loader = loaded(sample=True).val_dataloader()
    batches = list(loader)
    assert [len(batch.inputs) for batch in batches] == [70, 29]
    assert len(loader) == 2
    assert {batch.lr_scale for batch in batches} == {1.0}


def test_testing_predicts_every_word_but_the_first_of_one_stream():
    data = loaded(sample=True)
    batches = list(data.test_dataloader())
    assert torch.equal(torch.cat([b.targets for b in batches]).flatten(), data.words["test"][1:])


def test_a_training_batch_scales_the_rate_by_its_length():
    batches = list(loaded(sample=True, bptt=40).train_dataloader())
    assert [b.lr_scale for b in batches] == [len(b.inputs) / 40 for b in batches]
    assert len({b.lr_scale for b in batches}) > 1


@pytest.mark.parametrize("total", [50, 100, 101, 135, 499, 46_478])
def test_every_epoch_has_as_many_segments_and_ends_with_the_text(total):
    streams = Streams(torch.zeros(total + 1, dtype=torch.int64), batch_size=1)
    sampler = SegmentSampler(streams, bptt=70, seed=0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn = lengths(sampler)
        assert len(drawn) == len(sampler)
        assert sum(drawn) == total
        assert min(drawn) > 0


def test_random_lengths_are_distributed_as_published():
    # The loop of the published code, with a generator of its own.
    rng = np.random.default_rng(123)
    published = []
    for _ in range(100_000):
        bptt = 70 if rng.random() < 0.95 else 70 / 2
        published.append(max(5, int(rng.normal(bptt, 5))))
    sampler = SegmentSampler(Streams(torch.zeros(46_479), 1), bptt=70, seed=7)
    drawn = []
    for epoch in range(150):
        sampler.set_epoch(epoch)
        drawn.extend(lengths(sampler))
    drawn, published = np.array(drawn), np.array(published)
    assert drawn.mean() == pytest.approx(published.mean(), abs=0.1)
    assert (drawn < 52).mean() == pytest.approx(0.05, abs=0.004)
    for side in (lambda x: x[x < 52], lambda x: x[x >= 52]):
        assert side(drawn).mean() == pytest.approx(side(published).mean(), abs=0.4)
        assert side(drawn).std() == pytest.approx(side(published).std(), abs=0.3)


def test_the_shortest_segment_is_of_five_words_before_they_are_fitted_to_the_text():
    sampler = SegmentSampler(Streams(torch.zeros(20_000), 1), bptt=10, seed=0)
    assert min(sampler._draw_lengths()) == 5


def test_lengths_depend_on_the_seed_and_the_epoch_alone():
    def drawn(seed: int, epoch: int) -> list[int]:
        sampler = SegmentSampler(Streams(torch.zeros(5000), 1), bptt=70, seed=seed)
        sampler.set_epoch(epoch)
        return lengths(sampler)

    torch.manual_seed(1)
    first = drawn(seed=0, epoch=3)
    torch.manual_seed(2)
    assert drawn(seed=0, epoch=3) == first
    assert drawn(seed=0, epoch=4) != first
    assert drawn(seed=1, epoch=3) != first


def test_lengths_follow_seed_everything_unless_a_seed_is_given():
    def drawn(**options) -> list[int]:
        return [len(b.inputs) for b in loaded(sample=True, **options).train_dataloader()]

    seed_everything(1, verbose=False)
    first, given = drawn(), drawn(seed=5)
    seed_everything(2, verbose=False)
    assert drawn() != first
    assert drawn(seed=5) == given
    seed_everything(1, verbose=False)
    assert drawn() == first


def test_a_resumed_run_takes_up_the_seed_of_the_first():
    first, second = loaded(sample=True, seed=1), loaded(sample=True, seed=2)
    second.load_state_dict(first.state_dict())
    a, b = (list(data.train_dataloader()) for data in (first, second))
    assert all(torch.equal(x.inputs, y.inputs) for x, y in zip(a, b, strict=True))


def test_processes_draw_the_first_ones_lengths():
    data = PennTreebankDataModule(sample=True, seed=1)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda seed: seed + 6))
    data.setup("fit")
    assert data.seed == 7


def test_processes_have_their_own_parts_of_the_text_cut_alike():
    data = loaded(sample=True)
    whole, parts = data.words["train"], []
    for rank in range(2):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        parts.append(list(data.train_dataloader()))
    assert [len(b.inputs) for b in parts[0]] == [len(b.inputs) for b in parts[1]]
    for rank, batches in enumerate(parts):
        inputs = torch.cat([batch.inputs for batch in batches])
        assert inputs.shape == (6000 // 2 // 20 - 1, 20)
        assert torch.equal(inputs[:, 0], whole[3000 * rank :][: len(inputs)])


class Recorder(LightningModule):
    """Notes what a Trainer serves, and when it validates."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs, self.validations = {}, []

    def training_step(self, batch, batch_idx):
        self.epochs.setdefault(self.current_epoch, []).append(len(batch.inputs))
        return self.weight

    def validation_step(self, batch, batch_idx):
        self.validations.append(self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("limit", [1.0, 0.5, 2])
def test_a_trainer_draws_new_lengths_and_validates_at_every_epoch(limit):
    data, module = PennTreebankDataModule(sample=True, batch_size=6, seed=0), Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=6,
        limit_train_batches=limit,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    whole = round(999 / 67.75)
    expected = limit if isinstance(limit, int) else int(whole * limit)
    assert {epoch: len(drawn) for epoch, drawn in module.epochs.items()} == dict.fromkeys(
        range(6), expected
    )
    assert len({tuple(drawn) for drawn in module.epochs.values()}) == 6
    assert sorted(set(module.validations)) == list(range(6))
    if limit == 1.0:
        assert {sum(drawn) for drawn in module.epochs.values()} == {999}


def test_the_sample_is_as_hard_as_it_is_said_to_be():
    words = loaded(sample=True).words["train"].tolist()
    pairs = Counter(itertools.pairwise(words))
    firsts = Counter(words[:-1])
    followers = Counter(first for first, _ in pairs)
    assert len(firsts) == 50
    assert max(firsts.values()) < 2 * min(firsts.values())
    assert set(followers.values()) == {4}
    entropy = -sum(n * math.log(n / firsts[a]) for (a, _), n in pairs.items()) / (len(words) - 1)
    assert math.exp(entropy) == pytest.approx(3.36, rel=0.02)


def test_the_sample_needs_no_file_and_is_always_the_same():
    torch.manual_seed(1)
    first = loaded(Path("nowhere"), sample=True)
    torch.manual_seed(2)
    again = loaded(Path("nowhere"), sample=True)
    assert first.vocab_size == len(first.vocabulary) == 50
    for split, words in first.words.items():
        assert torch.equal(words, again.words[split])
        assert words.max() < first.vocab_size
    assert not torch.equal(first.words["train"][:500], first.words["test"])


@pytest.fixture
def mirror(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mirror = tmp_path / "mirror"
    folder.rename(mirror)
    monkeypatch.setattr(penn_treebank, "_MIRRORS", ("file:///nowhere", mirror.as_uri()))
    digests = {s: hashlib.sha256(t.encode()).hexdigest() for s, t in TEXTS.items()}
    monkeypatch.setattr(penn_treebank, "_SHA256", digests)
    return mirror


@pytest.mark.usefixtures("mirror")
def test_missing_files_are_downloaded(tmp_path):
    assert loaded(tmp_path / "new", download=True).vocabulary == VOCABULARY


@pytest.mark.usefixtures("mirror")
def test_a_file_that_is_there_is_not_downloaded_over(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "ptb.valid.txt").write_text("sat mat the")
    words = loaded(own, download=True).words["valid"]
    assert [VOCABULARY[i] for i in words] == ["sat", "mat", "the", "<eos>"]


def test_a_failed_download_names_the_file_and_the_addresses(mirror, tmp_path):
    (mirror / "ptb.test.txt").write_text("something else")
    with pytest.raises(RuntimeError, match=r"ptb.test.txt to .*file:///nowhere.*invalid hash"):
        loaded(tmp_path / "new", download=True)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*none \(ptb.train.txt, .*download=True"
    ):
        loaded(tmp_path / "none")


def test_a_missing_file_is_named(folder):
    (folder / "ptb.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no Penn Treebank in .* \(ptb.valid.txt missing"):
        loaded(folder)


@pytest.mark.parametrize(
    ("split", "content", "said"),
    [
        ("test", b"the cat", r"ptb.test.txt has 3 words, .* 1 lines; Mikolov's file has 6"),
        ("train", b"the cat sat\n" * 2 + b"\n", r"ptb.train.txt has 4 distinct words.*has 6"),
        ("valid", b"the dog sat", r"has 1 words that ptb.train.txt does not have, such as 'dog'"),
        ("valid", b"the \xff sat", r"ptb.valid.txt is not UTF-8 text: .*0xff"),
    ],
)
def test_a_file_that_is_not_mikolovs_is_refused_by_its_name(folder, split, content, said):
    (folder / f"ptb.{split}.txt").write_bytes(content)
    data = PennTreebankDataModule(folder)
    for _ in range(2):  # what was read of the other files does not pass for the whole
        with pytest.raises(ValueError, match=said):
            data.setup("fit")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "Invalid batch_size value: 0, it must be at least 1"),
        ({"val_batch_size": -1}, "Invalid val_batch_size value: -1"),
        ({"test_batch_size": 0}, "Invalid test_batch_size value: 0"),
        ({"bptt": 9}, "Invalid bptt value: 9, it must be at least 10"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_allowed(options, said):
    with pytest.raises(ValueError, match=said):
        PennTreebankDataModule(**options)


def test_too_many_streams_for_a_text_are_refused():
    data = loaded(sample=True, test_batch_size=251)
    with pytest.raises(ValueError, match=r"split has 500 words, but 251 streams need .* 502"):
        data.test_dataloader()


def test_loaders_ask_for_setup_first():
    with pytest.raises(RuntimeError, match=r"not loaded its train split: call prepare_data"):
        PennTreebankDataModule(sample=True).train_dataloader()
