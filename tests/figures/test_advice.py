"""Advice from event files, as its rules state it."""

import ast

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from aida_lightning.commands import main
from aida_lightning.figures.advice import advise
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.states import LayerState, log_states

# By layer: the shape, and the two ratios at each step.
LAYERS = {
    "embed.weight": ((10, 4), [0.5, 0.9, 0.1], [3.0, 2.0, 9.0]),
    "blocks.0.weight": ((4, 4), [1.5, 1e6, 0.2], [0.5, 0.4, 0.3]),
    "blocks.1.weight": ((4, 4), [2.5, 2.5, 2.5], [2.0, 3.0, 2.0]),
    "blocks.1.bias": ((4,), [0.5, 0.5, 0.5], None),
    "head.weight": ((2, 4), [0.9, 0.99, 0.5], [0.9, 0.8, 0.9]),
    "head.bias": ((2,), None, None),
}


def write(folder, optimizer="Adam", layers=LAYERS, prefix="", scale=1.0):
    logger = TensorBoardLogger(folder.parent, name="", version=folder.name)
    states = {}
    start = f"{prefix}/" if prefix else ""
    for name, (shape, *ratios) in layers.items():
        size = 4 * int(np.prod(shape))
        states[name] = LayerState(optimizer, shape, 2 * size + 4, size)
        for tag, values in zip(("snr", "snr_rows"), ratios, strict=True):
            for step, value in enumerate(values or ()):
                logger.experiment.add_scalar(f"{start}{tag}/{name}", scale * value, 10 * step)
    log_states(logger, prefix, states, 0)
    logger.experiment.close()


def test_the_coarsest_average_whose_median_reaches_the_threshold_is_advised(tmp_path):
    write(tmp_path / "run")
    (advice,) = advise([tmp_path])
    assert (advice.optimizer, advice.method, advice.steps, advice.runs) == ("Adam", "ladam", 3, 1)
    assert {name: layer.average for name, layer in advice.layers.items()} == {
        "embed.weight": "rows",  # medians of 0.5 and 3
        "blocks.0.weight": "layer",  # 1.5 and 0.4
        "blocks.1.weight": "layer",
        "blocks.1.bias": "nothing",
        "head.weight": "nothing",  # 0.9 and 0.9
        "head.bias": "nothing",  # which was not measured
    }
    assert advice.layers["embed.weight"].snr == pytest.approx(0.5)
    assert advice.layers["embed.weight"].snr_rows == 3
    assert advice.layers["head.bias"].snr is None
    assert advice.state_bytes == 8 * (40 + 16 + 16 + 4 + 8 + 2) + 6 * 4
    # All but 10 of 40 numbers, and all but one of each 16.
    assert advice.saved_bytes == pytest.approx(4 * (30 + 15 + 15))
    assert advice.groups == {
        "embed.weight": {"partition": "rows"},
        "*.bias": {"partition": "elements"},
        "head.weight": {"partition": "elements"},
    }


@pytest.mark.parametrize(
    ("threshold", "averages"),
    [
        (0.05, ["layer"] * 5),
        (0.6, ["rows", "layer", "layer", "nothing", "layer"]),
        (2.1, ["rows", "nothing", "layer", "nothing", "nothing"]),
        (2.5, ["rows", "nothing", "layer", "nothing", "nothing"]),
        (2.6, ["rows", "nothing", "nothing", "nothing", "nothing"]),
        (9.5, ["nothing"] * 5),
    ],
)
def test_the_threshold_decides(tmp_path, threshold, averages):
    write(tmp_path / "run")
    (advice,) = advise([tmp_path], threshold)
    assert [layer.average for layer in advice.layers.values()][:5] == averages


def test_a_ratio_that_is_no_number_advises_nothing(tmp_path):
    write(tmp_path / "run", layers={"a.weight": ((4, 4), [5.0, np.nan], [np.nan, 5.0])})
    (advice,) = advise([tmp_path])
    assert advice.layers["a.weight"].average == "nothing"


def test_one_element_is_not_averaged(tmp_path):
    write(tmp_path / "run", layers={"a.bias": ((1,), [1e6], None)})
    (advice,) = advise([tmp_path])
    assert advice.layers["a.bias"].average == "nothing"
    assert advice.saved_bytes == 0


def test_seeds_count_together_and_optimizers_apart(tmp_path):
    for seed, scale in enumerate((0.1, 1.0, 4.0)):
        write(tmp_path / f"Adam/seed_{seed}", scale=scale)
    for name in ("Aida", "AdaBelief"):
        write(tmp_path / "gan", optimizer=name, prefix=name)
    found = {advice.label: advice for advice in advise([tmp_path])}
    assert [*found] == ["Adam", "gan Aida", "gan AdaBelief"]
    assert [advice.method for advice in found.values()] == ["ladam", "laida", "ladabelief"]
    assert found["Adam"].runs == 3
    values = [scale * x for scale in (0.1, 1.0, 4.0) for x in LAYERS["head.weight"][1]]
    assert found["Adam"].layers["head.weight"].snr == pytest.approx(np.median(values))
    assert [advice.label for advice in advise([tmp_path], optimizers=["gan*"])] == [*found][1:]


