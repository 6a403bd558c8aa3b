"""The step over layers that processes share equals that of one process."""

import pytest
import sharding
import torch
from sharding import MEMBERS, SHAPES


@pytest.mark.parametrize(
    ("group", "kernel", "dtype", "tolerance"),
    [
        ("two_processes", "loop", torch.float32, 1e-6),
        ("two_processes", "foreach", torch.float64, 1e-13),
        ("four_processes", "fused", torch.float32, 1e-6),
        ("four_processes", "loop", torch.float64, 1e-13),
    ],
)
def test_every_layout_trains_as_one_process_does(group, kernel, dtype, tolerance, request):
    processes = request.getfixturevalue(group)
    for differences in processes.run(sharding.largest_differences, kernel, dtype, seconds=300):
        worst = max(differences, key=differences.get)
        assert differences[worst] <= tolerance, f"{worst}: {differences[worst]}"


@pytest.mark.parametrize("name", MEMBERS)
def test_one_collective_per_step_and_a_second_where_the_stepsize_is_averaged(name, two_processes):
    columns = 5 if name.startswith("L") else 3
    expected = {
        "AdaBelief": [],
        "AdamPlus": [],
        "AdamL": [8],
        "AdaBeliefL": [8],
        "SETAdam": [8 * (2 + 2)],  # the least element rides in a column for each process
    }.get(name, [8 * columns])
    for sizes in two_processes.run(sharding.collectives_of_a_step, name, "fully sharded", 3):
        assert sizes == [len(SHAPES) * size for size in expected]


@pytest.mark.parametrize(
    ("layout", "count"), [("hybrid", 1), ("unnamed mesh", 1), ("sharded twice", 2)]
)
def test_a_collective_for_each_dimension_of_the_mesh_that_splits(layout, count, four_processes):
    for sizes in four_processes.run(sharding.collectives_of_a_step, "Aida", layout):
        assert sizes == [len(SHAPES) * 3 * 8] * count


def test_none_where_every_process_has_all(two_processes):
    assert two_processes.run(sharding.collectives_of_a_step, "Aida", "replicated") == [[], []]


@pytest.mark.parametrize("name", ["Aida", "AdaBelief", "SETAdam"])
def test_stepsizes_of_a_shared_layer_are_those_of_the_whole(name, two_processes):
    assert max(two_processes.run(sharding.difference_of_stepsizes, name)) <= 1e-12


@pytest.mark.parametrize("name", MEMBERS)
def test_a_process_without_gradients_takes_part_and_keeps_its_parts(name, two_processes):
    moved = two_processes.run(sharding.step_without_gradients_on_rank_one, name, seconds=30)
    assert all(moved[0])
    assert not any(moved[1])


def test_unused_layers_and_plain_tensors_beside_shared_ones(two_processes):
    assert max(two_processes.run(sharding.layers_without_gradient_anywhere)) <= 1e-13


def test_partial_placements_of_a_layer_are_refused(two_processes):
    for message in two_processes.run(sharding.error_of_partial_placements):
        assert message.startswith("Aida does not support parameters with the placements (Partial")
        assert message.endswith("each must be Shard or Replicate")


def test_a_gradient_is_laid_out_as_its_layer_is(two_processes):
    assert max(two_processes.run(sharding.gradients_laid_out_otherwise)) <= 1e-6


@pytest.mark.parametrize("name", ["Aida", "LAida", "AdamL"])
def test_zero_redundancy_keeps_layers_whole(name, two_processes):
    assert max(two_processes.run(sharding.zero_redundancy, name)) == 0
