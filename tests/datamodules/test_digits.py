import sys

import pytest
import torch
from sklearn.datasets import load_digits

from aida_lightning.datamodules import DigitsDataModule


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup("fit")
    return data


def test_the_split_has_1437_and_360_images(data):
    assert len(data.train_set) == 1437
    assert len(data.val_set) == 360


def test_batches_have_the_shape_of_cifar10(data):
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.shape == (64,)
    assert labels.dtype == torch.int64


def test_the_train_split_is_normalised_by_its_own_mean_and_std(data):
    torch.testing.assert_close(data.train_set.images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_set.images.std(correction=0), torch.tensor(1.0))
    assert data.val_set.images.mean().abs() > 1e-4


def test_the_three_channels_are_equal(data):
    red, green, blue = data.val_set.images.unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)


def test_each_image_shows_a_scan_of_its_label(data):
    digits = load_digits()
    scans = torch.as_tensor(digits.images, dtype=torch.float32).flatten(1)
    blocks = torch.nn.functional.avg_pool2d(data.val_set.images[:, 0], 4).flatten(1)
    together = torch.corrcoef(torch.cat([blocks, scans]))[: len(blocks), len(blocks) :]
    likeness, nearest = together.max(dim=1)
    assert likeness.min() > 0.9
    assert digits.target[nearest].tolist() == data.val_set.labels.tolist()


def test_the_split_is_stratified(data):
    everything = torch.cat([data.train_set.labels, data.val_set.labels])
    share = torch.bincount(data.val_set.labels) / torch.bincount(everything)
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.005, rtol=0)


def test_the_split_does_not_depend_on_the_runs_seed(data):
    torch.manual_seed(123)
    again = DigitsDataModule()
    again.setup()
    assert torch.equal(again.val_set.images, data.val_set.images)


def test_another_split_seed_gives_another_split(data):
    other = DigitsDataModule(seed=1)
    other.setup()
    assert not torch.equal(other.val_set.labels, data.val_set.labels)


def test_val_fraction_sets_the_sizes():
    data = DigitsDataModule(val_fraction=0.5)
    data.setup()
    assert (len(data.train_set), len(data.val_set)) == (898, 899)


def test_the_test_split_is_the_validation_split(data):
    assert data.test_dataloader().dataset is data.val_dataloader().dataset


def test_training_is_shuffled_and_validation_is_not(data):
    loader = data.train_dataloader()
    first, second = (torch.cat([y for _, y in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([y for _, y in data.val_dataloader()]), data.val_set.labels)


def test_setup_reads_once(data):
    before = data.train_set
    data.setup("test")
    assert data.train_set is before


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 1.5])
def test_an_impossible_val_fraction_is_refused(val_fraction):
    with pytest.raises(ValueError, match=rf"val_fraction value: {val_fraction}, .* 0 and 1"):
        DigitsDataModule(val_fraction=val_fraction)


def test_impossible_loader_settings_are_refused():
    with pytest.raises(ValueError, match="batch_size value: 0, it must be at least 1"):
        DigitsDataModule(batch_size=0)
    with pytest.raises(ValueError, match="num_workers value: -1, it must be at least 0"):
        DigitsDataModule(num_workers=-1)


def test_a_loader_before_setup_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"has not loaded its train split: call .*setup\(\)"):
        DigitsDataModule().train_dataloader()


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "aida-lightning\[examples\]"'):
        DigitsDataModule().setup()
