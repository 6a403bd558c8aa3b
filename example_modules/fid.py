"""The Fréchet distance between real and generated images: FID, or a proxy labelled as one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.image.fid import FrechetInceptionDistance
from typing_extensions import override

from aida_lightning._lightning import Callback, LightningModule, Trainer
from aida_lightning.datamodules._checks import check_at_least
from aida_lightning.example_modules.fid_features import ClassifierFeatures, inception_weights


class FIDMonitor(Callback):
    r"""Log the Fréchet distance between training images and generated ones.

    .. math::
        \lVert \mu_r - \mu_g \rVert^2
        + \mathrm{tr}(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2})

    for the means and covariances of a network's features of the real and the generated images
    (arXiv 1706.08500, eq. 6; computed by torchmetrics). At the end of the epochs that
    ``every_n_epochs`` selects, the callback logs two numbers without a unit:

    - ``fid``, with the published Inception weights, or ``fid_proxy``, with another network's
      features. ``fid_proxy`` is not FID and is not comparable with any published number;
    - ``fid_floor`` or ``fid_proxy_floor``, the distance between two halves of the real images. No
      generator can be expected to fall below it. It is an overestimate, because the distance
      between fewer images is larger.

    One mapping, ``(x + 1)·127.5``, rounds all images to 8 bits. The published script of Table III
    instead stretched each image by its own minimum and maximum, which changes real and generated
    images alike. Inception receives the images at 299×299, by bilinear interpolation. The latent
    vectors are the same at every measurement; if the module has a ``noise_seed``, they are drawn
    from it. Other random numbers are not affected. Under DDP, each process handles its share of
    both kinds of images, with the first process's running statistics.

    Args:
        every_n_epochs: number n of epochs, to measure at the end of every n-th training epoch and
            of the last one that the Trainer's ``max_epochs`` allows. None measures only at the end
            of the last epoch, as in the paper.
        num_samples: number of generated images; the paper uses 64,000.
        num_real: number of real images, taken from the start of the training split; None for all.
            Distances for different numbers of images are not comparable.
        features: None for Inception. For a proxy, the checkpoint of an
            :class:`~aida_lightning.example_modules.image_classifier.ImageClassifier`, of which the
            last layer's input is used; or a module from ``(n, 3, height, width)`` uint8 images to
            ``(n, d)`` features, where d is its ``num_features``. The module is frozen and put into
            evaluation mode.
        weights: file with the published Inception weights; None downloads them to torch.hub's
            folder (96 MB) if they are not there.
        batch_size: number of images that pass through the networks at a time, per process.

    Raises:
        ModuleNotFoundError: torch-fidelity, which has the Inception network, is not installed (this
            and the following errors are raised when training starts).
        RuntimeError: the weights could not be downloaded.
        FileNotFoundError: the file does not exist.
        ValueError: the file does not hold the published weights, the images are not in ±1, or a
            number is out of range.
        TypeError: the module has no method ``sample``.

    Example:
        >>> class Brightness(nn.Module):
        ...     num_features = 3
        ...
        ...     def forward(self, images):
        ...         return images.float().mean(dim=(2, 3))
        >>> monitor = FIDMonitor(features=Brightness(), every_n_epochs=10)
        >>> monitor.tag
        'fid_proxy'
    """

    metric: FrechetInceptionDistance
    floor: Tensor | None

    def __init__(
        self,
        every_n_epochs: int | None = None,
        num_samples: int = 64_000,
        num_real: int | None = None,
        features: str | Path | nn.Module | None = None,
        weights: str | Path | None = None,
        batch_size: int = 64,
    ) -> None:
        check_at_least(1, every_n_epochs=every_n_epochs, batch_size=batch_size)
        check_at_least(2, num_samples=num_samples)
        check_at_least(4, num_real=num_real)  # two in each half
        if features is not None and weights is not None:
            raise ValueError(
                "weights= has no meaning with features=, because the weights are Inception's; pass "
                "one of them"
            )
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.num_real = num_real
        self.features = features
        self.weights = weights
        self.batch_size = batch_size
        self.tag = "fid" if features is None else "fid_proxy"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not callable(getattr(pl_module, "sample", None)):
            raise TypeError(
                f"FIDMonitor needs a module with a method sample(n, generator), which "
                f"{type(pl_module).__name__} does not have"
            )
        if self.every_n_epochs is None and trainer.max_epochs == -1:
            raise ValueError(
                "every_n_epochs=None measures at the end of the last epoch, but a Trainer without "
                "max_epochs has none; set one of them"
            )
        # A missing file must fail now, and not after the epochs to be judged.
        self.metric, self.floor = self._build_metric(), None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs is not None and epoch % self.every_n_epochs == 0
        if not due and epoch != trainer.max_epochs:
            return
        self.metric.to(pl_module.device)
        if self.floor is None:
            self.floor = self._take_in_real_images(trainer, pl_module)
        self._take_in_generated_images(trainer, pl_module)
        distance = self.metric.compute()
        self.metric.reset()  # of the generated images
        # The numbers are already equal on all processes.
        pl_module.log_dict({self.tag: distance, f"{self.tag}_floor": self.floor}, sync_dist=True)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del self.metric  # and the memory of its network

    def load_features(self) -> tuple[int | nn.Module, str | None]:
        """Load the network that computes the features, and raise the class's errors about files.

        Returns:
            The network and None, or Inception's number of features, 2048, and its weights' file.
        """
        if self.features is None:
            return 2048, inception_weights(self.weights)
        if isinstance(self.features, nn.Module):
            return self.features.eval(), None
        return ClassifierFeatures.from_checkpoint(self.features), None

    def _build_metric(self) -> FrechetInceptionDistance:
        feature, weights = self.load_features()
        # torchmetrics computes in double precision and sums over the processes.
        return FrechetInceptionDistance(
            feature, reset_real_features=False, feature_extractor_weights_path=weights
        ).requires_grad_(False)

    @torch.no_grad()
    def _take_in_real_images(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Add the real images to the metric, and return the distance between their halves."""
        metric = self.metric
        dataset: Dataset[Any] = trainer.train_dataloader.dataset  # type: ignore[union-attr]
        n = len(dataset)  # type: ignore[arg-type]
        n = n if self.num_real is None else min(n, self.num_real)
        for first in (0, 1):
            indices = range(first, n, 2)[trainer.global_rank :: trainer.world_size]
            loader = DataLoader(
                dataset,
                batch_size=self.batch_size,
                sampler=indices,
                generator=torch.Generator(),  # Otherwise, the loader would draw from torch's own.
            )
            for batch in loader:
                images = batch[0] if isinstance(batch, list | tuple) else batch
                metric.update(to_uint8(images.to(pl_module.device)), real=first == 0)
        floor = metric.compute()
        # The metric's states are sums, so the halves' states add up to that of all real images.
        metric.real_features_sum += metric.fake_features_sum
        metric.real_features_cov_sum += metric.fake_features_cov_sum
        metric.real_features_num_samples += metric.fake_features_num_samples
        metric.reset()
        return floor

    @torch.no_grad()
    def _take_in_generated_images(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)
        seed = int(getattr(pl_module, "noise_seed", 0))
        random = torch.Generator(pl_module.device).manual_seed(seed + trainer.global_rank)
        count = len(range(trainer.global_rank, self.num_samples, trainer.world_size))
        for start in range(0, count, self.batch_size):
            n = min(self.batch_size, count - start)
            self.metric.update(to_uint8(pl_module.sample(n, random)), real=False)  # type: ignore[operator]


def to_uint8(images: Tensor) -> Tensor:
    """Round images in ±1 to 8 bits, with the same mapping for all of them.

    Args:
        images: floating-point images of any shape.

    Raises:
        ValueError: a value is not finite, or it is outside ±1 by more than rounding.

    Example:
        >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    least, most = images.aminmax()
    if not (least >= -1.001 and most <= 1.001):
        raise ValueError(
            f"images must be in ±1 to be measured, but these range from {least.item():.4g} to "
            f"{most.item():.4g}"
        )
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
