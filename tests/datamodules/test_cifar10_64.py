from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from aida_lightning.datamodules import CIFAR10x64DataModule, Digitsx64DataModule

# The splits made here are far smaller than CIFAR-10's.
pytestmark = pytest.mark.filterwarnings("ignore:the (train|test) split in .* has")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of smooth pictures and one of noise in each class."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 32)
    for split in ("train", "test"):
        for index in range(10):
            folder = root / split / f"class{index}"
            folder.mkdir(parents=True)
            smooth = np.stack([ramp[:, None] * np.ones(32), 255 - ramp * np.ones((32, 1))], -1)
            pixels = np.concatenate([smooth, np.full((32, 32, 1), 25.0 * index)], -1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "0.png")
            noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "1.png")
    return root


def loaded(root: Path, **options) -> CIFAR10x64DataModule:
    data = CIFAR10x64DataModule(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def pictures_resized_by_pillow(images: torch.Tensor) -> torch.Tensor:
    """Resize one picture at a time, as the published script did."""
    resized = [
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BILINEAR)
        for image in images
    ]
    return torch.stack([v2.functional.pil_to_tensor(picture) for picture in resized])


def test_a_batch_is_resized_as_pillow_resizes_pictures_and_scaled_to_plus_minus_one(tree):
    data = loaded(tree)
    images = torch.stack([image for image, _ in data.train_set])
    assert images.shape == (20, 3, 64, 64)
    assert images.dtype == torch.float32
    pixels = (images + 1) * 127.5
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)
    difference = (pixels - pictures_resized_by_pillow(data.train_set.images)).abs()
    assert difference.max() < 1.01  # of 255
    assert (difference > 0.5).float().mean() < 0.05


def test_the_images_are_kept_at_32_by_32_in_8_bits(tree):
    data = loaded(tree)
    before = data.train_set.images.clone()
    assert before.shape == (20, 3, 32, 32)
    assert before.dtype == torch.uint8
    next(iter(data.train_dataloader()))
    assert torch.equal(data.train_set.images, before)


def test_images_are_not_augmented(tree):
    data = loaded(tree)
    assert torch.equal(data.train_set[3][0], data.train_set[3][0])


def test_batches_are_of_64_images_in_mixed_order(tree):
    data = loaded(tree)
    assert data.train_dataloader().batch_size == 64
    ((_, first),) = data.train_dataloader()
    assert sorted(first.tolist()) == sorted([*range(10)] * 2)
    assert first.tolist() != sorted(first.tolist())


def test_the_root_is_saved_as_plain_text(tree):
    assert CIFAR10x64DataModule(tree).hparams == {
        "root": str(tree),
        "batch_size": 64,
        "num_workers": 0,
        "download": False,
    }


def test_a_download_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "file:///no-such-archive")
    with pytest.raises(RuntimeError, match=r"could not download .*: file:///no-such-archive"):
        CIFAR10x64DataModule(tmp_path, download=True).prepare_data()


def test_digits_at_64_by_64_show_the_scans():
    data = Digitsx64DataModule(batch_size=32)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (1437, 360)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 3, 64, 64)
    assert (images.min(), images.max()) == (-1, 1)
    red, green, blue = images.unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)
    digits = load_digits()
    scans = torch.as_tensor(digits.images, dtype=torch.float32).flatten(1)
    blocks = torch.nn.functional.avg_pool2d(red, 8).flatten(1)
    likeness = torch.corrcoef(torch.cat([blocks, scans]))[:32, 32:]
    assert likeness.amax(1).min() > 0.9
    assert digits.target[likeness.argmax(1)].tolist() == labels.tolist()


class NoValidation(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec"
)
def test_lightning_does_not_warn_of_a_loader_for_a_validation_that_there_is_not(tree):
    for data in (CIFAR10x64DataModule(tree), Digitsx64DataModule()):
        trainer = Trainer(
            fast_dev_run=True,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(NoValidation(), datamodule=data)
