"""Parts of packed layers that processes share have the numbers of whole layers' parts."""

import pytest
import sharded_parts
from processes import Processes


@pytest.fixture(scope="module")
def three_processes():
    processes = Processes(3)
    yield processes
    processes.end()


def check(results):
    for whole, shared, counts in results:
        assert shared.keys() == whole.keys()
        assert any(tag.endswith("packed.weight[k]") for tag in whole)
        for tag, number in whole.items():
            assert shared[tag] == pytest.approx(number, rel=1e-4, abs=1e-4), tag
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", ["aida", "adamw", "setadam"])
def test_parts_in_uneven_and_empty_shards_with_no_further_collective(name, three_processes):
    check(three_processes.run(sharded_parts.in_shards, name, "rows"))


@pytest.mark.parametrize("layout", ["columns", "strided"])
def test_parts_of_layers_under_tensor_parallel_and_fsdp2(layout, four_processes):
    check(four_processes.run(sharded_parts.in_shards, "adamw", layout))
