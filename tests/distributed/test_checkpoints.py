"""Distributed checkpoints of every member, and runs that go on from them as if unbroken."""

import pytest
import sharded_checkpoints
import torch
from reference import MEMBERS

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled.*:UserWarning")


@pytest.mark.parametrize(
    "course",
    [
        [("two_processes", "fsdp2"), ("four_processes", "fsdp2"), (None, "one")],
        [("two_processes", "ddp"), ("four_processes", "fsdp2"), ("two_processes", "ddp")],
    ],
    ids=["2 to 4 to 1 processes", "DDP to FSDP2 to DDP"],
)
def test_training_goes_on_over_other_processes_as_if_unbroken(course, tmp_path, request):
    names = [*sorted(MEMBERS), *sharded_checkpoints.CUT]
    for part, (group, strategy) in enumerate(course):
        arguments = (str(tmp_path), strategy, names, part)
        if group:
            processes = request.getfixturevalue(group)
            results = processes.run(sharded_checkpoints.go_on, *arguments)
        else:
            results = [sharded_checkpoints.go_on(*arguments)]
        for weights in results:
            for name in names:
                expected = sharded_checkpoints.unbroken(name, part + 1)
                torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-12)
