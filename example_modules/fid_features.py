"""The networks whose features the Fréchet distance compares, and where their weights are from."""

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
    "or give features=, a classifier's checkpoint or a module, for a Fréchet distance of its "
    "features, which is logged as fid_proxy"
)


class ClassifierFeatures(nn.Module):
    """Compute the input of a CIFAR-10 classifier's last linear layer, for a proxy of FID.

    Args:
        network: a trained classifier of ``(n, 3, 32, 32)`` images, normalised as the paper's; its
            last linear layer is taken out.

    Raises:
        ValueError: ``network`` has no linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not layers or not layers[-1][0]:
            raise ValueError(f"{type(network).__name__} has no linear layer to take the input of")
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
        """Read the network of an ImageClassifier's checkpoint, unpickling nothing but tensors.

        Args:
            path: the checkpoint, of a classifier whose network has a name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no ImageClassifier's checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {path} to take features from")
        try:
            classifier = ImageClassifier.load_from_checkpoint(
                path, map_location="cpu", weights_only=True
            )
        except Exception as error:  # whatever is wrong with a file, from its format to its keys
            raise ValueError(f"{path} is no ImageClassifier's checkpoint: {error}") from error
        return cls(classifier.model)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(n, num_features)`` of images ``(n, 3, height, width)``, uint8."""
        features: Tensor = self.network(self.prepare(images))
        return features


def inception_weights(path: str | Path | None) -> str:
    """Return the name of a file that holds the published Inception weights.

    Its checksum is what makes it safe to hand to torch-fidelity, which unpickles it whole.

    Args:
        path: the file; None downloads it to torch.hub's folder if it is not there.

    Raises:
        ModuleNotFoundError: torch-fidelity, which has the network, is not installed.
        RuntimeError: the weights could not be downloaded.
        FileNotFoundError: there is no such file.
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
                f"FID needs Inception's weights: {error}. Give the file as weights=, {_OR_A_PROXY}"
            ) from error
        return str(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} with Inception's weights")
    if (digest := sha256_of(path)) != WEIGHTS_SHA256:
        raise ValueError(
            f"{path} does not hold the published Inception weights, without which a distance is "
            f"no FID: its SHA-256 is {digest}, it must be {WEIGHTS_SHA256}"
        )
    return str(path)
