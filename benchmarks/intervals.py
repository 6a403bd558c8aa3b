"""Print how far the intervals of a comparison can be trusted, by simulation.

    python benchmarks/intervals.py

The script simulates comparisons whose true difference is known. It prints how often each kind of
interval contains that difference, how often equal methods are declared different, and how often a
planted difference is found. All numbers are shares in %. Those from 20,000 comparisons are accurate
to 0.5 points, those from 2,000 to 1.5.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import stats

from aida_lightning.compare.statistics import paired_interval

Array = NDArray[np.float64]
Interval = Callable[[Array], tuple[Array, Array]]

SEEDS = (3, 5, 10)
RESAMPLES = 1_000


def student(differences: Array) -> tuple[Array, Array]:
    """Give the interval that a comparison reports."""
    return paired_interval(differences, np.zeros_like(differences))


def percentile(differences: Array) -> tuple[Array, Array]:
    """Give the bootstrap's percentiles."""
    means = _resampled(differences).mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=-1)
    return low, high


def bootstrap_t(differences: Array) -> tuple[Array, Array]:
    """Give the studentised bootstrap; without bounds where too many resamples have no spread."""
    seeds = differences.shape[-1]
    mean, error = differences.mean(-1), differences.std(-1, ddof=1) / math.sqrt(seeds)
    drawn = _resampled(differences)
    shift = drawn.mean(-1) - mean[..., None]
    spread = drawn.std(-1, ddof=1) / math.sqrt(seeds)
    ratio = np.where(spread > 1e-12, shift / np.maximum(spread, 1e-12), np.copysign(np.inf, shift))
    low, high = np.quantile(ratio, [0.025, 0.975], axis=-1, method="closest_observation")
    return mean - high * error, mean - low * error


def sign_flips(differences: Array) -> tuple[Array, Array]:
    """Invert the test that flips signs; its ends are among the means of all subsets of seeds."""
    seeds = differences.shape[-1]
    subsets = np.array([s for s in itertools.product([0, 1], repeat=seeds) if any(s)])
    means = np.sort(differences @ (subsets / subsets.sum(1, keepdims=True)).T, axis=-1)
    cut = math.floor(0.025 * 2**seeds)
    if cut == 0:  # 2^-(n - 1), the least p, is above 5 %
        nothing = np.full(differences.shape[:-1], np.inf)
        return -nothing, nothing
    return means[..., cut - 1], means[..., -cut]


KINDS: dict[str, Interval] = {
    "Student's t": student,
    "bootstrap, percentiles": percentile,
    "bootstrap-t": bootstrap_t,
    "sign flips, inverted": sign_flips,
}


def normal(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Draw the usual noise."""
    return rng.normal(size=shape)


def heavy_tailed(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Draw from t with 3 degrees of freedom."""
    return rng.standard_t(3, size=shape)


def skewed(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Draw what has a long tail of bad runs, of mean 0."""
    return 1 - rng.exponential(size=shape)


def failing_10(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Draw runs of which one in ten fails by 20 standard deviations."""
    return rng.normal(size=shape) - 20 * (rng.random(shape) < 0.1)


def failing_30(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Draw runs of which three in ten do."""
    return rng.normal(size=shape) - 20 * (rng.random(shape) < 0.3)


def rounded(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Draw values that are rounded to two standard deviations, as on few examples."""
    return np.round(rng.normal(size=shape) / 2)


NOISES = [normal, heavy_tailed, skewed, failing_10, failing_30, rounded]


def main() -> None:
    """Print the four tables."""
    rng = np.random.default_rng(0)
    print("Coverage of one 95 % interval, 2,000 comparisons of both with the noise / of the method")
    print("with skewed noise and the baseline with hardly any; median width in standard deviations")
    for name, interval in KINDS.items():
        cells = []
        for seeds in SEEDS:
            shape = (2_000, seeds)
            held = []
            for pair in ((normal, normal), (skewed, skewed), (skewed, None)):
                ours, theirs = (0.0 if n is None else n(rng, shape) for n in pair)
                low, high = interval(np.asarray(ours - theirs))
                held.append(f"{100 * ((low <= 0) & (high >= 0)).mean():.1f}")
            low, high = interval(rng.normal(size=shape))
            width = np.median(high - low)
            cells.append(f"{' / '.join(held)} ({width:.1f})")
        print(f"| {name} | {' | '.join(cells)} |")

    print("\nEqual methods of which any was found better / better or worse, the worst of 3 to 10")
    print("seeds, 20,000 comparisons")
    for noise in NOISES:
        cells = []
        for methods in (1, 3, 8):
            better, either = [], []
            for seeds in range(3, 11):
                values = noise(rng, (20_000, methods + 1, seeds))
                baseline = np.broadcast_to(values[:, :1], values[:, 1:].shape)
                low, high = paired_interval(values[:, 1:], baseline, methods)
                better.append((low > 0).any(1).mean())
                either.append(((low > 0) | (high < 0)).any(1).mean())
            cells.append(f"{100 * max(better):.1f} / {100 * max(either):.1f}")
        print(f"| {noise.__name__} | {' | '.join(cells)} |")

    print("\nPlanted differences that are found, in standard deviations of a paired difference,")
    print("with 1 / 3 / 8 methods beside the baseline, 20,000 comparisons; in brackets exactly")
    for effect in (0.5, 1.0, 2.0, 3.0, 5.0):
        cells = []
        for seeds in SEEDS:
            shares, exact = [], []
            for methods in (1, 3, 8):
                values = effect + rng.normal(size=(20_000, seeds))
                low, _ = paired_interval(values, np.zeros_like(values), methods)
                shares.append(f"{100 * (low > 0).mean():.0f}")
                quantile = stats.t.ppf(1 - 0.025 / methods, seeds - 1)
                power = stats.nct.sf(quantile, seeds - 1, effect * math.sqrt(seeds))
                exact.append(f"{100 * power:.0f}")
            cells.append(f"{' / '.join(shares)} ({' / '.join(exact)})")
        print(f"| {effect} | {' | '.join(cells)} |")

    print("\nThe difference that is found in 80 % of the cases, 1 / 3 / 8 methods")
    cells = []
    for seeds in SEEDS:
        found = []
        for methods in (1, 3, 8):
            quantile = stats.t.ppf(1 - 0.025 / methods, seeds - 1)
            effects = np.linspace(0, 40, 40_001)
            powers = stats.nct.sf(quantile, seeds - 1, effects[1:] * math.sqrt(seeds))
            found.append(f"{effects[1:][np.argmax(powers >= 0.8)]:.1f}")
        cells.append(" / ".join(found))
    print(f"| | {' | '.join(cells)} |")


def _resampled(differences: Array) -> Array:
    rng, seeds = np.random.default_rng(1), differences.shape[-1]
    return differences[..., rng.integers(seeds, size=(RESAMPLES, seeds))]


if __name__ == "__main__":
    main()
