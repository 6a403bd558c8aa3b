"""The networks whose features the Fréchet distance compares, and the sources of their weights."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from typing_extensions import override

from aida_lightning.datamodules._download import download, sha256_of
from aida_lightning.datamodules.cifar10 import MEAN, STD
from aida_lightning.example_modules.image_classifier import ImageClassifier

# FID's Inception is the same file at two addresses; the published script uses pytorch-fid's.
WEIGHTS_URLS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_OR_A_PROXY = (
    "or pass a classifier's checkpoint or a module as features=, for a Fréchet distance of its "
    "features, which is logged as fid_proxy"
)


class ClassifierFeatures(nn.Module):
    """Compute the input of a CIFAR-10 classifier's last linear layer, for a proxy of FID.

    Args:
        network: trained classifier of ``(n, 3, 32, 32)`` images, normalised as in the paper; its
            last linear layer is removed.

    Raises:
        ValueError: ``network`` has no linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not layers or not layers[-1][0]:
            raise ValueError(f"{type(network).__name__} has no linear layer whose input to use")
        name, last = layers[-1]
        self.num_features = last.in_features
        network.set_submodule(name, nn.Identity())
        self.network = network
        self.prepare = nn.Sequential(
            v2.Resize(32, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        )
        self.eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "ClassifierFeatures":
        """Read the network from an ImageClassifier's checkpoint, unpickling only tensors.

        Args:
            path: checkpoint of a classifier whose network was chosen by name.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is no checkpoint of an ImageClassifier.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no checkpoint {path} to compute features from")
        try:
            classifier = ImageClassifier.load_from_checkpoint(
                path, map_location="cpu", weights_only=True
            )
        except Exception as error:  # Anything may be wrong, from the file's format to its keys.
            raise ValueError(f"{path} is no checkpoint of an ImageClassifier: {error}") from error
        return cls(classifier.model)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(n, num_features)`` of uint8 images ``(n, 3, height, width)``."""
        features: Tensor = self.network(self.prepare(images))
        return features


def inception_weights(path: str | Path | None) -> str:
    """Return the path of a file that holds the published Inception weights.

    The file's checksum makes it safe to pass to torch-fidelity, which unpickles all of it.

    Args:
        path: the file; None downloads it to torch.hub's folder if it is not there.

    Raises:
        ModuleNotFoundError: torch-fidelity, which has the network, is not installed.
        RuntimeError: the weights could not be downloaded.
        FileNotFoundError: the file does not exist.
        ValueError: the file holds something else.
    """
    if find_spec("torch_fidelity") is None:
        raise ModuleNotFoundError(
            "FID needs torch-fidelity, which is not installed: "
            f'pip install "aida-lightning[fid]", {_OR_A_PROXY}'
        )
    if path is None:
        path = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS_URLS[0].rpartition("/")[2])
        try:
            download(WEIGHTS_URLS, path, WEIGHTS_SHA256)
        except RuntimeError as error:
            raise RuntimeError(
                f"FID needs Inception's weights: {error}. Pass the file as weights=, {_OR_A_PROXY}"
            ) from error
        return str(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path} with Inception's weights")
    if (digest := sha256_of(path)) != WEIGHTS_SHA256:
        raise ValueError(
            f"{path} does not hold the published Inception weights, without which the distance is "
            f"not FID: its SHA-256 must be {WEIGHTS_SHA256}, got {digest}"
        )
    return str(path)
