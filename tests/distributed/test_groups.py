"""Parameter groups of layers that processes share."""

import pytest
import sharded_groups
import torch

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled.*:UserWarning")
NAMES = ("aida", "laida", "adamw")


def test_groups_by_pattern_equal_groups_made_by_hand_under_fsdp2(tmp_path, two_processes):
    for of_process in two_processes.run(sharded_groups.weights, str(tmp_path), "fsdp2", NAMES):
        for name in NAMES:
            ours, theirs = of_process[name]
            assert len(ours) == 6
            for key, value in ours.items():
                assert torch.equal(value, theirs[key])


def test_a_sharded_run_resumes_by_the_layers_names_where_groups_changed(tmp_path, two_processes):
    def run(groups, epochs):
        return two_processes.run(sharded_groups.resumed, str(tmp_path), "fsdp2", groups, epochs)

    features, head = (
        [f"{layer}.{part}" for part in ("weight", "bias")] for layer in ("features", "head")
    )
    run(sharded_groups.A, 1)
    for options, steps, told in run(sharded_groups.A, 2):
        assert options == [
            ("default", ["head.weight"], 0.01, 0.1),
            ("*.bias", ["features.bias", "head.bias"], 0.01, 0.0),
            ("features.*", ["features.weight"], 1e-3, 0.1),
        ]
        assert (steps, told) == (dict.fromkeys(features + head, 24.0), [])
    for rank, (options, steps, told) in enumerate(run(sharded_groups.B, 3)):
        assert options == [
            ("default", ["head.weight"], 0.01, 0.1),
            ("features.*", features, 1e-3, 0.1),
            ("head.bias", ["head.bias"], 0.5, 0.1),
        ]
        assert steps == dict.fromkeys(features + head, 36.0)
        assert len(told) == (rank == 0)
