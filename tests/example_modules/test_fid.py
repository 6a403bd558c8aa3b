import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from aida_lightning.datamodules.cifar10 import MEAN, STD
from aida_lightning.example_modules import (
    ClassifierFeatures,
    FIDMonitor,
    ImageClassifier,
    fid_features,
)
from aida_lightning.example_modules.fid import to_uint8

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning's own use of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


class Corners(nn.Module):
    """Four features of an image, all but Gaussian."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.seen = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        assert images.dtype == torch.uint8
        self.seen.append(images.clone())
        return self.weight * features(images)


def features(images: torch.Tensor) -> torch.Tensor:
    x = images.float() / 255
    return torch.stack([x[:, 0, 0, 0], x[:, 1, 1, 1] ** 2, x[:, 2, 0, 1], x.mean((1, 2, 3))], 1)


class Generator(LightningModule):
    """It generates from one parameter, which every epoch moves."""

    def __init__(self, scale=0.1):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.register_buffer("noise_seed", torch.tensor(7))

    def sample(self, n, generator=None):
        return (torch.randn(n, 3, 2, 2, generator=generator) * self.scale).tanh()

    def training_step(self, batch, batch_idx):
        return -self.scale

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def real_images(n=40) -> torch.Tensor:
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1


def fit(monitor: FIDMonitor, images=None, module=None, **options) -> list[dict[str, float]]:
    """Return what was logged after each epoch."""
    images = real_images() if images is None else images
    logged = []

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
        **{"max_epochs": 1, "limit_train_batches": 1, **options},
    )
    module = module or Generator()
    hook = module.on_train_epoch_start
    module.on_train_epoch_start = lambda: (hook(), logged.append(dict(trainer.callback_metrics)))
    trainer.fit(module, DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=8))
    logged.append(dict(trainer.callback_metrics))
    return [{name: float(v) for name, v in metrics.items()} for metrics in logged[1:]]


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Transcribe eq. 6 of arXiv 1706.08500."""
    a, b = features(a).double().numpy(), features(b).double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return distance + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)


def quantized(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.rint((images.numpy() + 1) * 127.5).astype(np.uint8))


def test_the_distance_is_that_of_the_two_sets_gaussians():
    module = Generator()
    (logged,) = fit(FIDMonitor(num_samples=30, features=Corners(), batch_size=7), module=module)
    random = torch.Generator().manual_seed(7)
    fake = torch.cat([module.sample(n, random).detach() for n in (7, 7, 7, 7, 2)])
    expected = frechet(quantized(real_images()), quantized(fake))
    assert logged["fid_proxy"] == pytest.approx(expected, rel=1e-4)
    assert expected > 0.05


def test_the_floor_is_the_distance_of_every_other_real_image_from_the_rest():
    (logged,) = fit(FIDMonitor(num_samples=30, features=Corners()))
    real = quantized(real_images())
    assert logged["fid_proxy_floor"] == pytest.approx(frechet(real[::2], real[1::2]), rel=1e-4)


def test_num_real_takes_the_first_images():
    (logged,) = fit(FIDMonitor(num_samples=30, num_real=20, features=Corners()))
    (expected,) = fit(FIDMonitor(num_samples=30, features=Corners()), real_images()[:20])
    assert logged == expected


def test_a_perfect_generator_comes_near_the_floor_and_a_bad_one_does_not():
    class Perfect(Generator):
        def sample(self, n, generator=None):
            return torch.rand(n, 3, 2, 2, generator=generator) * 2 - 1

    images = real_images(2000)
    (perfect,) = fit(FIDMonitor(num_samples=2000, features=Corners()), images, Perfect())
    (bad,) = fit(FIDMonitor(num_samples=2000, features=Corners()), images, Generator(0.1))
    assert perfect["fid_proxy"] < 3 * perfect["fid_proxy_floor"]
    assert bad["fid_proxy"] > 30 * bad["fid_proxy_floor"]


@pytest.mark.parametrize(
    ("every_n_epochs", "measured"), [(None, [4]), (1, [0, 1, 2, 3, 4]), (2, [1, 3, 4])]
)
def test_it_measures_at_every_nth_epoch_and_the_last(every_n_epochs, measured):
    corners = Corners()
    logged = fit(FIDMonitor(every_n_epochs, 10, features=corners, batch_size=64), max_epochs=5)
    values = [metrics.get("fid_proxy") for metrics in logged]
    changed = [i for i, (a, b) in enumerate(pairwise([None, *values])) if a != b]
    assert changed == measured
    # The real images, in two halves, are looked at once.
    assert len(corners.seen) == 2 + len(measured)


def test_real_and_generated_images_are_quantized_by_one_mapping():
    corners = Corners()
    dark = torch.full((8, 3, 2, 2), -1.0)
    dark[:, 0, 0, 0] = torch.linspace(-1, 0, 8)
    fit(FIDMonitor(num_samples=16, features=corners), dark)
    real = torch.cat(corners.seen[:2])
    # An image stretched by its own extremes would reach 255.
    assert real.max() == 128
    assert sorted(real[:, 0, 0, 0].tolist()) == [0, 18, 36, 55, 73, 91, 109, 128]


def test_rounding_to_8_bits_takes_back_the_scaling_of_pictures():
    pixels = torch.arange(256, dtype=torch.uint8)
    scaled = v2.Normalize([0.5], [0.5])((pixels / 255).view(1, 16, 16)).flatten()
    assert torch.equal(to_uint8(scaled), pixels)


@pytest.mark.parametrize("images", [torch.tensor([0.0, 2.5]), torch.tensor([0.0, torch.nan])])
def test_images_outside_of_plus_minus_one_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be in ±1 .* range from"):
        to_uint8(images)


