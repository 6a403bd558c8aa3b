"""Intervals that hold for few seeds, by simulation and against scipy's own."""

import sys

import numpy as np
import pytest

from aida_lightning.compare.methods import UsageError
from aida_lightning.compare.statistics import (
    Difference,
    differences,
    paired_interval,
    require_scipy,
)

stats = pytest.importorskip("scipy.stats")

COMPARISONS = 2_000
# Three standard errors of a share of 5 % among as many.
NOISE = 3 * (0.05 * 0.95 / COMPARISONS) ** 0.5


def normal(rng, shape):
    return rng.normal(size=shape)


def heavy_tailed(rng, shape):
    return rng.standard_t(3, size=shape)


def skewed(rng, shape):
    return -rng.exponential(size=shape)


def at_times_failed(rng, shape):
    return rng.normal(size=shape) - 20 * (rng.random(shape) < 0.1)


def rounded(rng, shape):
    return np.round(rng.normal(size=shape) / 2)


def pretended(noise, methods, seeds):
    """A baseline and methods, with what a seed has in common for all of them."""
    rng = np.random.default_rng([methods, seeds])
    common = 5 * rng.normal(size=(COMPARISONS, 1, seeds))
    common = np.round(common) if noise is rounded else common
    values = 70 + common + noise(rng, (COMPARISONS, methods + 1, seeds))
    return values[:, 1:], values[:, :1]


@pytest.mark.parametrize("noise", [normal, heavy_tailed, skewed, at_times_failed, rounded])
@pytest.mark.parametrize("methods", [1, 3, 8])
def test_of_equal_methods_one_in_twenty_comparisons_at_most_finds_any_difference(noise, methods):
    for seeds in range(3, 11):
        values, baseline = pretended(noise, methods, seeds)
        low, high = paired_interval(values, np.broadcast_to(baseline, values.shape), methods)
        false = ((low > 0) | (high < 0)).any(axis=1).mean()
        assert false <= 0.05 + NOISE, seeds
        if noise is normal and methods == 1:  # neither too narrow nor wider than need be
            assert false >= 0.05 - NOISE, seeds


@pytest.mark.parametrize("methods", [1, 4])
@pytest.mark.parametrize("effect", [1.0, 3.0])
def test_planted_differences_are_found_with_the_power_of_the_t_test(methods, effect):
    for seeds in (3, 5, 10):
        values, baseline = pretended(normal, 1, seeds)
        planted = values + effect * 2**0.5  # in standard deviations of a paired difference
        low, _ = paired_interval(planted, baseline, methods)
        quantile = stats.t.ppf(1 - 0.025 / methods, seeds - 1)
        power = stats.nct.sf(quantile, seeds - 1, effect * seeds**0.5)
        assert (low > 0).mean() == pytest.approx(power, abs=0.035), seeds


def test_the_interval_of_one_comparison_is_scipys():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 6))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    np.testing.assert_allclose(paired_interval(ours, theirs), [expected.low, expected.high])


def test_methods_are_compared_over_the_seeds_that_they_share():
    values = {
        "Adam": {0: 1.0, 1: 2.0, 2: 4.0, 3: 9.0},
        "Aida": {3: 10.0, 1: 3.5, 2: 4.5, 7: 50.0},
        "SGD": {0: 1.0},
        "Yogi": {8: 1.0},
    }
    found = differences(values, "Adam")
    assert list(found) == ["Aida", "SGD", "Yogi"]
    alone = paired_interval(np.array([10.0, 3.5, 4.5]), np.array([9.0, 2.0, 4.0]))
    assert found["Aida"] == Difference(3, 1.0, *map(float, alone))
    assert found["SGD"] == Difference(1, 0.0, None, None)
    assert found["Yogi"] == Difference(0, None, None, None)
    together = differences({**values, "Fromage": values["Aida"]}, "Adam")
    assert together["Aida"].high > found["Aida"].high  # of two intervals each is wider


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (Difference(3, 1.0, 0.5, 1.5), "better"),
        (Difference(3, -1.0, -1.5, -0.5), "worse"),
        (Difference(3, 1.0, -0.5, 2.5), "not distinguishable"),
        (Difference(1, 1.0, None, None), "nothing can be said: one seed"),
        (Difference(0, None, None, None), "nothing can be said: no seed in common"),
        (Difference(3, 1.0, None, None), "nothing can be said: equal differences on all seeds"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(difference, verdict):
    opposite = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert difference.verdict("max") == verdict
    assert difference.verdict("min") == opposite


def test_equal_differences_up_to_float32_have_no_interval():
    ours = np.array([0.9, 0.8, 0.7], np.float32).astype(float)
    theirs = np.array([0.89, 0.79, 0.69], np.float32).astype(float)
    found = differences({"Adam": dict(enumerate(theirs)), "Aida": dict(enumerate(ours))}, "Adam")
    assert found["Aida"].low is None
    assert found["Aida"].mean == pytest.approx(0.01, rel=1e-4)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UsageError, match=r'scipy.*pip install "aida-lightning\[examples\]"'):
        require_scipy()
