"""What the monitor costs, in operations and in waits for the device: counts, not times."""

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import Net, TwoOptimizers, fit

from aida_lightning.callbacks import StepsizeMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
EVERYTHING = [
    "mean", "std", "min", "max", "std_over_mean", "median", "q05", "q95",
    "effective_mean", "effective_std", "update_ratio", "gradient_cosine", "snr", "snr_rows",
]  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts all operations, those that read a number on the host among them.

    Attributes:
        counts: by name.
        passes: by number of elements, those that are given so many at once.
    """

    def __init__(self):
        super().__init__()
        self.counts, self.passes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        if not function.is_view:
            tensors = (leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            self.passes.update({tensor.numel() for tensor in tensors})
        return function(*args, **(kwargs or {}))


def operations(folder, module, monitor):
    with Operations() as mode:
        fit(folder, module, monitor)
    return mode


@pytest.mark.parametrize("interval", [{"every_n_steps": 100}, {"logging_interval": "epoch"}])
@pytest.mark.parametrize("name", ["aida", "adam", "sgd"])
def test_a_step_that_is_not_logged_runs_no_operation(tmp_path, name, interval):
    without = operations(tmp_path / "a", Net(name), None).counts
    assert without["aten._local_scalar_dense.default"] > 0  # reads on the host are seen
    if "every_n_steps" in interval:
        monitor = StepsizeMonitor(statistics=EVERYTHING, histograms=True, **interval)
        assert operations(tmp_path / "b", Net(name), monitor).counts == without
    else:  # whose one sample costs what one of an interval of steps does
        once = operations(tmp_path / "b", Net(name), StepsizeMonitor(every_n_steps=12)).counts
        found = operations(tmp_path / "c", Net(name), StepsizeMonitor(**interval)).counts
        assert found == once != without


@pytest.fixture
def reads(monkeypatch):
    """List what the package's own code reads of tensors on the host, by the method's name.

    The optimizers' own counters are on the host already, and not among them.
    """
    reads = []
    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *args, _original=original, _name=name, **kwargs):
            frame = sys._getframe(1)
            parts = ("callbacks", "diagnostics", "logs", "measuring")
            ours = tuple(f"aida_lightning.{part}" for part in parts)
            reader = frame.f_code.co_name
            if frame.f_globals["__name__"].startswith(ours) and reader != "on_host":
                reads.append(_name)
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return reads


@pytest.mark.parametrize("statistics", [["mean", "std"], EVERYTHING])
def test_a_logged_step_is_one_transfer_of_all_layers_and_optimizers(tmp_path, reads, statistics):
    monitor = StepsizeMonitor("*", 6, statistics=statistics, histograms=len(statistics) > 2)
    fit(tmp_path, TwoOptimizers(["aida", "adam"], every=1), monitor)
    assert reads == ["tolist", "tolist"]  # 12 steps, 2 of them logged


def test_the_norms_of_an_update_cost_one_copy_of_a_layer_at_a_logged_step(tmp_path, reads):
    without = operations(tmp_path / "a", Net("sgd"), None).counts
    with_monitor = operations(tmp_path / "b", Net("sgd"), StepsizeMonitor(every_n_steps=6)).counts
    clones = "aten.clone.default"
    assert with_monitor[clones] - without[clones] == 2 * 2  # layers, logged steps
    assert reads == ["tolist", "tolist"]


@pytest.mark.parametrize(("name", "passes"), [("aida", 3), ("adam", 5)])
def test_mean_and_deviation_take_one_pass_over_the_stepsizes(tmp_path, name, passes):
    without = operations(tmp_path / "a", Net(name), None).passes
    with_monitor = operations(tmp_path / "b", Net(name), StepsizeMonitor(every_n_steps=12)).passes
    # The others compute the stepsizes, for aida v / (1 - beta2^t) and 1 / sqrt of it.
    features = 4 * 3
    assert with_monitor[features] - without[features] <= passes
