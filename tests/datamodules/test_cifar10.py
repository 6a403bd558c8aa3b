import hashlib
import pickle
import re
import tarfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from aida_lightning.datamodules import CIFAR10DataModule, _cifar
from aida_lightning.datamodules._in_memory import random_crop_and_flip

CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
TRAIN_PER_CLASS, TEST_PER_CLASS = 4, 2

# The splits made here are far smaller than CIFAR-10's.
pytestmark = pytest.mark.filterwarnings("ignore:the (train|test) split in .* has")


def random_pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of PNG pictures, lossless so that pixels can be compared."""
    root = tmp_path / "pictures"
    for split, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, pixels in enumerate(random_pixels(count, seed=index + 100 * (split == "test"))):
                Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return root


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's files with a few random images, and checksum lists to match."""
    root = tmp_path / "torchvision"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(seed: int) -> dict:
        pixels = random_pixels(10, seed).transpose(0, 3, 1, 2).reshape(10, -1)
        return {"data": pixels, "labels": list(range(10))}

    train = [write(f"data_batch_{i}", batch(i)) for i in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(6))])
    name, md5 = write("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return root


def loaded(root: Path, **options) -> CIFAR10DataModule:
    data = CIFAR10DataModule(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def drawn(loader: DataLoader) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


def test_a_tree_of_pictures_is_read_pixel_by_pixel(tree):
    data = loaded(tree)
    assert data.classes == CLASSES
    for dataset, count, seed in (
        (data.train_set, TRAIN_PER_CLASS, 0),
        (data.val_set, TEST_PER_CLASS, 100),
    ):
        assert dataset.images.dtype == torch.uint8
        assert torch.bincount(dataset.labels).tolist() == [count] * 10
        for label in range(10):
            pixels = random_pixels(count, seed + label).transpose(0, 3, 1, 2)
            read = dataset.images[dataset.labels == label].numpy()
            assert sorted(map(bytes, read)) == sorted(map(bytes, pixels))


def test_a_trees_images_are_in_one_mixed_order_whatever_the_runs_seed(tree):
    torch.manual_seed(1)
    labels = loaded(tree).val_set.labels
    torch.manual_seed(2)
    assert torch.equal(labels, loaded(tree).val_set.labels)
    assert len(labels[: 2 * TEST_PER_CLASS].unique()) > 2


def test_torchvisions_files_are_read_pixel_by_pixel(files):
    data = loaded(files)
    assert data.classes == CLASSES
    assert data.train_set.images.shape == (50, 3, 32, 32)
    assert data.train_set.labels.tolist() == list(range(10)) * 5
    expected = random_pixels(10, seed=6).transpose(0, 3, 1, 2)
    assert np.array_equal(data.val_set.images.numpy(), expected)


def test_torchvisions_files_win_over_a_tree(files, tree):
    for split in ("train", "test"):
        (tree / split).rename(files / split)
    assert len(loaded(files).train_set) == 50


def test_grey_pictures_become_three_equal_channels(tree):
    path = tree / "test" / "airplane" / "0000.png"
    Image.fromarray(random_pixels(1, seed=0)[0, :, :, 0]).save(path)
    images = loaded(tree).val_set.images
    grey = (images[:, :1] == images).all(dim=(1, 2, 3))
    assert grey.sum() == 1


def test_validation_images_are_normalised_by_the_papers_constants(tree):
    data = loaded(tree)
    images, labels = next(iter(data.val_dataloader()))
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)
    torch.testing.assert_close(images, (data.val_set.images / 255 - mean) / std)
    assert torch.equal(labels, data.val_set.labels)


def test_normalising_leaves_the_images_in_memory_alone(tree):
    data = loaded(tree)
    before = data.val_set.images.clone()
    drawn(data.val_dataloader())
    assert torch.equal(data.val_set.images, before)


def test_two_draws_of_a_train_image_differ_and_of_a_validation_image_do_not(tree):
    data = loaded(tree)
    assert not torch.equal(data.train_set[0][0], data.train_set[0][0])
    assert torch.equal(data.val_set[0][0], data.val_set[0][0])


def test_each_image_has_its_own_crop_and_flip():
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 32 * 32 + 1).view(1, 3, 32, 32)
    crops = random_crop_and_flip(image.expand(2000, -1, -1, -1))
    assert crops.unique(dim=0).shape[0] == 9 * 9 * 2


