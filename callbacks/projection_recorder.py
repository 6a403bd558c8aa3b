"""A callback that logs the data of Figure 5: one layer's momentum and gradient as a triangle."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from aida_lightning._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from aida_lightning._private import steps_taken
from aida_lightning.logs import tags


class ProjectionRecorder(Callback):
    """Log the triangle of one layer's momentum m and gradient g, which is all that Figure 5 needs.

    Every projection of the pair lies in the plane of m and g, so two lengths and an angle determine
    the whole figure. They are logged as ``projection_m_norm/<layer>``,
    ``projection_g_norm/<layer>`` and ``projection_cosine/<layer>``. The gradient is the one that
    the optimizer averages, including weight decay and clipping; the callback computes it from the
    momentum before and after the step.

    Args:
        layer: name of the parameter.
        every_n_steps: number of steps between two recordings. None, the default, uses the Trainer's
            ``log_every_n_steps``.

    Raises:
        MisconfigurationException: the module has no such parameter when training starts.
    """

    def __init__(self, layer: str, every_n_steps: int | None = None) -> None:
        self.layer = layer
        self.every_n_steps = every_n_steps
        self._before: Tensor | None = None
        self._triangle: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._held: list[Optimizer] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if self._held != trainer.optimizers:  # A callback may replace them.
            self._attach(trainer, pl_module)

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()
        self._held = [*trainer.optimizers]
        layers = dict(pl_module.named_parameters())
        if self.layer not in layers:
            raise MisconfigurationException(
                f"ProjectionRecorder found no layer {self.layer!r}; the layers are: {[*layers]}"
            )
        param = layers[self.layer]
        before, after = partial(self._before_step, trainer, param), partial(self._after_step, param)
        for optimizer in trainer.optimizers:
            if trainer.is_global_zero and _group_of(optimizer, param):
                self._handles.append(optimizer.register_step_pre_hook(before))
                self._handles.append(optimizer.register_step_post_hook(after))

    def _before_step(self, trainer: Trainer, param: Tensor, optimizer: Optimizer, *_: Any) -> None:
        every: int = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = steps_taken(trainer) + 1
        due = every > 0 and step % every == 0  # A Trainer with log_every_n_steps=0 logs nothing.
        momentum = optimizer.state.get(param, {}).get("exp_avg", torch.zeros_like(param))
        self._before = momentum.detach().clone() if due else None

    def _after_step(self, param: Tensor, optimizer: Optimizer, *_: Any) -> None:
        momentum = optimizer.state.get(param, {}).get("exp_avg")
        group = _group_of(optimizer, param)
        # A layer without a gradient took no step.
        took = param.grad is not None and momentum is not None and "betas" in group
        if took and self._before is not None:
            triangle = _triangle(momentum, self._before, group["betas"][0])
            # Not 0 if a gradient scaler made a fused optimizer skip the step.
            skipped = getattr(optimizer, "found_inf", torch.zeros(()))
            self._triangle = torch.cat([triangle, skipped.reshape(1).to(triangle)])
        self._before = None

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._triangle is None:
            return
        m_norm, g_norm, cosine, skipped = self._triangle.tolist()
        self._triangle = None
        if skipped:
            return
        metrics = {
            f"{tags.PROJECTION_M_NORM}/{self.layer}": m_norm,
            f"{tags.PROJECTION_G_NORM}/{self.layer}": g_norm,
            f"{tags.PROJECTION_COSINE}/{self.layer}": cosine,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=steps_taken(trainer))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _group_of(optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(param is other for other in group["params"]):
            return dict(group)
    return {}


def _triangle(momentum: Tensor, before: Tensor, beta1: float) -> Tensor:
    m = momentum.detach().double().flatten()
    g = (m - beta1 * before.double().flatten()) / (1 - beta1)
    norms = torch.linalg.vector_norm(m), torch.linalg.vector_norm(g)
    return torch.stack([*norms, (m @ g) / (norms[0] * norms[1])])
