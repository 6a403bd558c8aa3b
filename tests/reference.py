"""The paper's algorithm boxes, transcribed line by line in float64.

An oracle for tests: slow, naive, and without a line in common with the package. There is one
function per box of arXiv 2203.13273: every projection is carried out on whole vectors, every layer
in a loop. Where the box leaves room the authors' published code decides: ``m`` is projected before
its bias is corrected, and ``eps`` stays in ``v`` at every step.

The optimizers that the paper only compares against are at the end.

Letters, as in the paper: x parameters, g gradient, m and v the two moving averages, a tilde for
"bias corrected", l a layer, t the step, k the projection.
"""

# ruff: noqa: E741 - l is the paper's letter for a layer.

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Layers = list[Tensor]


@dataclass
class LayerHistory:
    """What one layer went through; entry ``t - 1`` of each list belongs to step ``t``."""

    x: list[Tensor] = field(default_factory=list)  # after the step
    m: list[Tensor] = field(default_factory=list)  # not bias corrected
    v: list[Tensor] = field(default_factory=list)  # not bias corrected; 0-dim for LAdam & co.
    d: list[Tensor] = field(default_factory=list)  # what v tracks the square of
    stepsize: list[Tensor] = field(default_factory=list)  # before any layer mean is taken of it
    applied: list[Tensor] = field(default_factory=list)  # what multiplies the step
    # The pairs (m^(k), g^(k)), k = 0..K; (m, g) alone where nothing is mutually projected.
    pairs: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def record(self, **values: Tensor) -> None:
        for name, value in values.items():
            getattr(self, name).append(value.clone())


