"""Training under Lightning's strategies equals that of one process, and so does the monitor."""

from collections import Counter

import pytest
import sharded_training
import torch
from toy import read

from aida_lightning.logs.states import read_states

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
TRAINERS = [
    {"accumulate_grad_batches": 3},
    {"gradient_clip_val": 0.05},
    {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    {"precision": "bf16-mixed"},
    {"precision": "bf16-true"},
]


def test_the_monitor_samples_at_an_epochs_end_in_every_process(two_processes, tmp_path):
    run = sharded_training.log_at_epochs_ends
    run(tmp_path / "one", "one")
    two_processes.run(run, tmp_path / "fsdp2", "fsdp2")
    points, expected = (read(tmp_path / name) for name in ("fsdp2", "one"))
    assert len(expected["stepsize_mean/head.weight"]) == 2
    tables, of_one = (read_states(tmp_path / name / "run") for name in ("fsdp2", "one"))
    assert tables == of_one != {}  # of whole layers
    for tag, series in expected.items():
        assert points[tag] == pytest.approx(series, rel=1e-4, abs=1e-6), tag


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aida", "one optimizer"),
        ("laida", "one optimizer"),
        ("setadam", "one optimizer"),
        ("adabeliefl", "two optimizers"),
        ("adam", "one optimizer"),
        ("sgd", "two optimizers"),
    ],
)
def test_weights_and_stepsizes_are_those_of_one_process(
    strategy, name, kind, two_processes, tmp_path
):
    alone = sharded_training.weights(tmp_path / "one", "one", name, kind)
    folder = tmp_path / strategy
    for weights in two_processes.run(sharded_training.weights, folder, strategy, name, kind):
        torch.testing.assert_close(weights, alone, rtol=0, atol=1e-6)
    points, expected = read(folder), read(tmp_path / "one")
    assert points.keys() == expected.keys() != set()
    for tag, series in expected.items():
        assert points[tag] == pytest.approx(series, rel=1e-4, abs=1e-6), tag


@pytest.mark.parametrize("name", ["aida", "laida", "adaml", "sgd"])
@pytest.mark.parametrize(
    "strategy", ["fsdp2", "hybrid", "fsdp2 and tensor parallel", "tensor parallel"]
)
def test_four_processes_share_layers_in_every_way(strategy, name, four_processes, tmp_path):
    alone = sharded_training.weights(tmp_path / "one", "one", name)
    folder = tmp_path / strategy
    for weights in four_processes.run(sharded_training.weights, folder, strategy, name):
        torch.testing.assert_close(weights, alone, rtol=0, atol=1e-6)
    points, expected = read(folder), read(tmp_path / "one")
    assert points.keys() == expected.keys() != set()
    for tag, series in expected.items():
        assert points[tag] == pytest.approx(series, rel=1e-3, abs=1e-6), tag


