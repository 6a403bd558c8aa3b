"""All tags that this package writes, and the pattern that finds the monitor's tags."""

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
# The lower and upper edges of the margin charts, which TensorBoard requires as separate tags. In
# its Scalars tab, they are the last group.
MARGINS = ("z_stepsize_band/lower", "z_stepsize_band/upper")
_EARLIER_MARGINS = (f"{MEAN}_minus_std", f"{MEAN}_plus_std")
# Statistics of a layer's step.
UPDATE_RATIO = "update_ratio"
UPDATE_NORM = "update_norm"
WEIGHT_NORM = "weight_norm"
GRADIENT_NORM = "gradient_norm"
GRADIENT_COSINE = "gradient_cosine"
OF_THE_STEP = (UPDATE_RATIO, UPDATE_NORM, WEIGHT_NORM, GRADIENT_NORM, GRADIENT_COSINE)
# Signal-to-noise ratios of a layer's second moment.
SNR = "snr"
SNR_ROWS = "snr_rows"
OF_THE_SECOND_MOMENT = (SNR, SNR_ROWS)
# The table of what an optimizer keeps of each layer, a text.
OPTIMIZER_STATE = "optimizer_state"
# Histograms ("/<layer>" follows) and images ("/mean", "/std" or "/heatmap" follows).
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
# The suffixes of a metric that could only be approximated, and of the best value that it can reach.
PROXY = "_proxy"
FLOOR = "_floor"

_MONITOR = re.compile(
    r"(?:(?P<optimizer>.+)/)?(?:[^/]+-)?"  # A logger's prefix ends with a hyphen.
    rf"(?P<statistic>(?!(?:{'|'.join(_EARLIER_MARGINS)})/)stepsize_\w+"
    rf"|{'|'.join((*OF_THE_STEP, *OF_THE_SECOND_MOMENT))})"
    r"/(?P<layer>.+)"
)


class MonitorTag(NamedTuple):
    """The parts of a tag that the ``StepsizeMonitor`` wrote.

    Attributes:
        optimizer: name of the optimizer, or None if the run had only one.
        statistic: tag without the names around it, such as ``stepsize_mean``.
        layer: name of the layer.
    """

    optimizer: str | None
    statistic: str
    layer: str


def parse_monitor_tag(tag: str) -> MonitorTag | None:
    """Split a tag of the monitor into its parts; return None for other tags and for margins.

    Example:
        >>> parse_monitor_tag("Adam/stepsize_mean/head.weight")
        MonitorTag(optimizer='Adam', statistic='stepsize_mean', layer='head.weight')
    """
    match = _MONITOR.fullmatch(tag)
    return MonitorTag(**match.groupdict()) if match else None


def is_loss(tag: str) -> bool:
    """Tell from its name whether a metric is a loss, with or without Lightning's suffixes.

    Example:
        >>> is_loss("train_loss_epoch"), is_loss("val_accuracy")
        (True, False)
    """
    return tag.removesuffix("_step").removesuffix("_epoch").endswith("loss")
