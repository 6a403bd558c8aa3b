"""Differences between methods over few seeds, with confidence intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from aida_lightning.compare.methods import UsageError
from aida_lightning.logs.metric import Better

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
# Metrics are logged in float32; smaller relative spreads of the differences are rounding.
_RESOLUTION = 1e-6


@dataclass(frozen=True)
class Difference:
    """The difference of a method from the baseline, over the seeds that both completed.

    Args:
        seeds: number of seeds that the two share.
        mean: mean of the paired differences; None without a shared seed.
        low: lower end of the mean's interval; None if nothing can be said.
        high: upper end of the mean's interval; None if nothing can be said.
    """

    seeds: int
    mean: float | None
    low: float | None
    high: float | None

    def verdict(self, better: Better) -> str:
        """Return the conclusion that the interval supports, in words.

        Args:
            better: whether a larger ("max") or a smaller ("min") value is better.

        Example:
            >>> Difference(3, 1.5, 0.5, 2.5).verdict("max")
            'better'
            >>> Difference(3, 1.5, -0.5, 3.5).verdict("max")
            'not distinguishable'
        """
        if self.seeds < 2:
            shared = "one seed" if self.seeds else "no seed in common"
            return f"nothing can be said: {shared}"
        if self.low is None or self.high is None:
            return "nothing can be said: equal differences on all seeds"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) == (better == "max") else "worse"


def require_scipy() -> None:
    """Check that scipy is installed, without the half second that its import takes.

    Raises:
        UsageError: scipy is not installed; the message says how to install it.
    """
    if find_spec("scipy") is None:
        raise UsageError(
            "the intervals of a comparison need scipy, which is not installed: "
            'pip install "aida-lightning[examples]"'
        )


def paired_interval(
    values: FloatArray, baseline: FloatArray, comparisons: int = 1
) -> tuple[FloatArray, FloatArray]:
    r"""Compute Student's t intervals of the mean paired differences of many comparisons at once.

    For m comparisons over n seeds, :math:`d_s` is the difference on seed s, :math:`\bar d` is the
    mean and :math:`\sigma_d` the sample standard deviation of the differences, and the interval is

    .. math:: \bar d \pm t_{n-1,\,1 - 0.05/(2m)} \; \sigma_d / \sqrt n

    By Bonferroni's inequality, all m intervals hold together with a probability of at least 95 %.

    Args:
        values: values of a method, of shape (…, n), one per seed.
        baseline: values of the baseline on the same seeds, of the same shape.
        comparisons: number of intervals that hold together.

    Returns:
        The lower and the upper ends, of shape (…). They are NaN for fewer than two seeds, and where
        the differences do not vary, because such coarse values give no estimate of the spread.

    References:
        Student, The Probable Error of a Mean, Biometrika 6 (1908); Dunn, Multiple Comparisons
        among Means, Journal of the American Statistical Association 56 (1961).

    Example:
        >>> low, high = paired_interval(np.array([3.0, 4.0, 5.0]), np.array([1.0, 1.0, 1.0]))
        >>> round(float(low), 3), round(float(high), 3)
        (0.516, 5.484)
    """
    differences = values - baseline
    seeds = differences.shape[-1]
    if seeds < 2:
        nothing = np.full(differences.shape[:-1], math.nan)
        return nothing, nothing
    mean, spread = differences.mean(-1), differences.std(-1, ddof=1)
    scale = np.maximum(np.abs(values), np.abs(baseline)).max(-1)
    spread = np.where(spread > _RESOLUTION * scale, spread, math.nan)
    require_scipy()
    from scipy.stats import t

    quantile = t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), seeds - 1)
    half = quantile * spread / math.sqrt(seeds)
    return mean - half, mean + half


def differences(values: Mapping[str, Mapping[Any, float]], baseline: str) -> dict[str, Difference]:
    """Compare each method with a baseline, over the seeds that the two share.

    Args:
        values: values by seed, for each method.
        baseline: method with which the others are compared.

    Returns:
        The difference of each other method from the baseline.

    Example:
        >>> differences({"Adam": {0: 1.0}, "Aida": {0: 3.0}}, "Adam")
        {'Aida': Difference(seeds=1, mean=2.0, low=None, high=None)}
    """
    shared = {
        name: [seed for seed in ours if seed in values[baseline]]
        for name, ours in values.items()
        if name != baseline
    }
    comparisons = sum(len(seeds) > 1 for seeds in shared.values())
    found = {}
    for name, seeds in shared.items():
        ours = np.array([values[name][seed] for seed in seeds], dtype=np.float64)
        theirs = np.array([values[baseline][seed] for seed in seeds], dtype=np.float64)
        low, high = (float(end) for end in paired_interval(ours, theirs, comparisons))
        known = math.isfinite(low)
        found[name] = Difference(
            seeds=len(seeds),
            mean=float(np.mean(ours - theirs)) if seeds else None,
            low=low if known else None,
            high=high if known else None,
        )
    return found