@dataclass(frozen=True)
class Setting:
    """The boxes' line 1, "Input", and how the gradient of line 4 is prepared."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False
    k: int = 2
    xi: float = 1e-20
    tau: float = 0.5


def run(
    name: str,
    params: Layers,
    gradients: list[Layers],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    k: int = 2,
    xi: float = 1e-20,
    tau: float = 0.5,
) -> list[LayerHistory]:
    """Run a member of the family; ``gradients`` has a list per step, of one tensor per layer."""
    eps = default_eps(name) if eps is None else eps
    decay = (weight_decay, decoupled_weight_decay)
    setting = Setting(lr, betas, eps, *decay, maximize, k=k, xi=xi, tau=tau)
    return MEMBERS[name](setting, float64(params), [float64(g) for g in gradients])


def default_eps(name: str) -> float:
    return 1e-5 if name == "SETAdam" else 1e-8


def ceiling(name: str, beta2: float, eps: float, tau: float = 0.5) -> float:
    """What no stepsize exceeds."""
    return 1 / ((1 - tau) * math.sqrt(eps)) if name == "SETAdam" else math.sqrt((1 - beta2) / eps)


def float64(layers: Layers) -> Layers:
    return [layer.detach().to(torch.float64, copy=True) for layer in layers]


def zeros(x: Layers) -> Layers:
    return [torch.zeros_like(x_l) for x_l in x]


def scalars(x: Layers) -> Layers:
    return [torch.zeros((), dtype=torch.float64) for _ in x]


def mean(z: Tensor) -> Tensor:
    """Layer mean; that of no elements is 0."""
    return z.sum() / max(z.numel(), 1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def line_4(s: Setting, x: Layers, g: Layers) -> tuple[Layers, Layers]:
    """The gradient g_t, and weight decay of either kind, of which the boxes say nothing."""
    if s.maximize:
        g = [-g_l for g_l in g]
    if s.decoupled_weight_decay:
        x = [x_l - s.lr * s.weight_decay * x_l for x_l in x]
    else:
        g = [g_l + s.weight_decay * x_l for x_l, g_l in zip(x, g, strict=True)]
    return x, g


def equations_6_and_7(
    s: Setting, x: Layers, gradients: list[Layers], *, track_difference: bool
) -> list[LayerHistory]:
    """AdaBelief; Adam+ is obtained by replacing (m - g)^2 with g^2."""
    (beta1, beta2), eta, eps = s.betas, s.lr, s.eps
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), zeros(x)
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]  # eq. 3
            d = m[l] - g[l] if track_difference else g[l]
            v[l] = beta2 * v[l] + (1 - beta2) * d**2 + eps  # eq. 6
            stepsize = 1 / (torch.sqrt(v[l] / (1 - beta2**t)) + eps)
            x[l] = x[l] - eta * 1 / (1 - beta1**t) * m[l] * stepsize  # eq. 7
            history[l].record(x=x[l], m=m[l], v=v[l], d=d, stepsize=stepsize, applied=stepsize)
            history[l].pairs.append([(m[l].clone(), g[l].clone())])
    return history


def algorithm_1(
    s: Setting, x: Layers, gradients: list[Layers], *, track_difference: bool
) -> list[LayerHistory]:
    """AdamL; AdaBeliefL is obtained by replacing g^2 with (m - g)^2."""
    (beta1, beta2), eta, eps = s.betas, s.lr, s.eps
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), zeros(x)  # line 2
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]  # line 5
            d = m[l] - g[l] if track_difference else g[l]
            v[l] = beta2 * v[l] + (1 - beta2) * d**2 + eps  # line 6
            m_tilde = m[l] / (1 - beta1**t)  # line 7
            v_tilde = v[l] / (1 - beta2**t)
            stepsize = 1 / torch.sqrt(v_tilde)
            gamma = mean(stepsize)  # line 9
            x[l] = x[l] - eta * gamma * m_tilde  # line 10
            history[l].record(x=x[l], m=m[l], v=v[l], d=d, stepsize=stepsize, applied=gamma)
            history[l].pairs.append([(m[l].clone(), g[l].clone())])
    return history


def algorithm_2(
    s: Setting, x: Layers, gradients: list[Layers], *, track_difference: bool
) -> list[LayerHistory]:
    """LAdam; LAdaBelief is obtained by replacing g^2 with (m - g)^2."""
    (beta1, beta2), eta, eps = s.betas, s.lr, s.eps
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), scalars(x)  # line 2
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]  # line 5
            d = m[l] - g[l] if track_difference else g[l]
            v[l] = beta2 * v[l] + (1 - beta2) * mean(d**2) + eps  # line 7
            m_tilde = m[l] / (1 - beta1**t)  # line 9
            v_tilde = v[l] / (1 - beta2**t)
            stepsize = 1 / torch.sqrt(v_tilde)
            x[l] = x[l] - eta * stepsize * m_tilde  # line 11
            history[l].record(x=x[l], m=m[l], v=v[l], d=d, stepsize=stepsize, applied=stepsize)
            history[l].pairs.append([(m[l].clone(), g[l].clone())])
    return history


def algorithm_3(s: Setting, x: Layers, gradients: list[Layers]) -> list[LayerHistory]:
    """Aida."""
    (beta1, beta2), eta, eps, xi = s.betas, s.lr, s.eps, s.xi
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), zeros(x)  # line 2
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]  # line 5
            m_k, g_k = m[l].clone(), g[l].clone()  # line 7
            pairs = [(m_k, g_k)]
            for _ in range(s.k):
                m_old, g_old = m_k.clone(), g_k.clone()
                m_k = inner(m_old, g_old) / (inner(g_old, g_old) + xi) * g_old  # line 9
                g_k = inner(m_old, g_old) / (inner(m_old, m_old) + xi) * m_old  # line 10
                pairs.append((m_k, g_k))
            d = m_k - g_k
            v[l] = beta2 * v[l] + (1 - beta2) * d**2 + eps  # line 12
            m_tilde = m[l] / (1 - beta1**t)  # line 14
            v_tilde = v[l] / (1 - beta2**t)
            stepsize = 1 / torch.sqrt(v_tilde)
            x[l] = x[l] - eta * m_tilde * stepsize  # line 15
            history[l].record(x=x[l], m=m[l], v=v[l], d=d, stepsize=stepsize, applied=stepsize)
            history[l].pairs.append(pairs)
    return history


def algorithm_4(s: Setting, x: Layers, gradients: list[Layers]) -> list[LayerHistory]:
    """AidaGrad. Line 11 prints m for what is m with a tilde in the other boxes and in the code."""
    (beta1, beta2), eta, eps, xi = s.betas, s.lr, s.eps, s.xi
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), zeros(x)  # line 2
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]  # line 5
            g_p = inner(m[l], g[l]) / (inner(m[l], m[l]) + xi) * m[l]  # line 7
            v[l] = beta2 * v[l] + (1 - beta2) * g_p**2 + eps  # line 8
            m_tilde = m[l] / (1 - beta1**t)  # line 10
            v_tilde = v[l] / (1 - beta2**t)
            stepsize = 1 / torch.sqrt(v_tilde)
            x[l] = x[l] - eta * m_tilde * stepsize  # line 11
            history[l].record(x=x[l], m=m[l], v=v[l], d=g_p, stepsize=stepsize, applied=stepsize)
            history[l].pairs.append([(m[l].clone(), g[l].clone())])
    return history


def algorithm_5(s: Setting, x: Layers, gradients: list[Layers]) -> list[LayerHistory]:
    """LAida, that is Aida with preprocessed layerwise stepsizes."""
    (beta1, beta2), eta, eps, xi = s.betas, s.lr, s.eps, s.xi
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), scalars(x)  # line 2
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]  # line 5
            m_k, g_k = m[l].clone(), g[l].clone()  # line 7
            pairs = [(m_k, g_k)]
            for _ in range(s.k):
                m_old, g_old = m_k.clone(), g_k.clone()
                m_k = inner(m_old, g_old) / (inner(g_old, g_old) + xi) * g_old  # line 9
                g_k = inner(m_old, g_old) / (inner(m_old, m_old) + xi) * m_old  # line 10
                pairs.append((m_k, g_k))
            d = m_k - g_k
            v[l] = beta2 * v[l] + (1 - beta2) * mean(d**2) + eps  # line 12
            m_tilde = m[l] / (1 - beta1**t)  # line 14
            v_tilde = v[l] / (1 - beta2**t)
            stepsize = 1 / torch.sqrt(v_tilde)
            x[l] = x[l] - eta * stepsize * m_tilde  # line 16
            history[l].record(x=x[l], m=m[l], v=v[l], d=d, stepsize=stepsize, applied=stepsize)
            history[l].pairs.append(pairs)
    return history


def set_adam(s: Setting, x: Layers, gradients: list[Layers]) -> list[LayerHistory]:
    """SET-Adam, of arXiv 2302.01029: down-scaling, epsilon-embedding, down-translating."""
    (beta1, beta2), eta, eps = s.betas, s.lr, s.eps
    history = [LayerHistory() for _ in x]
    m, v = zeros(x), zeros(x)
    for t, g in enumerate(gradients, start=1):
        x, g = line_4(s, x, g)
        for l in range(len(x)):
            m[l] = beta1 * m[l] + (1 - beta1) * g[l]
            v[l] = beta2 * v[l] + (1 - beta2) * g[l] ** 2
            v_tilde = v[l]
            if (v[l] > 0).any():
                ones = torch.ones_like(v[l])
                cosine = inner(v[l], ones) / (inner(v[l], v[l]) * inner(ones, ones)).sqrt()
                v_tilde = cosine**2 * v[l]
            w = torch.sqrt(v_tilde / (1 - beta2**t) + eps)
            w_tilde = w - s.tau * w.min() if w.numel() else w
            x[l] = x[l] - eta / (1 - beta1**t) * m[l] / w_tilde
            history[l].record(
                x=x[l], m=m[l], v=v[l], d=g[l], stepsize=1 / w_tilde, applied=1 / w_tilde
            )
            history[l].pairs.append([(m[l].clone(), g[l].clone())])
    return history


MEMBERS: dict[str, Callable[[Setting, Layers, list[Layers]], list[LayerHistory]]] = {
    "AdamPlus": lambda s, x, g: equations_6_and_7(s, x, g, track_difference=False),
    "AdaBelief": lambda s, x, g: equations_6_and_7(s, x, g, track_difference=True),
    "AdamL": lambda s, x, g: algorithm_1(s, x, g, track_difference=False),
    "AdaBeliefL": lambda s, x, g: algorithm_1(s, x, g, track_difference=True),
    "LAdam": lambda s, x, g: algorithm_2(s, x, g, track_difference=False),
    "LAdaBelief": lambda s, x, g: algorithm_2(s, x, g, track_difference=True),
    "Aida": algorithm_3,
    "AidaGrad": algorithm_4,
    "LAida": algorithm_5,
    "SETAdam": set_adam,
}


# Of a LayerHistory the baselines fill x, m and v only.


def run_yogi(
    params: Layers,
    gradients: list[Layers],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    initial_accumulator: float = 1e-6,
    maximize: bool = False,
) -> list[LayerHistory]:
    beta1, beta2 = betas
    history = [LayerHistory() for _ in params]
    for l, x in enumerate(float64(params)):
        m = torch.full_like(x, initial_accumulator)
        v = torch.full_like(x, initial_accumulator)
        for t, g_t in enumerate(gradients, start=1):
            g = -g_t[l].double() if maximize else g_t[l].double()
            g = g + weight_decay * x
            m = beta1 * m + (1 - beta1) * g
            v = v - (1 - beta2) * torch.sign(v - g**2) * g**2
            denominator = torch.sqrt(v) / math.sqrt(1 - beta2**t) + eps
            x = x - lr * (m / (1 - beta1**t)) / denominator
            history[l].record(x=x, m=m, v=v)
    return history


def run_msvag(
    params: Layers,
    gradients: list[Layers],
    *,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[LayerHistory]:
    beta1, beta2 = betas
    history = [LayerHistory() for _ in params]
    for l, x in enumerate(float64(params)):
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for t, g_t in enumerate(gradients, start=1):
            g = -g_t[l].double() if maximize else g_t[l].double()
            g = g + weight_decay * x
            m = beta1 * m + (1 - beta1) * g
            v = beta1 * v + (1 - beta1) * g**2
            m_tilde = m / (1 - beta1**t)
            v_tilde = v / (1 - beta2**t)
            rho = (1 - beta1) * (1 + beta1**t) / ((1 + beta1) * (1 - beta1**t))
            variance = (v_tilde - m_tilde**2) / (1 - rho)
            gamma = m_tilde**2 / (m_tilde**2 + rho * variance)
            gamma[torch.isnan(gamma)] = 0.0
            x = x - lr * gamma * m_tilde
            history[l].record(x=x, m=m, v=v)
    return history


def run_fromage(
    params: Layers, gradients: list[Layers], *, lr: float = 0.01, maximize: bool = False
) -> list[LayerHistory]:
    history = [LayerHistory() for _ in params]
    for l, x in enumerate(float64(params)):
        for g_t in gradients:
            g = -g_t[l].double() if maximize else g_t[l].double()
            norm_x, norm_g = float(inner(x, x).sqrt()), float(inner(g, g).sqrt())
            if norm_x > 0 and norm_g > 0:
                g = g * norm_x / norm_g
            x = (x - lr * g) / math.sqrt(1 + lr**2)
            history[l].record(x=x)
    return history
