"""WGAN-GP: two networks, two optimizers by name, and manual optimization (arXiv 1704.00028)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from aida_lightning._lightning import LightningModule, LightningOptimizer
from aida_lightning.datamodules._checks import check_at_least
from aida_lightning.example_modules.dcgan import dcgan_critic, dcgan_generator
from aida_lightning.example_modules.fid import FIDMonitor
from aida_lightning.registry import build_optimizer, get_optimizer_class

# The values of Table III.
_OPTIONS: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999)}


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Compute how far the critic's gradients between real and fake images are from length 1.

    .. math::
        \mathrm{mean}_i \; (\lVert \nabla_{\hat x_i} \textstyle\sum_j D(\hat x_j) \rVert_2 - 1)^2,
        \qquad \hat x_i = u_i x_i + (1 - u_i) \tilde x_i, \quad u_i \sim U(0, 1)

    The penalty is differentiable with respect to the critic's parameters. For a critic that sees
    one image at a time, the gradient is that of the single image, :math:`\nabla D(\hat x_i)`. With
    batch norm it is not, because batch norm couples the images of a batch; for this reason,
    Gulrajani et al. advise against batch norm in the critic. The published script of Table III uses
    it nevertheless, and so does this project.

    Args:
        critic: function from images ``(n, …)`` to values ``(n,)``.
        real: real images ``(n, …)``.
        fake: generated images of the same shape; no gradient flows to them.
        generator: source of the n numbers u, on the images' device; None for torch's own.

    Returns:
        A scalar, without the factor λ.

    Example:
        >>> images = torch.zeros(4, 3, 2, 2)
        >>> gradient_penalty(lambda x: 3 * x.flatten(1)[:, 0], images, images + 1).item()
        4.0
    """
    shape = (len(real), *[1] * (real.ndim - 1))
    u = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach(), real, u).requires_grad_()
    (gradients,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = (gradients.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


class WGANGP(LightningModule):
    """Train DCGAN's networks by WGAN-GP on batches of images in ±1, ``(n, 3, 64, 64)``.

    A batch is a sequence whose first item holds the images. At every batch, the critic takes a step
    on ``mean D(fake) − mean D(real) + λ·penalty``; at every ``n_critic``-th batch, starting with
    the first of an epoch, the generator takes a step on ``−mean D(fake)`` with the same latent
    vectors. The module logs these numbers, which have no unit:

    - at each of the critic's steps, ``critic_loss``, ``wasserstein``, which is the critic's
      estimate ``mean D(real) − mean D(fake)`` of the distance, and ``gradient_penalty`` without λ;
    - at each of the generator's steps, ``generator_loss``.

    Optimization is manual, so Lightning refuses its own gradient clipping and accumulation. As in
    the paper, there is no learning-rate schedule. ``trainer.global_step`` and ``max_steps`` count
    the steps of both optimizers. Under DDP, use ``strategy="ddp_find_unused_parameters_true"`` (or
    ``"ddp_spawn_find_unused_parameters_true"``), because each optimizer's step uses only one
    network's parameters; a comparison chooses it by itself. Each process has its own batch-norm
    statistics.

    The random numbers of a step are derived from a seed that checkpoints keep, the epoch, the batch
    and the process. They differ between processes, do not depend on other random draws, and are the
    same in a resumed run as in an unbroken one.

    Args:
        optimizer: name of the optimizer of both networks.
        optimizer_options: keyword arguments of both optimizers. If you omit ``lr`` and ``betas``,
            they have the paper's values, 2e-4 and (0.5, 0.999).
        latent_size: number of elements of a latent vector.
        width: number of channels of each network's largest feature maps; the paper uses 64, and a
            smaller width is faster.
        n_critic: number of batches per step of the generator.
        penalty_weight: λ, the factor of the gradient penalty.
        fid: keyword arguments of a :class:`~aida_lightning.example_modules.fid.FIDMonitor` to add
            to the Trainer's callbacks; None for no monitor.

    Raises:
        ValueError: the optimizer is unknown, a number is out of range, or ``fid`` has an unknown
            key.

    Example:
        >>> gan = WGANGP(optimizer="aida", optimizer_options={"k": 1, "eps": 1e-12}, width=4)
        >>> gan(torch.randn(2, 100)).shape
        torch.Size([2, 3, 64, 64])
    """

    find_unused_parameters = True  # for a comparison on several devices
    noise_seed: Tensor

    def __init__(
        self,
        optimizer: str = "aida",
        optimizer_options: dict[str, Any] | None = None,
        latent_size: int = 100,
        width: int = 64,
        n_critic: int = 5,
        penalty_weight: float = 10.0,
        fid: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, n_critic=n_critic)
        check_at_least(0, penalty_weight=penalty_weight)
        known = inspect.signature(FIDMonitor).parameters
        if unknown := [name for name in fid or {} if name not in known]:
            raise ValueError(
                f"fid has no option {', '.join(unknown)}; its options are: {', '.join(known)}"
            )
        self.save_hyperparameters()
        self.automatic_optimization = False
        accepted = inspect.signature(get_optimizer_class(optimizer)).parameters
        defaults = {name: value for name, value in _OPTIONS.items() if name in accepted}
        self.optimizer = optimizer
        self.optimizer_options = defaults | dict(optimizer_options or {})
        self.latent_size = latent_size
        self.n_critic = n_critic
        self.penalty_weight = penalty_weight
        self.fid = fid
        self.configure_callbacks()  # Invalid numbers fail here, and not when training starts.
        self.generator = dcgan_generator(latent_size, width)
        self.critic = dcgan_critic(width)
        # Checkpoints keep a buffer, and DDP gives every process the one of the first.
        self.register_buffer("noise_seed", torch.tensor(torch.initial_seed() % 2**63))

    @override
    def forward(self, latent: Tensor) -> Tensor:
        """Generate images in ±1, ``(n, 3, 64, 64)``, from latent vectors ``(n, latent_size)``."""
        images: Tensor = self.generator(latent)
        return images

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Generate images with batch norm's running statistics, as a trained GAN does.

        Args:
            n: number of images.
            generator: source of the latent vectors, on the module's device; None for torch's own.

        Returns:
            Images ``(n, 3, 64, 64)`` in ±1.
        """
        latent = self._latent(n, generator)
        training = self.generator.training
        self.generator.eval()
        try:
            return self(latent)  # type: ignore[no-any-return]
        finally:
            self.generator.train(training)

    @override
    def on_train_start(self) -> None:
        """Read the seed once, because reading it from a GPU at each step would wait for it."""
        self._seed = int(self.noise_seed)

    @override
    def training_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        """Take the critic's step and, when it is due, the generator's."""
        real = batch[0]
        random = self._random(batch_idx)
        latent = self._latent(len(real), random)
        critic_optimizer, generator_optimizer = cast(list[LightningOptimizer], self.optimizers())
        with torch.no_grad():
            fake = self.generator(latent)
        # Real and fake images pass in separate batches, so batch norm does not mix them.
        wasserstein = self.critic(real).mean() - self.critic(fake).mean()
        penalty = gradient_penalty(self.critic, real, fake, random)
        loss = -wasserstein + self.penalty_weight * penalty
        critic_optimizer.zero_grad()
        self.manual_backward(loss)
        critic_optimizer.step()
        self.log("critic_loss", loss)
        self.log("wasserstein", wasserstein, prog_bar=True)
        self.log("gradient_penalty", penalty)
        if batch_idx % self.n_critic == 0:
            self._step_generator(generator_optimizer, latent)

    def _step_generator(self, optimizer: LightningOptimizer, latent: Tensor) -> None:
        self.toggle_optimizer(optimizer)  # The critic's parameters need no gradients here.
        loss = -self.critic(self.generator(latent)).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log("generator_loss", loss)

    def _latent(self, n: int, generator: torch.Generator | None) -> Tensor:
        weight = next(self.generator.parameters())
        size = (n, self.latent_size)
        latent = torch.randn(size, generator=generator, device=weight.device, dtype=torch.float32)
        return latent.to(weight.dtype)  # the same vectors in every precision

    def _random(self, batch_idx: int) -> torch.Generator:
        keys = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        (seed,) = np.random.SeedSequence(keys).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(seed))

    @override
    def configure_optimizers(self) -> list[Optimizer]:
        """Build the critic's optimizer and the generator's, in this order."""
        return [
            build_optimizer(self.optimizer, network, **self.optimizer_options)
            for network in (self.critic, self.generator)
        ]

    @override
    def configure_callbacks(self) -> list[FIDMonitor]:
        return [] if self.fid is None else [FIDMonitor(**self.fid)]

    @override
    def prepare_data(self) -> None:
        """Fetch and check the FIDMonitor's weights before the processes of a fit start."""
        if self._trainer is not None and self._trainer.state.fn not in (None, "fit"):
            return
        for monitor in self.configure_callbacks():
            monitor.load_features()
