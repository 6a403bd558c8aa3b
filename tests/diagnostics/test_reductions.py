"""Each statistic against its definition, evaluated naively in Python."""

import math

import pytest
import torch

from aida_lightning.diagnostics.reductions import (
    cosine,
    histogram,
    mean_and_relative_variance,
    mean_and_variance,
    norm,
    quantiles,
    row_ratio,
    share_at_least,
)
from aida_lightning.measuring._statistics import STATISTICS

GENERATOR = torch.Generator().manual_seed(0)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TENSORS = [
    torch.rand(shape, generator=GENERATOR, dtype=torch.float64) * 300
    for shape in [(), (1,), (2,), (7,), (4, 5), (3, 2, 2, 3), (60, 50)]
]
everywhere = pytest.mark.parametrize("values", TENSORS, ids=lambda t: str(tuple(t.shape)))


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_variance_are_those_of_the_definition(values, dtype):
    values = values.to(dtype)
    numbers = values.double().flatten().tolist()
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)
    found = mean_and_variance(values)
    assert {number.dtype for number in found} == {torch.promote_types(dtype, torch.float32)}
    assert [f.item() for f in found] == pytest.approx([mean, variance], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("count", [100, 10_000])
def test_mean_and_variance_of_constants_and_of_what_is_not_finite(count):
    mean, variance = mean_and_variance(torch.full((count,), 316.2278))
    assert (mean.item(), variance.item()) == pytest.approx((316.2278, 0.0), rel=1e-6, abs=1e-8)
    assert variance >= 0
    for bad in (torch.inf, torch.nan):
        values = torch.ones(count)
        values[3] = bad
        mean, variance = mean_and_variance(values)
        assert not mean.isfinite()
        assert not variance.isfinite()


@pytest.mark.parametrize("count", [2, 2000, 100_001, 3_000_001])
def test_a_spread_far_below_the_mean_is_not_lost(count):
    values = 300 + torch.linspace(-1e-2, 1e-2, count)
    mean, variance = mean_and_variance(values)
    assert mean.item() == pytest.approx(values.double().mean().item(), rel=1e-6)
    assert variance.item() == pytest.approx(values.double().var(correction=0).item(), rel=1e-4)


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_interpolate_between_the_two_nearest_elements(values, dtype):
    values = values.to(dtype)
    probabilities = [0.0, 0.05, 0.25, 0.5, 0.95, 1.0]
    ordered = sorted(values.double().flatten().tolist())
    for probability, found in zip(probabilities, quantiles(values, probabilities), strict=True):
        position = probability * (len(ordered) - 1)
        below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
        expected = below + (above - below) * (position - math.floor(position))
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_quantiles_are_torchs_own_and_nan_where_there_is_a_nan():
    values = torch.randn(1001, generator=GENERATOR)
    expected = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95]))
    torch.testing.assert_close(torch.stack(quantiles(values, [0.05, 0.5, 0.95])), expected)
    values[3] = torch.nan
    assert all(q.isnan() for q in quantiles(values, [0.0, 0.5]))


def test_quantiles_of_more_elements_than_older_torch_takes_at_once():
    values = torch.ones(2**24 + 3, dtype=torch.bfloat16)
    values[1::2] = 3
    assert [q.item() for q in quantiles(values, [0.25, 0.75])] == [1.0, 3.0]


@everywhere
def test_the_share_counts_the_bound_itself(values):
    bound = values.flatten()[0].item()
    expected = sum(x >= bound for x in values.flatten().tolist()) / values.numel()
    assert share_at_least(values, bound).item() == pytest.approx(expected)


@everywhere
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
def test_the_norm_is_the_root_of_the_sum_of_squares(values, dtype):
    values = (values * (1 + 2j)).to(dtype) if dtype.is_complex else values.to(dtype)
    expected = math.sqrt(math.fsum(abs(x) ** 2 for x in values.flatten().tolist()))
    assert norm(values).item() == pytest.approx(expected, rel=1e-5)


@everywhere
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, -1.0])
def test_the_cosine_is_that_of_the_definition(values, dtype, scale):
    b = (values.flip([0] if values.ndim else []) + 1) * scale
    a, b = (x * (2 - 1j) if dtype.is_complex else x for x in (values, b))
    a, b = a.to(dtype), b.to(dtype)
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    product = math.fsum((x * complex(y).conjugate()).real for x, y in pairs)
    lengths = [math.sqrt(math.fsum(abs(pair[i]) ** 2 for pair in pairs)) for i in (0, 1)]
    assert cosine(a, b).item() == pytest.approx(product / math.prod(lengths), rel=1e-5)


