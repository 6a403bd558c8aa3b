"""The ratios of parts, as processes hold them, merge into those of the whole layer."""

import pytest
import torch

from aida_lightning.diagnostics.reductions import mean_and_relative_variance, row_ratio
from aida_lightning.measuring._merging import _OF_NO_ELEMENTS, _merged

NAMES = ("v_count", "v_mean", "v_relative_variance", "v_row_count", "v_row_ratio")
GENERATOR = torch.Generator().manual_seed(0)
VARIED = 10 ** (4 * torch.rand(7, 5, generator=GENERATOR)) * 1e-20
ALIKE, DEAD = torch.full((3, 5), 1e-20), torch.zeros(4, 5)


def measures(v):
    if not v.numel():
        return [_OF_NO_ELEMENTS[name] for name in NAMES]
    mean, relative_variance = mean_and_relative_variance(v)
    ratio, rows = row_ratio(v)
    return [v.numel(), mean.item(), relative_variance.item(), rows.item(), ratio.item()]


@pytest.mark.parametrize("sizes", [[7], [3, 4], [5, 1, 1], [4, 0, 3, 0]])
@pytest.mark.parametrize(
    "v",
    [
        VARIED, torch.cat([ALIKE, VARIED[:4]]), torch.cat([DEAD, VARIED[:3]]),
        torch.cat([ALIKE, DEAD]), torch.cat([DEAD, DEAD[:3]]), torch.cat([ALIKE, ALIKE, ALIKE[:1]]),
        torch.cat([ALIKE, 2 * ALIKE, ALIKE[:1]]),
    ],
    ids=["varied", "alike first", "dead first", "alike and dead", "dead", "alike", "by row"],
)  # fmt: skip
def test_the_ratios_of_a_layer_are_merged_from_parts_of_any_size(v, sizes):
    parts = torch.tensor([measures(part) for part in v.split(sizes)], dtype=torch.float64)
    merged = _merged({name: parts[:, n, None] for n, name in enumerate(NAMES)})
    found = [merged[name].item() for name in NAMES]
    expected = measures(v.double())
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-12 * VARIED.min().item())