def test_every_draw_is_one_that_torchvision_could_make():
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 32 * 32 + 1).view(3, 32, 32)
    oracle = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    possible = {tuple(oracle(image).flatten().tolist()) for _ in range(1500)}
    drawn_here = random_crop_and_flip(image.expand(500, -1, -1, -1)).flatten(1)
    assert len(possible) == 9 * 9 * 2
    assert {tuple(crop.tolist()) for crop in drawn_here} <= possible


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_seed_fixes_order_and_augmentation(tree, num_workers):
    data = loaded(tree, batch_size=8, num_workers=num_workers)

    def epoch() -> torch.Tensor:
        seed_everything(3, workers=True, verbose=False)
        return drawn(data.train_dataloader())

    first = epoch()
    assert torch.equal(first, epoch())
    assert not torch.equal(first, drawn(data.train_dataloader()))


def test_workers_do_not_repeat_each_others_draws(tree):
    data = loaded(tree, batch_size=1, num_workers=2)
    data.train_set.images = data.train_set.images[:1].expand(40, -1, -1, -1)
    seed_everything(0, workers=True, verbose=False)
    assert drawn(data.train_dataloader()).unique(dim=0).shape[0] > 25


class Labels(LightningModule):
    """Train on nothing, and note the labels in the order in which they come."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen += [int(images.sum() * 1e4) for images in batch[0]]

    def configure_optimizers(self):
        return None


def order(root: Path, epochs: int, ckpt_path: Path | None = None, **options) -> list[list[int]]:
    """Return what each epoch sees."""
    module = Labels()
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = CIFAR10DataModule(root, batch_size=8, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(root / f"{epochs}.ckpt")
    return [module.seen[i : i + 40] for i in range(0, len(module.seen), 40)]


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:`LightningModule.configure_optimizers` returned `None`",
    "ignore:You passed in a `val_dataloader` but have no `validation_step`",
    "ignore:`training_step` returned `None`",
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_order_of_an_unbroken_one(tree, num_workers, monkeypatch):
    # Without its augmentation, an image is known by its sum.
    monkeypatch.setattr(_cifar, "random_crop_and_flip", lambda images: images)
    torch.manual_seed(1)
    unbroken = order(tree, epochs=3, num_workers=num_workers)
    assert len({tuple(epoch) for epoch in unbroken}) == 3
    assert len({tuple(sorted(epoch)) for epoch in unbroken}) == 1
    torch.manual_seed(1)
    assert order(tree, epochs=2, num_workers=num_workers) == unbroken[:2]
    torch.manual_seed(2)
    resumed = order(tree, epochs=3, num_workers=num_workers, ckpt_path=tree / "2.ckpt")
    assert resumed == unbroken[2:]
    torch.manual_seed(2)
    assert order(tree, epochs=1, num_workers=num_workers) != unbroken[:1]


def test_processes_share_one_order_between_them(tree):
    data = loaded(tree, batch_size=8)
    whole = [*data.train_dataloader().sampler]
    data.trainer = Mock(world_size=2)
    data.trainer.fit_loop.epoch_progress.current.processed = 0
    parts = []
    for data.trainer.global_rank in range(2):
        parts.append([*data.train_dataloader().sampler])
    assert parts == [whole[::2], whole[1::2]]
    assert sorted(whole) == list(range(40))


def test_a_stage_reads_only_the_splits_that_it_needs(tree):
    data = CIFAR10DataModule(tree)
    data.setup("test")
    assert data.train_set is None
    held = data.val_set
    data.setup("fit")
    assert data.val_set is held
    assert len(data.train_set) == 40


def test_the_test_split_is_the_validation_split(tree):
    data = loaded(tree)
    assert data.test_dataloader().dataset is data.val_dataloader().dataset


def test_the_root_is_saved_as_plain_text(tree):
    assert CIFAR10DataModule(tree).hparams == {
        "root": str(tree),
        "batch_size": 128,
        "num_workers": 0,
        "download": False,
    }


@pytest.mark.filterwarnings("default:the (train|test) split in .* has")
def test_a_split_of_another_size_than_cifar10s_is_warned_of(tree):
    with pytest.warns(
        UserWarning, match=r"train split .* has 40 images, but CIFAR-10's has 50,000"
    ):
        loaded(tree)


def test_a_missing_folder_is_named_with_how_to_get_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = CIFAR10DataModule("nowhere")
    expected = rf"no folder {re.escape(str(tmp_path / 'nowhere'))}: pass download=True .*<class>"
    with pytest.raises(FileNotFoundError, match=expected):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=expected):
        data.setup("fit")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no CIFAR-10 in {re.escape(str(tmp_path))}: pass"):
        CIFAR10DataModule(tmp_path).prepare_data()


def test_missing_and_damaged_files_of_torchvisions_are_each_named(files):
    folder = files / "cifar-10-batches-py"
    (folder / "data_batch_2").unlink()
    (folder / "test_batch").write_bytes(b"damaged")
    md5 = CIFAR10.test_list[0][1]
    with pytest.raises(
        RuntimeError,
        match=f"{re.escape(str(folder))} .* data_batch_2 is missing; "
        f"test_batch does not have the MD5 {md5}. Pass download=True",
    ):
        loaded(files)


def test_a_missing_split_of_a_tree_is_named(tree):
    (tree / "test").rename(tree / "other")
    with pytest.raises(
        FileNotFoundError, match=f"pictures {re.escape(str(tree / 'test'))}/<class>"
    ):
        loaded(tree)


def test_classes_that_differ_between_the_splits_are_named(tree):
    (tree / "test" / "deer").rename(tree / "test" / "elk")
    with pytest.raises(ValueError, match=r"only in train/: \['deer'\], only in test/: \['elk'\]"):
        loaded(tree)


def test_another_number_of_classes_is_refused(tree):
    for split in ("train", "test"):
        (tree / split / "cat").rename(tree / f"{split}-cat")
    with pytest.raises(ValueError, match=r"has 9 classes, but CIFAR-10 has 10: \['airplane'"):
        loaded(tree)


def test_a_class_without_pictures_is_named(tree):
    for path in (tree / "train" / "frog").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a class in .*train has no pictures: .*frog"):
        loaded(tree)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_broken_picture_is_named(tree, share):
    path = tree / "train" / "ship" / "0002.png"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(RuntimeError, match=f"cannot decode the picture {re.escape(str(path))}: "):
        loaded(tree)


def test_a_picture_of_another_size_is_named_with_its_size(tree):
    path = tree / "test" / "horse" / "0001.png"
    Image.new("RGB", (48, 20)).save(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is 48×20 pixels.* 32×32"):
        loaded(tree)


def pack(files: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put into ``root`` the archive that torchvision would have fetched, for it to unpack."""
    root.mkdir(exist_ok=True)
    archive = root / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(files / "cifar-10-batches-py", "cifar-10-batches-py")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10DataModule, "archive_sha256", digest)