def test_the_cosine_of_gradients_whose_squares_leave_float32s_range():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    for scale in (1e-30, 1e30):
        assert cosine(a * scale, b * scale).item() == pytest.approx(0.96)
    assert cosine(a, torch.zeros(2)).item() == 0
    assert cosine(a, torch.full((2,), torch.nan)).isnan()


@everywhere
@pytest.mark.parametrize("bins", [1, 2, 10])
def test_the_histogram_counts_every_element_in_its_bin(values, bins):
    numbers = values.flatten().tolist()
    low, high = min(numbers), max(numbers)
    expected = [0] * bins
    for x in numbers:
        place = int((x - low) * bins / (high - low)) if high > low else 0
        expected[min(place, bins - 1)] += 1
    assert histogram(values, bins).tolist() == expected


def test_the_histogram_counts_beyond_float32():
    values = torch.ones(2**24 + 2, dtype=torch.bfloat16)
    values[0] = 0
    assert histogram(values, 2).tolist() == [1, 2**24 + 1]


def ratios(values):
    """The ratio of the layer, and the mean of those of its rows, as the documentation has them."""

    def ratio(numbers):
        mean = math.fsum(numbers) / len(numbers)
        variance = math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)
        return min(mean**2 / variance, 1e6) if variance else 1e6 * (mean > 0)

    rows = [ratio(row) for row in values.double().reshape(len(values), -1).tolist() if any(row)]
    vary = [x for x in rows if x < 1e6]
    of_rows = math.fsum(vary) / len(vary) if vary else 1e6 * bool(rows)
    return ratio(values.double().flatten().tolist()), of_rows


def found_ratios(values):
    mean, relative_variance = mean_and_relative_variance(values)
    of_rows, _ = row_ratio(values)
    snr = STATISTICS["snr"].compute(
        {"v_mean": mean.item(), "v_relative_variance": relative_variance.item()}
    )
    return snr, of_rows.item()


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(2,), (4, 5), (3, 2, 2, 3), (60, 500), (1, 9)])
def test_signal_to_noise_ratios_are_those_of_the_definition_at_any_scale(shape, scale):
    # Four decades within a layer.
    values = 10 ** (4 * torch.rand(shape, generator=GENERATOR)) * scale
    assert found_ratios(values) == pytest.approx(ratios(values), rel=1e-5)
    nearly_alike = (1 + 1e-2 * torch.rand(shape, generator=GENERATOR)) * scale
    assert found_ratios(nearly_alike) == pytest.approx(ratios(nearly_alike), rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signal_to_noise_ratios_of_half_precision_are_those_of_its_values(dtype):
    values = (torch.rand(7, 30, generator=GENERATOR) * 1e-3).to(dtype)
    assert found_ratios(values) == pytest.approx(ratios(values), rel=1e-5)


ALIKE, DEAD, ROW = [1e-9] * 3, [0.0] * 3, [1.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("rows", "of_rows"),
    [
        ([ROW, ALIKE, DEAD], 27 / 14), ([ROW, [x * 1e-20 for x in ROW]], 27 / 14),
        ([ALIKE, ALIKE], 1e6), ([ALIKE, DEAD], 1e6), ([DEAD, DEAD], 0), ([[1.0], [2.0]], 1e6),
        ([ROW, [1.0, 1.0001, 1.0]], 27 / 14),
    ],
)  # fmt: skip
def test_rows_that_are_constant_or_dead_leave_the_mean_over_rows_as_it_is(rows, of_rows):
    # 27/14: the squared mean 9 by the variance (4 + 1 + 9) / 3
    assert found_ratios(torch.tensor(rows)) == pytest.approx(
        (ratios(torch.tensor(rows))[0], of_rows), rel=1e-4
    )


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_shows_in_the_ratios(bad):
    values = torch.ones(4, 5)
    values[2, 3] = bad
    assert all(map(math.isnan, found_ratios(values)))


@pytest.mark.parametrize("value", [0.0, 1e-9])
def test_a_constant_layer_has_the_largest_ratio_and_a_dead_one_none(value):
    assert found_ratios(torch.full((4,), value))[0] == (1e6 if value else 0)
