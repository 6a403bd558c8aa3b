"""What CIFAR-100 has of its own; test_cifar10.py tests what it shares with CIFAR-10."""

import hashlib
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from aida_lightning.datamodules import CIFAR100DataModule

CLASSES = [f"class {index:02}" for index in range(100)]

# The splits made here are far smaller than CIFAR-100's.
pytestmark = pytest.mark.filterwarnings("ignore:the (train|test) split in .* has")


def random_pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's files with a few random images, and checksum lists to match."""
    root = tmp_path / "torchvision"
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def split(n: int, seed: int) -> dict:
        pixels = random_pixels(n, seed).transpose(0, 3, 1, 2).reshape(n, -1)
        labels = [99 - index % 100 for index in range(n)]
        return {"data": pixels, "fine_labels": labels, "coarse_labels": [0] * n}

    monkeypatch.setattr(CIFAR100, "train_list", [write("train", split(150, 1))])
    monkeypatch.setattr(CIFAR100, "test_list", [write("test", split(20, 2))])
    name, md5 = write("meta", {"fine_label_names": CLASSES, "coarse_label_names": ["all"]})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})
    return root


def loaded(root: Path, **options) -> CIFAR100DataModule:
    data = CIFAR100DataModule(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_torchvisions_files_are_read_with_the_fine_labels(files):
    data = loaded(files)
    assert data.classes == CLASSES
    assert data.num_classes == 100
    assert data.train_set.images.shape == (150, 3, 32, 32)
    assert data.train_set.labels[:3].tolist() == [99, 98, 97]
    expected = random_pixels(20, seed=2).transpose(0, 3, 1, 2)
    assert np.array_equal(data.val_set.images.numpy(), expected)


def test_images_are_normalised_by_the_data_sets_own_constants(files):
    data = loaded(files)
    images, _ = next(iter(data.val_dataloader()))
    mean = torch.tensor([0.5071, 0.4865, 0.4409]).view(3, 1, 1)
    std = torch.tensor([0.2673, 0.2564, 0.2762]).view(3, 1, 1)
    torch.testing.assert_close(images, (data.val_set.images / 255 - mean) / std)


def test_download_brings_torchvisions_files(files, tmp_path, monkeypatch):
    root = tmp_path / "fresh"
    root.mkdir()
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(files / "cifar-100-python", "cifar-100-python")
    digest = hashlib.sha256((root / "cifar-100-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100DataModule, "archive_sha256", digest)
    assert len(loaded(root, download=True).train_set) == 150


def test_damaged_files_are_named_as_cifar_100s(files):
    (files / "cifar-100-python" / "test").write_bytes(b"damaged")
    md5 = CIFAR100.test_list[0][1]
    with pytest.raises(RuntimeError, match=f"CIFAR-100 in .* test does not have the MD5 {md5}"):
        loaded(files)


def test_the_archives_checksum_is_a_sha256():
    assert re.fullmatch("[0-9a-f]{64}", CIFAR100DataModule.archive_sha256)


def test_the_root_is_saved_as_plain_text(files):
    expected = {"root": str(files), "batch_size": 128, "num_workers": 0, "download": False}
    assert CIFAR100DataModule(files).hparams == expected


def test_a_tree_of_pictures_has_a_hundred_classes(tmp_path):
    for split in ("train", "test"):
        for index, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            picture = Image.fromarray(random_pixels(1, index)[0])
            picture.save(tmp_path / split / name / "0.png")
    assert loaded(tmp_path).train_set.labels.sort().values.tolist() == list(range(100))
    for split in ("train", "test"):
        (tmp_path / split / CLASSES[0]).rename(tmp_path / f"{split} of another")
    with pytest.raises(ValueError, match="has 99 classes, but CIFAR-100 has 100"):
        loaded(tmp_path)
