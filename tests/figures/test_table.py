"""The summary prints what was logged last, and says what was not."""

import pytest
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.commands import main
from aida_lightning.figures.table import print_table, summarize
from aida_lightning.logs.events import EventsError


def write(folder, **statistics):
    with SummaryWriter(str(folder)) as writer:
        for step in range(3):
            for tag, value in statistics.items():
                writer.add_scalar(f"{tag}/model.a.weight", value if step == 2 else 0.123, step)


def printed(tables) -> str:
    console = Console(width=180, record=True)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


def test_every_statistic_of_a_layer_is_shown_as_it_was_last(tmp_path):
    write(
        tmp_path / "Aida/seed_0",
        stepsize_mean=200.0,
        stepsize_std=50.0,
        stepsize_min=1.5,
        stepsize_max=316.0,
        stepsize_ceiling_share=0.255,
        stepsize_effective_mean=0.0625,
        update_ratio=0.5,
        update_norm=0.25,
        weight_norm=2.5,
        gradient_norm=3.5,
        gradient_cosine=-0.75,
        snr=1.25,
        snr_rows=0.875,
    )
    text = printed(summarize([tmp_path]))
    assert "Aida: adaptive stepsizes at step 2" in text
    row = next(line for line in text.splitlines() if "│ a " in line)
    cells = [cell.strip() for cell in row.strip("│ \n").split("│")]
    of_stepsizes = ["200", "50", "0.25", "1.5", "316", "25.5 %", "0.0625"]
    assert cells == ["1", "a", *of_stepsizes, "1.25", "0.875", "0.5", "0.25", "2.5", "3.5", "-0.75"]
    assert "Not logged" not in text


def test_what_was_not_logged_has_no_column_and_is_named(tmp_path):
    write(tmp_path / "run", stepsize_mean=2.0, stepsize_std=1.0)
    text = printed(summarize([tmp_path]))
    assert "Std/mean" in text
    assert "At ceiling" not in text
    assert "Not logged: min, max, ceiling_share, effective_mean" in " ".join(text.split())


def test_what_was_not_logged_is_one_line_in_a_pipe(tmp_path, capsys):
    write(tmp_path / "run", stepsize_mean=2.0)
    assert main(["summary", str(tmp_path)]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("Not logged: std")]
    assert line.endswith("gradient_cosine. StepsizeMonitor(statistics=[…]) logs them.")


def test_labels_and_layers_are_folded_and_not_cut_in_a_narrow_terminal(tmp_path, capsys):
    label = "the_label_of_an_optimizer_" * 4
    with SummaryWriter(str(tmp_path / label)) as writer:
        writer.add_scalar(f"stepsize_mean/{'a_block.' * 12}weight", 1.0, 0)
    (table,) = summarize([tmp_path])
    print_table(table, Console(width=40, force_terminal=True, color_system=None))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-2])) <= 40
    assert label in "".join(printed.split())
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    assert "".join(row[2].strip() for row in rows) == ("a_block." * 12).rstrip(".")
    assert table.caption.startswith("Not logged")  # the caller's table is as it was


def test_an_optimizer_without_stepsizes_has_a_table_of_its_updates(tmp_path):
    write(tmp_path / "SGD/seed_0", update_ratio=0.5, weight_norm=2.0)
    text = printed(summarize([tmp_path]))
    assert "SGD: updates at step 2" in text
    assert "Update/weight" in text
    assert "Mean" not in text


def test_seeds_are_averaged(tmp_path):
    write(tmp_path / "Aida/seed_0", stepsize_mean=2.0)
    write(tmp_path / "Aida/seed_1", stepsize_mean=4.0)
    text = printed(summarize([tmp_path]))
    assert "means over 2 seeds" in text
    assert "│    3 │" in text


def test_optimizers_are_chosen_by_label_and_folders_by_glob(tmp_path, capsys):
    for name in ("one/Aida", "two/SGD"):
        write(tmp_path / name / "seed_0", stepsize_mean=2.0)
    assert main(["summary", str(tmp_path / "*"), "--optimizers", "aida"]) == 0
    text = capsys.readouterr().out
    assert "Aida: adaptive" in text
    assert "SGD" not in text
    with pytest.raises(EventsError, match="matches none of Aida, SGD"):
        summarize([tmp_path], optimizers=["adam"])


def test_every_label_that_is_asked_for_has_to_be_there(tmp_path):
    write(tmp_path / "Aida/seed_0", stepsize_mean=2.0)
    with pytest.raises(EventsError, match="'foo' matches none of Aida"):
        summarize([tmp_path], optimizers=["foo", "Aida*"])


def test_names_in_a_file_are_whole_and_as_they_are(tmp_path, capsys):
    statistics = ("mean", "std", "min", "max", "ceiling_share", "effective_mean")
    write(tmp_path / "run[one]", **{f"stepsize_{name}": 1234.5 for name in statistics})
    with SummaryWriter(str(tmp_path / "run[one]")) as writer:
        writer.add_scalar("stepsize_mean/decoder.of_a_name.that_is.long.weight", 1.0, 2)
    assert main(["summary", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "run[one]: adaptive stepsizes at step 2" in printed
    assert "decoder.of_a_name.that_is.long" in printed