def test_download_brings_torchvisions_files(files, tmp_path, monkeypatch):
    pack(files, tmp_path / "fresh", monkeypatch)
    assert len(loaded(tmp_path / "fresh", download=True).train_set) == 50


def test_download_replaces_damaged_files(files, monkeypatch):
    pack(files, files, monkeypatch)
    (files / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"damaged")
    assert len(loaded(files, download=True).train_set) == 50


@pytest.mark.parametrize("broken", [(503, b"later"), (200, b"cut")], ids=["busy", "cut short"])
def test_a_broken_download_is_tried_again(files, tmp_path, monkeypatch, server, pauses, broken):
    pack(files, tmp_path / "packed", monkeypatch)
    server.serve((tmp_path / "packed" / CIFAR10.filename).read_bytes())
    server.answers = [broken, broken, *server.answers]
    monkeypatch.setattr(CIFAR10, "url", server.url)
    assert len(loaded(tmp_path / "fresh", download=True).train_set) == 50
    assert (server.requests, pauses) == (3, [1, 2])


def test_a_broken_download_leaves_what_was_there(files, tmp_path, monkeypatch, server):
    pack(files, tmp_path / "packed", monkeypatch)
    server.serve((tmp_path / "packed" / CIFAR10.filename).read_bytes())
    server.answers = [(200, b"cut")]
    monkeypatch.setattr(CIFAR10, "url", server.url)
    (files / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match=f"{server.url}: invalid hash value"):
        CIFAR10DataModule(files, download=True).prepare_data()
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_whole_files_are_not_fetched_again(files, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "file:///no-such-archive")
    assert len(loaded(files, download=True).train_set) == 50


def test_the_archives_checksum_is_a_sha256():
    assert re.fullmatch("[0-9a-f]{64}", CIFAR10DataModule.archive_sha256)


def test_download_leaves_a_tree_of_pictures_alone(tree, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "file:///no-such-archive")
    assert len(loaded(tree, download=True).train_set) == 40
    assert not (tree / "cifar-10-batches-py").exists()


def test_a_failed_download_names_source_and_target(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "file:///no-such-archive")
    expected = (
        f"not download {CIFAR10.filename} to {re.escape(str(tmp_path))}: file:///no-such-arch"
    )
    with pytest.raises(RuntimeError, match=expected):
        CIFAR10DataModule(tmp_path, download=True).prepare_data()


def test_a_download_into_a_file_is_refused(tmp_path):
    (tmp_path / "data").touch()
    expected = f"not download {CIFAR10.filename} to {re.escape(str(tmp_path / 'data'))}: .*exists"
    with pytest.raises(RuntimeError, match=expected):
        CIFAR10DataModule(tmp_path / "data", download=True).prepare_data()


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10DataModule, "files", Mock(base_folder="nothing"))
    with pytest.raises(FileNotFoundError):
        CIFAR10DataModule(tmp_path).prepare_data()