@pytest.mark.parametrize(
    ("strategy", "group"),
    [
        ("ddp", "two_processes"),
        ("fsdp2", "two_processes"),
        ("hybrid", "four_processes"),
        ("fsdp2 and tensor parallel", "four_processes"),
    ],
)
def test_accumulation_clipping_and_precision_are_those_of_one_process(
    strategy, group, request, tmp_path
):
    alone = sharded_training.weights_with_each(tmp_path / "one", "one", TRAINERS)
    run, processes = sharded_training.weights_with_each, request.getfixturevalue(group)
    for runs in processes.run(run, tmp_path / strategy, strategy, TRAINERS):
        for options, weights, expected in zip(TRAINERS, runs, alone, strict=True):
            # Tensor parallel rounds a product's parts to bfloat16, and so has other gradients.
            rounded = "tensor" in strategy and "bf16" in options.get("precision", "")
            atol = 1e-2 if rounded else 1e-6  # the former is the learning rate, of one step
            torch.testing.assert_close(
                weights,
                expected,
                rtol=0,
                atol=atol,
                msg=lambda message, o=options: f"{o}: {message}",
            )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_killed_process_leaves_no_trace_in_weights_and_curves(strategy, two_processes, tmp_path):
    run = sharded_training.run_of_three_epochs
    unbroken = two_processes.run(run, tmp_path / "unbroken", strategy, "aida")
    folder = tmp_path / "killed"
    with pytest.raises(AssertionError, match="rank 1 has died"):
        two_processes.run(run, folder, strategy, "aida", True)
    resumed = two_processes.run(run, folder, strategy, "aida", False, True)
    for ours, theirs in zip(resumed, unbroken, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    points, expected = read(folder), read(tmp_path / "unbroken")
    assert points == expected
    assert sorted(points["stepsize_mean/head.weight"]) == list(range(36))


def test_an_optimizer_built_before_the_module_was_sharded_is_refused(two_processes, tmp_path):
    run = sharded_training.error_of_an_optimizer_built_too_early
    for message in two_processes.run(run, tmp_path):
        assert "Aida has 6 parameters, none of which belongs to the module" in message
        assert "before the module was sharded" in message


@pytest.mark.parametrize(
    ("strategy", "name", "gathers", "numbers", "more"),
    [
        ("ddp", "aida", 0, 3, ()),
        ("fsdp2", "aida", 3, 3, ()),
        ("fsdp2", "aida", 3, 8, ("snr", "snr_rows")),
        ("ddp", "sgd", 0, 6, ()),
        ("fsdp2", "sgd", 3, 6, ()),
    ],
)
def test_the_monitor_adds_one_gather_per_logged_step_where_layers_are_shared(
    strategy, name, gathers, numbers, more, two_processes, tmp_path
):
    run = sharded_training.collectives_of_a_run
    statistics = ("mean", "std", *more)
    without, monitored = (
        two_processes.run(run, tmp_path, strategy, name, statistics, monitored)
        for monitored in (False, True)
    )
    for rank in range(2):
        added = Counter(monitored[rank]) - Counter(without[rank])
        assert not Counter(without[rank]) - Counter(monitored[rank])
        assert sorted(added.elements()) == [6 * numbers * 8] * gathers  # layers, numbers, bytes
        assert len(without[rank]) > 0


@pytest.mark.parametrize("strategies", [("fsdp2", "fsdp2"), ("ddp", "fsdp2")])
def test_lightnings_checkpoints_go_on_over_more_processes(
    strategies, two_processes, four_processes, tmp_path
):
    run = sharded_training.epochs_from_a_checkpoint
    unbroken = run(tmp_path / "one", "one", 2)
    two_processes.run(run, tmp_path / "shared", strategies[0], 1)
    for weights in four_processes.run(run, tmp_path / "shared", strategies[1], 2):
        torch.testing.assert_close(weights, unbroken, rtol=0, atol=1e-6)


ANY_OPTIMIZER = [
    ("torch.optim.SGD", {"lr": 0.1}),
    ("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9}),
    ("torch.optim.Adam", {"lr": 0.01, "amsgrad": True}),
    ("torch.optim.AdamW", {"lr": 0.01}),
    ("torch.optim.NAdam", {"lr": 0.01}),
    ("torch.optim.RAdam", {"lr": 0.01, "betas": (0.9, 0.9)}),
    ("torch.optim.Adamax", {"lr": 0.01}),
    ("torch.optim.Adagrad", {"lr": 0.01}),
    ("torch.optim.RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    ("torch.optim.Adadelta", {"lr": 1.0}),
    ("torch.optim.ASGD", {"lr": 0.01}),
    ("torch.optim.Muon", {"lr": 0.01}),
]
FOREIGN = [
    ("pytorch_optimizer.AdaBelief", {"lr": 0.01}),
    ("pytorch_optimizer.Lion", {"lr": 0.01}),
    ("schedulefree.AdamWScheduleFree", {"lr": 0.01, "warmup_steps": 5}),
]
# These refuse DTensors themselves.
WITHOUT_DTENSORS = [
    ("torch.optim.Adafactor", {"lr": 0.01}),
    ("torch.optim.Rprop", {"lr": 0.01}),
    ("pytorch_optimizer.Aida", {"lr": 0.01}),
]


@pytest.mark.parametrize(("path", "options"), [*ANY_OPTIMIZER, *FOREIGN, *WITHOUT_DTENSORS])
def test_every_statistic_of_any_optimizer_is_that_of_float64(path, options, tmp_path):
    expected = sharded_training.any_optimizer(tmp_path, "one", path, options)
    check_logged(tmp_path, expected)


@pytest.mark.parametrize(("path", "options"), [*ANY_OPTIMIZER, *FOREIGN])
def test_over_shards_too(path, options, two_processes, tmp_path):
    run = sharded_training.any_optimizer
    expected, _ = two_processes.run(run, tmp_path, "fsdp2", path, options)
    check_logged(tmp_path, expected)


def check_logged(folder, expected):
    points = read(folder)
    of_the_trainer = {"hp_metric", "epoch", "loss"}
    assert points.keys() - of_the_trainer == expected.keys()
    assert len(expected["update_ratio/head.weight"]) == 10
    for tag, series in expected.items():
        statistic, _, layer = tag.partition("/")
        # A deviation is of numbers as large as the mean, and a cosine one of unit vectors.
        scale = max(expected.get(f"stepsize_mean/{layer}", {0: 1.0}).values())
        # A ratio's deviation is the smaller beside its mean, the larger the ratio is.
        of_ratios = max(series.values()) ** 1.5
        scale = {
            "stepsize_std": scale, "gradient_cosine": 1.0, "snr": of_ratios, "snr_rows": of_ratios,
        }.get(statistic, 0.0)  # fmt: skip
        assert points[tag] == pytest.approx(series, rel=1e-6, abs=1e-7 * scale), tag
