"""Training over two GPUs; skipped without, and so far never run by us."""

from functools import partial

import pytest
import sharded_training
import torch
from processes import Processes

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]


@pytest.fixture(scope="module")
def two_gpus():
    processes = Processes(2, backend="cpu:gloo,cuda:nccl")
    yield processes
    processes.end()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_weights_are_those_of_one_gpu(strategy, precision, two_gpus, tmp_path):
    options = {"accelerator": "cuda", "precision": precision}
    if (strategy, precision) == ("fsdp2", "16-mixed"):
        pytest.skip("Lightning's ModelParallelStrategy has no gradient scaler")
    run = partial(sharded_training.weights, **options)
    alone = run(tmp_path / "one", "one", "aida")
    for weights in two_gpus.run(run, tmp_path / strategy, strategy, "aida"):
        torch.testing.assert_close(weights, alone, rtol=0, atol=1e-5)
