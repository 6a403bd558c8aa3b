"""The files beside the rows: numbers, tables for texts, curves."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare.test_report import FID, SWEEP, THREE, experiment, result, seeds, swept
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from aida_lightning.compare.experiment import Target
from aida_lightning.compare.findings import findings_of
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.methods import Method, Published
from aida_lightning.compare.outputs import (
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    draw,
    write_results,
)
from aida_lightning.logs.metric import Metric

# The header of before; what came later comes after.
COLUMNS = (
    "label,method,optimizer,options,seed,metric,best_val_accuracy,last_val_accuracy,floor,"
    "paper_mean,paper_std,wall_time_s,optimizer_state_bytes,epochs,paper_epochs,status,"
)


def findings(results, *methods, folder=Path("runs"), **rest):
    return findings_of(replace(experiment(*methods), **rest), results, folder)


@pytest.fixture
def three():
    results = seeds("Adam", 0.8, 0.7, 0.9) + seeds("Aida", 0.85, 0.755, 0.945)
    return findings(results + seeds("SGD", 0.5), *THREE, target=Target(0.9))


def test_the_columns_of_before_stay_where_they_were(three):
    assert as_csv(three).startswith(COLUMNS)


def test_the_numbers_are_written_as_logged(three):
    content = json.loads(as_json(three))
    assert content["metric"]["name"] == "val_accuracy"
    assert (content["baseline"], content["target"]) == ("Adam", 0.9)
    adam, aida, sgd = content["methods"]
    assert adam["values"] == {"0": 0.8, "1": 0.7, "2": 0.9}
    assert adam["difference"] is None
    assert aida["difference"]["mean"] == pytest.approx(0.05)
    assert aida["difference"]["verdict"] == "better"
    assert aida["difference"]["low"] == pytest.approx(0.05 - 4.30265 * 0.005 / 3**0.5, rel=1e-4)
    assert sgd["difference"]["low"] is None
    assert aida["to_target"]["runs"] == 0  # of runs that were not measured with it
    assert [run["seed"] for run in content["runs"]] == [0, 1, 2, 0, 1, 2, 0]


def test_a_methods_options_are_those_of_the_setting_that_stands_for_it():
    results = [*swept(9, 0.7, 0.99, 0.85), swept(0, 0.7, 0.8, 0.85)[1]]
    found = findings(results, SWEEP, seeds=[0], tune_seeds=[9])
    (adam,) = json.loads(as_json(found))["methods"]
    assert (adam["options"], adam["settings"], adam["tuned_on"]) == ({"lr": 0.01}, 3, [9])
    assert adam["values"] == {"0": 0.8}


def test_two_seeds_are_enough_for_an_interval_and_count_as_one():
    found = findings(seeds("Adam", 0.8, 0.7) + seeds("Aida", 0.9, 0.85), *THREE[:2])
    assert json.loads(as_json(found))["comparisons"] == 1


def test_what_is_not_finite_is_null_so_that_every_reader_takes_it():
    def refuse(name):
        raise AssertionError(name)

    text = as_json(findings(seeds("Aida", math.nan, math.inf)))
    (aida,) = json.loads(text, parse_constant=refuse)["methods"]
    assert aida["values"] == {"0": None, "1": None}


AWKWARD = r"100%_a&b $x$ {y} #1 ~^\ <i> [z] | *s* `c`"


def test_what_users_named_is_escaped_in_latex():
    text = as_latex(findings(seeds("Aida", 0.8), metric=Metric(title=AWKWARD)))
    assert (
        r"100\%\_a\&b \$x\$ \{y\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}i\textgreater{} {[}z{]} \textbar{} *s* `c`"
    ) in text


def test_the_tables_for_latex_are_booktabs_and_every_row_is_whole(three):
    text = as_latex(three)
    assert text.count(r"\begin{tabular}{l") == text.count(r"\toprule") == 3
    assert text.count(r"\midrule") == text.count(r"\bottomrule") == 3
    assert r"80.00 $\pm$ 10.00" in text
    assert r"Aida & $+5.00$ & {[}$+3.76$, $+6.24${]} & 3 & better \\" in text
    for part in text.split(r"\begin{tabular}")[1:]:
        rows = [line for line in part.splitlines() if line.endswith(r" \\")]
        assert len(rows) >= 3
        assert len({line.count("&") for line in rows}) == 1


def test_what_users_named_is_escaped_in_markdown_and_every_row_is_whole(three):
    text = as_markdown(findings(seeds("Aida", 0.8), metric=Metric(title=AWKWARD)))
    assert r"\<i\> \[z\] \| \*s\* \`c\`" in text
    assert "| Aida | +5.00 | \\[+3.76, +6.24\\] | 3 | better |" in as_markdown(three)


def test_all_files_are_written_and_no_half_one_is_left(three, tmp_path):
    write_results(three, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["results.csv", "results.json", "results.md", "results.tex"]


def log(folder, label, seed, values, tag="val_accuracy"):
    with SummaryWriter(str(run_folder(folder, label, seed))) as writer:
        for epoch, value in enumerate(values):
            writer.add_scalar(tag, value, 10 * epoch + 9)
            writer.add_scalar("epoch", epoch, 10 * epoch + 9)


def test_the_curves_have_a_band_over_the_seeds(tmp_path):
    for seed in range(3):
        log(tmp_path, "Aida", seed, [0.2 + 0.1 * seed, 0.5 + 0.05 * seed, 0.8])
        log(tmp_path, "Adam", seed, [0.1, 0.3, 0.4])
    shades = {}
    for label in ("Aida", "Adam"):
        found = findings(seeds(label, 0.8, 0.8, 0.8), Method("aida", label=label), folder=tmp_path)
        assert draw(found, tmp_path) == []
        with Image.open(tmp_path / "curves.png") as image:
            pixels = np.asarray(image.convert("HSV")).reshape(-1, 3)
        # Neither white nor grey, and as pale as a band.
        shades[label] = np.mean((pixels[:, 1] > 20) & (pixels[:, 1] < 90))
    assert shades["Aida"] > 0.02 > 2 * shades["Adam"]


def test_what_cannot_be_drawn_is_named(tmp_path):
    found = findings([result(status="failed", best=None, last=None)], folder=tmp_path)
    assert draw(found, tmp_path) == [
        "no figure: none of the runs that are reported has logged anything"
    ]
    log(tmp_path, "Aida", 0, [1.0], tag="other")
    (problem,) = draw(found, tmp_path)
    assert "no curves.png: no run has a scalar 'val_accuracy'" in problem


def test_a_proxys_curve_is_drawn_under_its_name(tmp_path):
    log(tmp_path, "Aida", 0, [3.0, 2.0], tag="fid_proxy")
    found = findings([result(metric="fid_proxy")], metric=FID, folder=tmp_path)
    assert draw(found, tmp_path) == []


def test_the_papers_number_is_written_with_its_method():
    found = findings([result()], Method("aida", label="Aida", paper=Published(91.57, 0.13)))
    (aida,) = json.loads(as_json(found))["methods"]
    assert aida["paper"] == {"mean": 91.57, "std": 0.13}
