"""Every tag that this package writes, and the pattern by which those of the monitor are found."""

import re
from typing import NamedTuple

# Statistics of a layer's adaptive stepsizes; "/<layer>" follows.
MEAN = "stepsize_mean"
STD = "stepsize_std"
STD_OVER_MEAN = "stepsize_std_over_mean"
MIN = "stepsize_min"
MAX = "stepsize_max"
CEILING_SHARE = "stepsize_ceiling_share"
EFFECTIVE_MEAN = "stepsize_effective_mean"
EFFECTIVE_STD = "stepsize_effective_std"
# The lower and upper edges of the margin charts, which TensorBoard wants as tags of their own. In
# its Scalars tab they are the last group.
MARGINS = ("z_stepsize_band/lower", "z_stepsize_band/upper")
_EARLIER_MARGINS = (f"{MEAN}_minus_std", f"{MEAN}_plus_std")
# Statistics of a layer's step.
UPDATE_RATIO = "update_ratio"
UPDATE_NORM = "update_norm"
WEIGHT_NORM = "weight_norm"
GRADIENT_NORM = "gradient_norm"
GRADIENT_COSINE = "gradient_cosine"
OF_THE_STEP = (UPDATE_RATIO, UPDATE_NORM, WEIGHT_NORM, GRADIENT_NORM, GRADIENT_COSINE)
# Histograms ("/<layer>" follows) and images ("/mean" and "/std" do).
STEPSIZES = "stepsizes"

# The triangle of a layer's momentum and gradient; "/<layer>" follows.
PROJECTION_M_NORM = "projection_m_norm"
PROJECTION_G_NORM = "projection_g_norm"
PROJECTION_COSINE = "projection_cosine"

# Of a whole run: Lightning's own, and the size of the optimizers' state in a comparison.
EPOCH = "epoch"
HYPERPARAMETER_METRIC = "hp_metric"
STATE_BYTES = "optimizer_state_bytes"
DIVERGED = "loss_is_not_finite"
# What follows the name of a metric that could only be approximated, and the best that it can be.
PROXY = "_proxy"
FLOOR = "_floor"

_MONITOR = re.compile(
    r"(?:(?P<optimizer>.+)/)?(?:[^/]+-)?"  # a logger's prefix ends with a hyphen
    rf"(?P<statistic>(?!(?:{'|'.join(_EARLIER_MARGINS)})/)stepsize_\w+|{'|'.join(OF_THE_STEP)})"
    r"/(?P<layer>.+)"
)


class MonitorTag(NamedTuple):
    """The parts of a tag that the ``StepsizeMonitor`` wrote.

    Attributes:
        optimizer: the optimizer's name, or None where the run had only one.
        statistic: the tag without the names beside it, such as ``stepsize_mean``.
        layer: the layer's name.
    """

    optimizer: str | None
    statistic: str
    layer: str


def parse_monitor_tag(tag: str) -> MonitorTag | None:
    """Split a tag of the monitor into its parts; return None for others and for margins.

    Example:
        >>> parse_monitor_tag("Adam/stepsize_mean/head.weight")
        MonitorTag(optimizer='Adam', statistic='stepsize_mean', layer='head.weight')
    """
    match = _MONITOR.fullmatch(tag)
    return MonitorTag(**match.groupdict()) if match else None


def is_loss(tag: str) -> bool:
    """Tell whether a metric is a loss by its name, with or without Lightning's suffixes.

    Example:
        >>> is_loss("train_loss_epoch"), is_loss("val_accuracy")
        (True, False)
    """
    return tag.removesuffix("_step").removesuffix("_epoch").endswith("loss")