def test_pictures_in_another_scale_are_refused_and_named():
    with pytest.raises(
        ValueError, match=r"must be in ±1 to be measured, but these range from 0.* to 1\.9"
    ):
        fit(FIDMonitor(features=Corners()), real_images() + 1)


def test_a_users_module_is_frozen_and_evaluates():
    corners = Corners()
    fit(FIDMonitor(num_samples=8, features=corners))
    assert not corners.training
    assert not corners.weight.requires_grad


def tiny_classifier(monkeypatch: pytest.MonkeyPatch) -> ImageClassifier:
    def build(num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 10)
        )

    monkeypatch.setitem(ImageClassifier.__init__.__globals__["NETWORKS"], "tiny", build)
    return ImageClassifier("tiny", optimizer="sgd")


def saved(model: LightningModule, path: Path) -> Path:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def test_a_classifiers_features_are_its_last_layers_input(tmp_path, monkeypatch):
    classifier = tiny_classifier(monkeypatch)
    taken = ClassifierFeatures.from_checkpoint(saved(classifier, tmp_path / "c.ckpt"))
    assert taken.num_features == 6
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = classifier.model[:3]((images / 255 - mean) / std)
    torch.testing.assert_close(taken(images), expected)
    # At 64×64 they are brought to the classifier's 32×32.
    flat = images[:, :, :1, :1]
    small, large = (taken(flat.expand(-1, -1, size, size)) for size in (32, 64))
    torch.testing.assert_close(large, small)


def test_a_classifiers_checkpoint_gives_a_proxy(tmp_path, monkeypatch):
    path = saved(tiny_classifier(monkeypatch), tmp_path / "c.ckpt")
    (logged,) = fit(FIDMonitor(num_samples=20, features=str(path)))
    assert logged.keys() == {"fid_proxy", "fid_proxy_floor"}
    assert all(np.isfinite(value) for value in logged.values())


@pytest.mark.parametrize("name", ["vgg11", "resnet34"])
def test_the_papers_classifiers_have_512_features(name):
    taken = ClassifierFeatures(ImageClassifier(name).model)
    assert taken(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 512)
    assert taken.num_features == 512


def test_what_is_no_classifiers_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"model": "vgg12"}}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"nonsense")
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(ValueError, match=f"{name} is no checkpoint of an ImageClassifier: "):
            ClassifierFeatures.from_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*c\.ckpt to compute features"):
        ClassifierFeatures.from_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match="Conv2d has no linear layer"):
        ClassifierFeatures(nn.Conv2d(3, 3, 1))


def test_checkpoints_are_not_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"state_dict": {}, "hyper_parameters": Harmful()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="is no checkpoint of an ImageClassifier"):
        ClassifierFeatures.from_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "harm").exists()


def test_fid_without_torch_fidelity_says_what_to_install(monkeypatch):
    monkeypatch.setattr(fid_features, "find_spec", lambda name: None)
    expected = r'pip install "aida-lightning\[fid\]", or pass a'
    with pytest.raises(ModuleNotFoundError, match=expected):
        fit(FIDMonitor())


def test_weights_that_cannot_be_downloaded_are_named_with_what_to_do(tmp_path, monkeypatch):
    addresses = [(tmp_path / name).as_uri() for name in ("a", "b")]
    monkeypatch.setattr(fid_features, "WEIGHTS_URLS", addresses)
    monkeypatch.setattr("aida_lightning.datamodules._download._FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    expected = f"{re.escape(addresses[0])}.*{re.escape(addresses[1])}.*weights=, or pass"
    with pytest.raises(RuntimeError, match=expected):
        fit(FIDMonitor())


def test_weights_that_are_not_inceptions_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"nonsense")
    digest = hashlib.sha256(b"nonsense").hexdigest()
    with pytest.raises(ValueError, match=f"its SHA-256 must be 6726825d0a.*, got {digest}"):
        fit(FIDMonitor(weights=tmp_path / "weights.pth"))
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.pth"):
        fit(FIDMonitor(weights=tmp_path / "other.pth"))


def test_with_the_published_weights_it_is_fid(tmp_path, monkeypatch):
    """The published file is 96 MB; random weights of its layout stand in for it."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        network = inception.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(fid_features, "WEIGHTS_SHA256", digest)
    monitor = FIDMonitor(weights=tmp_path / "weights.pth")
    metric = monitor._build_metric()
    assert monitor.tag == "fid"
    assert metric.real_features_sum.shape == (2048,)
    there = metric.inception.state_dict()
    assert all(torch.equal(there[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(p.requires_grad for p in metric.parameters())


def test_a_module_that_cannot_sample_is_refused():
    class NoSample(Generator):
        sample = None

    with pytest.raises(
        TypeError, match=r"module with a method sample\(n, generator\), which NoSample"
    ):
        fit(FIDMonitor(features=Corners()), module=NoSample())


def test_the_last_epoch_needs_a_trainer_that_has_one():
    with pytest.raises(ValueError, match="a Trainer without max_epochs has none"):
        fit(FIDMonitor(features=Corners()), max_epochs=-1, max_steps=1)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs value: 0, it must be at least 1"),
        ({"num_samples": 1}, "num_samples value: 1, it must be at least 2"),
        ({"num_real": 3}, "num_real value: 3, it must be at least 4"),
        ({"batch_size": 0}, "batch_size value: 0, it must be at least 1"),
        ({"features": Corners(), "weights": "w.pth"}, "no meaning with features="),
    ],
)
def test_arguments_out_of_range_are_refused(options, refused):
    with pytest.raises(ValueError, match=refused):
        FIDMonitor(**options)