def printed(capsys, *arguments):
    assert main(["advise", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_command_prints_the_table_the_total_and_what_to_paste(tmp_path, capsys):
    write(tmp_path / "run", optimizer="AdamW")
    text = printed(capsys, tmp_path)
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]
    assert cells == [
        ["embed.weight", "10 × 4", "0.5", "3", "rows", "16.9 %"],
        ["blocks.0.weight", "4 × 4", "1.5", "0.4", "layer", "8.4 %"],
        ["blocks.1.weight", "4 × 4", "2.5", "2", "layer", "8.4 %"],
        ["blocks.1.bias", "4", "0.5", "–", "nothing", "0.0 %"],
        ["head.weight", "2 × 4", "0.9", "0.9", "nothing", "0.0 %"],
    ]
    assert "run: medians over 3 logged steps" in text
    assert "Total: 33.7 % of the optimizer's state, 240 bytes of 712 bytes" in text
    assert "Not measured, so nothing is averaged there: head.bias. StepsizeMonitor(" in text
    groups = {
        "embed.weight": {"partition": "rows"},
        "*.bias": {"partition": "elements"},
        "head.weight": {"partition": "elements"},
    }
    as_yaml, as_python = text.split("as YAML:\n")[1].split("\nand as Python:\n")
    assert yaml.safe_load(as_yaml) == {"decoupled_weight_decay": True, "groups": groups}
    call = ast.parse(as_python.strip(), mode="eval").body
    assert [ast.unparse(x) for x in (call.func, *call.args)] == [
        "build_optimizer", "'ladam'", "module"
    ]  # fmt: skip
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert options == {"decoupled_weight_decay": True, "groups": groups}
    assert [*options["groups"]] == [*groups]  # for the first match decides


def test_a_model_that_can_be_averaged_whole_needs_no_groups(tmp_path, capsys):
    write(tmp_path / "run", optimizer="Aida", layers={"a.weight": LAYERS["blocks.1.weight"]})
    text = printed(capsys, tmp_path)
    assert "build_optimizer(\n    'laida',\n    module,\n)" in text
    assert "groups" not in text


@pytest.mark.parametrize(
    ("optimizer", "threshold", "expected"),
    [
        ("RMSprop", 1, "has no optimizer that averages the second moment of RMSprop"),
        ("Adam", 100, "No ratio reaches the threshold: keep Adam."),
    ],
)
def test_what_cannot_be_advised_is_said(tmp_path, capsys, optimizer, threshold, expected):
    write(tmp_path / "run", optimizer=optimizer)
    text = printed(capsys, tmp_path, "--threshold", threshold)
    assert expected in text
    assert "Python" not in text


def test_a_run_without_the_ratios_is_told_what_to_log(tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    logger.experiment.add_scalar("stepsize_mean/a.weight", 1.0, 0)
    logger.experiment.close()
    with pytest.raises(EventsError, match=r'statistics=\["snr", "snr_rows"\]\) writes'):
        advise([tmp_path])
    assert main(["advise", str(tmp_path)]) == 2
    assert "none of the 1 run(s)" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["0", "-1"])
def test_a_threshold_has_to_be_a_number_above_0(tmp_path, capsys, threshold):
    assert main(["advise", str(tmp_path), f"--threshold={threshold}"]) == 2
    assert "threshold: a number above 0 is needed, but got" in capsys.readouterr().err


def test_layers_that_a_run_averaged_already_are_named_and_get_no_group(tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    states = {
        "a.weight": LayerState("LAdam", (6, 8), 220, 0),  # partition="rows"
        "a.bias": LayerState("LAdam", (6,), 52, 24),  # partition="elements"
        "unused.weight": LayerState("LAdam", (6, 8), 0, 0),  # without a state
    }
    logger.experiment.add_scalar("snr/a.bias", 0.5, 0)
    log_states(logger, "", states, 0)
    logger.experiment.add_scalar("snr/a.bias", 0.5, 1)
    logger.experiment.close()
    (advice,) = advise([tmp_path], threshold=0.6)
    assert advice.groups == {
        "a.bias": {"partition": "elements"},
        "unused.weight": {"partition": "elements"},
    }
    assert main(["advise", str(tmp_path), "--threshold", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "Averaged already, so keep the groups of these: a.weight.\n" in out
    assert "Not measured, so nothing is averaged there: unused.weight." in out
