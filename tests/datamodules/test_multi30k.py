import gzip
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from aida_lightning.datamodules import Multi30kDataModule, multi30k
from aida_lightning.datamodules._vocabulary import BucketSampler, Vocabulary, pad_pairs

PAD, UNK, BOS, EOS = range(4)
SPLITS = ("train", "val", "test_2016_flickr")
TRAIN = {
    "de": [
        "Ein Hund läuft.",
        "Ein Hund, ein Ball und ein Park.",
        "Der Hund lief 44 A.D. im Park weg.",
        "Zwei Hunde.",
    ],
    "en": [
        "A dog's running.",
        "A dog, a ball and a park.",
        "The dog didn't stay in the park.",
        "Two dogs.",
    ],
}
OTHER = {"de": ["Ein Ball.", "Eine Katze im Park."], "en": ["A ball.", "A cat in the park."]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a few lines, and counts and checksums to match."""
    monkeypatch.setattr(multi30k, "_COUNTS", {"train": 4, "val": 2, "test_2016_flickr": 2})
    root = tmp_path / "files"
    root.mkdir()
    for split in SPLITS:
        for language, lines in (TRAIN if split == "train" else OTHER).items():
            text = "".join(f"{line}\n" for line in lines)
            (root / f"{split}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    checksums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.iterdir()}
    monkeypatch.setattr(multi30k, "_SHA256", checksums)
    return root


def loaded(root: Path | str = "nowhere", **options) -> Multi30kDataModule:
    data = Multi30kDataModule(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def decoded(data: Multi30kDataModule, pairs: list[tuple[Tensor, Tensor]]) -> list[list[str]]:
    """Sources and targets in turn, words joined by blanks."""
    return [[" ".join(data.vocabulary.decode(side)) for side in pair] for pair in pairs]


def test_sentences_are_cut_by_each_languages_rules_and_then_lower_cased(folder):
    data = loaded(folder, min_frequency=1)
    assert decoded(data, data.train_set) == [
        ["ein hund läuft .", "a dog 's running ."],
        ["ein hund , ein ball und ein park .", "a dog , a ball and a park ."],
        # The rules know "A.D.", not "a.d.".
        ["der hund lief 44 a.d. im park weg .", "the dog did n't stay in the park ."],
        ["zwei hunde .", "two dogs ."],
    ]


def test_each_side_begins_and_ends_and_words_of_other_splits_are_unknown(folder):
    data = loaded(folder, min_frequency=1)
    source, target = data.val_set[1]
    index = data.vocabulary.index
    assert source.tolist() == [BOS, UNK, UNK, index["im"], index["park"], index["."], EOS]
    assert target[1:3].tolist() == [index["a"], UNK]
    assert source.dtype == target.dtype == torch.int64
    assert decoded(data, data.test_set)[0] == ["ein ball .", "a ball ."]


def test_a_word_must_be_frequent_enough_in_one_language_alone(folder):
    # "." is in each 4 times, "," "park" and "ball" in each once or twice.
    assert loaded(folder, min_frequency=3).vocabulary.words == [
        *("<pad>", "<unk>", "<bos>", "<eos>"),
        *(".", "a", "ein", "dog", "hund"),
    ]
    assert "park" in loaded(folder, min_frequency=2).vocabulary.index


def test_words_are_numbered_by_frequency_and_then_by_the_alphabet():
    vocabulary = Vocabulary.of([["b", "a"], ["c", "c"]], [["b", "d"]], min_frequency=1)
    assert vocabulary.words[4:] == ["b", "c", "a", "d"]
    assert len(vocabulary) == 8
    assert vocabulary.encode(["d", "e"]).tolist() == [BOS, 7, UNK, EOS]
    assert vocabulary.decode(torch.tensor([BOS, 4, UNK, PAD, 7, EOS, 5])) == ["b", "<unk>", "d"]


def test_a_special_token_in_the_text_is_not_numbered_again():
    assert Vocabulary.of([["<unk>", "a"]], min_frequency=1).words[4:] == ["a"]


def test_a_plain_file_wins_over_a_packed_one(folder):
    (folder / "val.en").write_text("A park.\nThe park.\n", encoding="utf-8")
    data = loaded(folder, min_frequency=1)
    assert [target for _, target in decoded(data, data.val_set)] == ["a park .", "the park ."]


def test_only_a_newline_ends_a_line(folder):
    text = "Ein\u2028Hund.\r\nZwei\x85Hunde\rlaufen.\r\n"
    (folder / "val.de").write_bytes(text.encode())
    assert len(loaded(folder).val_set) == 2


def test_pairs_that_are_too_long_are_left_out_with_a_warning(folder):
    with pytest.warns(UserWarning, match="omits 2 of 4 pairs in train, which have more than 6"):
        data = loaded(folder, min_frequency=1, max_length=6)
    assert decoded(data, data.train_set) == [
        ["ein hund läuft .", "a dog 's running ."],
        ["zwei hunde .", "two dogs ."],
    ]


def test_a_length_that_no_pair_has_is_refused_with_the_least_that_one_has():
    with pytest.raises(ValueError, match=r"value: 1, it must be at least 2, .* pair in train"):
        Multi30kDataModule(sample=True, max_length=1).setup()
    with pytest.warns(UserWarning, match="omits"):
        Multi30kDataModule(sample=True, max_length=2).setup()


@pytest.mark.parametrize(("split", "count"), [("train", "29,000"), ("val", "1,014")])
def test_a_wrong_number_of_lines_is_named_with_the_file(folder, monkeypatch, split, count):
    real = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000}
    monkeypatch.setitem(multi30k._COUNTS, split, real[split])
    lines = 4 if split == "train" else 2
    expected = f"{re.escape(str(folder / split))}.de.gz must have .* {count} lines, got {lines}"
    with pytest.raises(ValueError, match=expected):
        loaded(folder)


def test_an_empty_line_is_named_with_its_number(folder):
    path = folder / "val.de"
    path.write_text("Ein Hund.\n  \n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"Line 2 of {re.escape(str(path))} is empty"):
        loaded(folder)


def truncate(raw: bytes) -> bytes:
    return raw[:-12]


def corrupt(raw: bytes) -> bytes:
    return raw[:20] + bytes(byte ^ 255 for byte in raw[20:40]) + raw[40:]


def not_packed(raw: bytes) -> bytes:
    return gzip.decompress(raw)


def not_utf8(raw: bytes) -> bytes:
    return gzip.compress("läuft\nläuft\n".encode("latin-1"))


@pytest.mark.parametrize("damage", [truncate, corrupt, not_packed, not_utf8])
def test_a_damaged_file_is_named(folder, damage: Callable[[bytes], bytes]):
    path = folder / "val.de.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RuntimeError, match=f"Cannot read {re.escape(str(path))}: .*download=True"):
        loaded(folder)


def test_a_missing_file_is_named_with_how_to_get_it(folder):
    (folder / "val.en.gz").unlink()
    data = Multi30kDataModule(folder)
    expected = rf"no file {re.escape(str(folder))}/val.en or val.en.gz: pass download=True"
    with pytest.raises(FileNotFoundError, match=expected):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=expected):
        data.setup("fit")


def test_download_fetches_what_is_missing_and_replaces_what_is_damaged(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(multi30k, "_URL", f"{folder.as_uri()}/")
    root = tmp_path / "fresh"
    root.mkdir()
    (root / "val.de.gz").write_bytes(b"damaged")
    (root / "val.en").write_text("A park.\nA dog.\n", encoding="utf-8")
    data = loaded(root, download=True, min_frequency=1)
    assert decoded(data, data.val_set) == [
        ["ein ball .", "a park ."],
        ["<unk> <unk> im park .", "a dog ."],
    ]
    assert not (root / "val.en.gz").exists()
    assert (root / "train.de.gz").read_bytes() == (folder / "train.de.gz").read_bytes()


def test_the_addresses_are_those_of_task_1s_raw_text():
    assert multi30k._URL.endswith("/multi30k/dataset/master/data/task1/raw/")
    assert set(multi30k._SHA256) == {f"{s}.{lang}.gz" for s in SPLITS for lang in ("de", "en")}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in multi30k._SHA256.values())


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(multi30k, "download", None)
    with pytest.raises(FileNotFoundError):
        Multi30kDataModule(tmp_path).prepare_data()


def test_without_spacy_the_error_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs spaCy.*aida-lightning\[examples\]"):
        loaded(folder)


def test_the_sample_needs_no_spacy_and_spells_the_same_digits(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    data = loaded(sample=True)
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [1000, 100, 100]
    assert data.vocab_size == 24
    english = dict(
        zip(
            "null eins zwei drei vier fünf sechs sieben acht neun".split(),
            "zero one two three four five six seven eight nine".split(),
            strict=True,
        )
    )
    for source, target in decoded(data, [*data.train_set, *data.val_set, *data.test_set]):
        assert " ".join(english[word] for word in source.split()) == target


def test_batches_are_padded_on_the_right():
    sides = [[2, 5, 3], [2, 3], [2, 6, 7, 8, 3]]
    source, target = pad_pairs([(torch.tensor(a), torch.tensor(a[::-1])) for a in sides])
    assert source.tolist() == [[2, 5, 3, 0, 0], [2, 3, 0, 0, 0], [2, 6, 7, 8, 3]]
    assert target.tolist() == [[3, 5, 2, 0, 0], [3, 2, 0, 0, 0], [3, 8, 7, 6, 2]]


def test_validation_and_test_are_served_in_the_files_order():
    data = loaded(sample=True, batch_size=30)
    for loader, pairs in (
        (data.val_dataloader(), data.val_set),
        (data.test_dataloader(), data.test_set),
    ):
        rows = [row for sources, _ in loader for row in sources]
        assert len(rows) == len(pairs)
        for row, (source, _) in zip(rows, pairs, strict=True):
            assert torch.equal(row[: len(source)], source)
            assert not row[len(source) :].any()


def epoch_of(data: Multi30kDataModule, epoch: int = 0) -> list[list[list[int]]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [sources.tolist() for sources, _ in loader]


def test_the_train_order_is_fixed_by_the_runs_seed_and_the_epoch(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data = loaded(sample=True, batch_size=50)
    torch.manual_seed(0)
    first = epoch_of(data)
    torch.manual_seed(1)
    assert epoch_of(data) == first
    assert epoch_of(data, epoch=1) != first
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert epoch_of(data) != first
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert len(epoch_of(data)) == 20


LENGTHS = torch.randint(1, 40, (2030,), generator=torch.Generator().manual_seed(0))


def test_an_epoch_has_each_sentence_once_and_whole_batches_but_for_the_last():
    sampler = BucketSampler(LENGTHS, batch_size=20)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(2030))
    assert len(sampler) == 2030
    assert orders[0] != orders[1] != orders[2]
    # Batches differ in who is in them as well, not in their order alone.
    members = [{frozenset(order[i : i + 20]) for i in range(0, 2020, 20)} for order in orders]
    assert len(members[0] & members[1]) < 5


def test_batches_hold_similar_lengths_in_a_mixed_order():
    order = torch.tensor(list(BucketSampler(LENGTHS, batch_size=20)))
    batches = [LENGTHS[batch] for batch in order.split(20)[:-1]]
    assert max(int(batch.max() - batch.min()) for batch in batches) <= 4
    longest = torch.tensor([int(batch.max()) for batch in batches])
    steps = longest.diff()
    assert (steps > 0).float().mean() > 0.3
    assert (steps < 0).float().mean() > 0.3


@pytest.mark.parametrize("n", [2030, 2000, 3, 1])
def test_processes_share_each_batch_and_take_as_many_sentences_each(n):
    shares = [list(BucketSampler(LENGTHS[:n], 20, num_replicas=4, rank=r)) for r in range(4)]
    assert [len(share) for share in shares] == [-(-n // 4)] * 4
    assert set().union(*shares) == set(range(n))
    assert sum(map(len, shares)) - n < 4
    for i in range(0, n // 4 - 20, 20):
        batch = LENGTHS[[index for share in shares for index in share[i : i + 20]]]
        assert batch.max() - batch.min() <= 4


def test_a_distributed_trainer_gives_each_process_its_share(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data = loaded(sample=True, batch_size=50)
    seen = []
    for rank in range(2):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        sampler = data.train_dataloader().sampler
        assert (sampler.num_replicas, sampler.rank, sampler.seed) == (2, rank, 3)
        seen.append(set(sampler))
    assert seen[0] | seen[1] == set(range(1000))
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("name", ["batch_size", "min_frequency", "max_length"])
def test_numbers_under_one_are_refused(name):
    with pytest.raises(ValueError, match=f"Invalid {name} value: 0, it must be at least 1"):
        Multi30kDataModule(**{name: 0})


@pytest.mark.parametrize("what", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_a_loader_before_setup_is_refused(what):
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        getattr(Multi30kDataModule(sample=True), what)()


def test_the_vocabularys_size_before_setup_is_refused():
    with pytest.raises(RuntimeError, match="has not read its data"):
        _ = Multi30kDataModule(sample=True).vocab_size


def test_the_root_is_saved_as_plain_text(tmp_path):
    assert Multi30kDataModule(tmp_path).hparams == {
        "root": str(tmp_path),
        "batch_size": 200,
        "min_frequency": 3,
        "max_length": 100,
        "download": False,
        "sample": False,
    }
