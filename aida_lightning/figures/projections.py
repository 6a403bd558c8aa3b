"""Figure 5: the mutual projections of a layer's momentum and gradient."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aida_lightning.figures.plotting import x_axis
from aida_lightning.logs import tags
from aida_lightning.logs.curves import FloatArray
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import LoggedRun

_MOMENTUM, _GRADIENT = "#0072B2", "#D55E00"
_MOMENTS = 3
_K = 2
# The offset of the label of each k from its vector's tip, in points; tips may coincide.
_BESIDE_M = [(2, -16), (6, 5), (-24, -16)]
_BESIDE_G = [(4, 3), (-54, 3), (-28, 3)]


def project(m: FloatArray, g: FloatArray, k: int) -> tuple[list[FloatArray], list[FloatArray]]:
    """Project a pair of vectors onto each other k times (eq. 12 and 13, without xi).

    Args:
        m: momentum, of shape (n,).
        g: gradient, of shape (n,).
        k: number of projections.

    Returns:
        The momenta from m to the k-th, and the gradients from g to the k-th.

    Example:
        >>> momenta, gradients = project(np.array([2.0, 0.0]), np.array([1.0, 1.0]), 1)
        >>> momenta[1].tolist(), gradients[1].tolist()
        ([1.0, 1.0], [1.0, 0.0])
    """
    momenta, gradients = [m], [g]
    for _ in range(k):
        m, g = momenta[-1], gradients[-1]
        product = float(m @ g)
        if product == 0:
            momenta.append(np.zeros_like(m))
            gradients.append(np.zeros_like(g))
        else:
            momenta.append(product / float(g @ g) * g)
            gradients.append(product / float(m @ m) * m)
    return momenta, gradients


def fig5(runs: Sequence[LoggedRun]) -> Figure:
    """Draw the mutual projections of a run at its first, middle and last recording.

    This is Figure 5 of arXiv:2203.13273, with real vectors from the first run that had a
    ``ProjectionRecorder``.

    Raises:
        EventsError: no run had a ``ProjectionRecorder``.
    """
    for run in runs:
        layers = [
            tag.partition("/")[2]
            for tag in run.scalars
            if tag.startswith(f"{tags.PROJECTION_COSINE}/")
        ]
        if layers:
            break
    else:
        raise EventsError(
            f"no run has the scalars {tags.PROJECTION_COSINE}/<layer>; the callback "
            "aida_lightning.callbacks.ProjectionRecorder(layer) writes them"
        )
    layer = layers[0]
    m_norm, g_norm, cosine = (
        run.scalars[f"{tag}/{layer}"]
        for tag in (tags.PROJECTION_M_NORM, tags.PROJECTION_G_NORM, tags.PROJECTION_COSINE)
    )
    x_name, x_of = x_axis([run])
    moments = x_of(run, cosine)
    # At the very first step m is a multiple of g.
    first = int(cosine.steps[0] == 0 and len(moments) > 1)
    chosen = sorted({round(i) for i in np.linspace(first, len(moments) - 1, _MOMENTS)})
    figure = Figure(figsize=(1 + 4.2 * len(chosen), 4.6), layout="constrained")
    axes = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axis, index in zip(axes, chosen, strict=True):
        c = float(np.clip(cosine.values[index], -1, 1))
        ratio = float(m_norm.values[index] / g_norm.values[index])
        m = np.array([ratio, 0.0])
        g = np.array([c, np.sqrt(1 - c * c)])
        _draw_projections(axis, *project(m, g, _K))
        axis.set_title(
            f"{x_name} {moments[index]:.3g}: cos(m, g) = {c:.2f}, ‖m‖/‖g‖ = {ratio:.2f}",
            fontsize="medium",
        )
    title = ["Mutual projections of momentum m and gradient g", run.label, layer]
    # Fewer panels are too narrow for one line.
    figure.suptitle((", " if len(chosen) == _MOMENTS else "\n").join(title))
    return figure


def _draw_projections(
    axis: Axes, momenta: Sequence[FloatArray], gradients: Sequence[FloatArray]
) -> None:
    """Draw both chains from one origin, and the tracked difference at each k."""
    for name, chain, color in (("m", momenta, _MOMENTUM), ("g", gradients, _GRADIENT)):
        for k, vector in enumerate(chain):
            axis.annotate(
                "",
                xy=(vector[0], vector[1]),
                xytext=(0, 0),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": color,
                    "lw": 2.2 - 0.6 * k,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )
            on_the_line_of_m = (name == "m") == (k % 2 == 0)
            axis.annotate(
                f"${name}^{{({k})}}$",
                xy=(vector[0], vector[1]),
                xytext=(_BESIDE_M if on_the_line_of_m else _BESIDE_G)[k],
                textcoords="offset points",
                color=color,
            )
        # Each vector drops at a right angle on the line of the other.
        for start, end in pairwise(chain):
            axis.plot(*zip(start, end, strict=True), ":", color=color, linewidth=1)
    for k, (m, g) in enumerate(zip(momenta, gradients, strict=True)):
        axis.plot(
            *zip(m, g, strict=True),
            color=str(0.65 - 0.3 * k),
            linewidth=1.2,
            label=f"$\\|m^{{({k})}} - g^{{({k})}}\\|$ = {np.linalg.norm(m - g):.2g} ‖g‖",
        )
    axis.update_datalim([(0.0, 0.0)])
    axis.autoscale_view()
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(x=0.3, y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("along m, in ‖g‖")
    axis.set_ylabel("across m, in ‖g‖")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.18), frameon=False)
