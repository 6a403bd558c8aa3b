"""Parts of layers that processes share: the step of one process, with no more sums than needed."""

import pytest
import sharded_partitions
from sharding import MEMBERS, SHAPES

ELEMENTWISE = ["AdaBelief", "AdamPlus"]


@pytest.mark.parametrize(
    ("group", "kernel"),
    [
        ("two_processes", {"foreach": True}),
        ("three_processes", {"foreach": False}),
        ("four_processes", {"fused": True}),
    ],
)
def test_parts_train_and_read_as_in_one_process(group, kernel, request):
    processes = request.getfixturevalue(group)
    for differences in processes.run(sharded_partitions.largest_differences, kernel, seconds=300):
        worst = max(differences, key=differences.get)
        assert differences[worst] <= 1e-9, f"{worst}: {differences[worst]}"


@pytest.mark.parametrize("name", MEMBERS)
def test_rows_need_no_collective_where_dimension_0_is_split(name, three_processes):
    rows = []
    for sizes, statistics in three_processes.run(
        sharded_partitions.collectives_of_a_step, name, "rows"
    ):
        assert sizes == []
        rows.append(statistics)
    if name.startswith("L"):  # one number per row, each in the process that has the row
        assert [sum(of_layer) for of_layer in zip(*rows, strict=True)] == [s[0] for s in SHAPES]


@pytest.mark.parametrize("name", MEMBERS)
def test_parts_that_shards_cut_share_the_collective_of_the_layers(name, three_processes):
    """Shards of 3 rows cut the parts of 2 rows and of (2, 3), but not the others."""
    columns = 5 if name.startswith("L") else 3
    parts = 4 + 2
    expected = {
        "AdaBelief": [],
        "AdamPlus": [],
        "AdamL": [8],
        "AdaBeliefL": [8],
        "SETAdam": [8 * (2 + 3)],
    }.get(name, [8 * columns])
    for sizes, _ in three_processes.run(sharded_partitions.collectives_of_a_step, name, "parts"):
        assert sizes == [parts * size for size in expected]


@pytest.mark.parametrize("name", sorted({*MEMBERS}.difference(ELEMENTWISE)))
def test_a_split_of_another_dimension_cuts_every_row(name, three_processes):
    for sizes, _ in three_processes.run(
        sharded_partitions.collectives_of_a_step, name, "rows", "by the last dimension"
    ):
        assert len(sizes) == 1


@pytest.mark.parametrize("name", MEMBERS)
def test_a_process_without_gradients_keeps_its_parts(name, two_processes):
    moved = two_processes.run(
        sharded_partitions.step_without_gradients_on_rank_one, name, seconds=30
    )
    assert all(moved[0])
    assert not any(moved[1])


@pytest.mark.parametrize("name", ["LAida", "Aida", "AdamL"])
def test_the_monitor_reads_partitioned_layers_as_in_one_process(name, three_processes):
    for differing in three_processes.run(sharded_partitions.differing_statistics, name):
        assert differing == []
