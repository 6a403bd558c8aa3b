"""Which setting stands for a method, what chose it, and in which order runs come."""

import math

import pytest

from aida_lightning.compare.experiment import Experiment, Target
from aida_lightning.compare.methods import Method, UsageError, choose_optimizers
from aida_lightning.compare.results import RunResult
from aida_lightning.compare.selection import (
    check_selection,
    find_baseline,
    next_runs,
    standings,
)
from aida_lightning.logs.metric import Metric

RATES = [0.001, 0.01, 0.1]
SWEPT = Method("adam", label="Adam", grid={"lr": RATES})
SINGLE = Method("aida", label="Aida")


def experiment(*methods, **rest) -> Experiment:
    return Experiment("", None, None, None, list(methods) or [SINGLE, SWEPT], **rest)


def trained(choice, seed, value, status="completed") -> RunResult:
    return RunResult(
        label=choice.label,
        method=choice.method,
        optimizer=choice.name,
        options=choice.options,
        seed=seed,
        metric="val_accuracy",
        best=value,
        last=value,
        floor=None,
        wall_time_s=1.0,
        optimizer_state_bytes=None,
        epochs=1,
        status=status,
    )


def trained_in_turn(of, value_of):
    """Train as a comparison does: the results by the rounds in which their runs were due."""
    chosen, results, rounds = choose_optimizers(of.optimizers), [], []
    while plan := next_runs(chosen, of, results):
        rounds.append([(choice.label, seed) for choice, seed in plan])
        results += [trained(choice, seed, value_of(choice, seed)) for choice, seed in plan]
    return results, rounds


def test_the_seeds_that_choose_are_not_reported_and_the_chosen_setting_alone_is_trained_on():
    of = experiment(seeds=[0, 1], tune_seeds=[7, 8])
    # On the seeds that choose 0.01 is the best, on the others another one would be.
    values = {0.001: 0.5, 0.01: 0.6, 0.1: 0.4}

    def value_of(choice, seed):
        rate = choice.options.get("lr", 0.01)
        return values[rate] if seed in of.tune_seeds else 1 - values[rate]

    results, rounds = trained_in_turn(of, value_of)
    labels = [f"Adam lr={rate}" for rate in RATES]
    assert rounds == [
        [(label, seed) for seed in (7, 8) for label in labels],
        [("Aida", 0), ("Adam lr=0.01", 0), ("Aida", 1), ("Adam lr=0.01", 1)],
    ]
    aida, adam = standings(results, of)
    assert {run.seed for run in adam.runs} == {run.seed for run in aida.runs} == {0, 1}
    assert (adam.label, adam.setting, adam.settings) == ("Adam lr=0.01", "lr=0.01", 3)
    assert (aida.settings, aida.tuned_on, aida.edges) == (1, [], {})
    assert adam.tuned_on == [7, 8]
    assert not adam.tuned_on_reported
    assert adam.edges == {}


def test_without_seeds_that_choose_every_setting_is_trained_on_every_seed_and_that_is_told():
    of = experiment(seeds=[0, 1])
    results, rounds = trained_in_turn(of, lambda choice, seed: 0.5)
    assert [len(plan) for plan in rounds] == [8]
    aida, adam = standings(results, of)
    assert adam.tuned_on == [0, 1]
    assert adam.tuned_on_reported
    assert not aida.tuned_on_reported


def test_half_a_tuning_goes_on_where_it_was():
    of = experiment(seeds=[0], tune_seeds=[7])
    chosen = choose_optimizers(of.optimizers)
    done = [trained(chosen[1], 7, 0.5)]
    assert [(c.label, s) for c, s in next_runs(chosen, of, done)] == [
        ("Adam lr=0.01", 7),
        ("Adam lr=0.1", 7),
    ]


@pytest.mark.parametrize("better", ["max", "min"])
@pytest.mark.parametrize(
    ("planted", "edge"), [(0.001, "least"), (0.01, None), (0.1, "greatest"), (math.nan, None)]
)
def test_a_planted_edge_of_the_grid_is_named(better, planted, edge):
    of = experiment(seeds=[0], metric=Metric(better=better))
    sign = 1 if better == "max" else -1

    def value_of(choice, seed):
        return sign * -abs(math.log(choice.options.get("lr", 1) / planted))

    adam = standings(trained_in_turn(of, value_of)[0], of)[1]
    expected = {} if edge is None else {"lr": f"lr={planted:g} is the {edge} of its grid"}
    assert adam.edges == expected


@pytest.mark.parametrize("better", ["max", "min"])
@pytest.mark.parametrize("status", ["diverged", "failed", "interrupted"])
def test_a_setting_that_does_not_complete_stands_behind_those_that_do(better, status):
    of = experiment(SWEPT, tune_seeds=[7, 8], metric=Metric(better=better))
    least, middle, greatest = choose_optimizers(of.optimizers)
    good, bad = (0.9, 0.1) if better == "max" else (0.1, 0.9)
    results = [trained(least, 7, good, status), trained(least, 8, good, status)]
    results += [trained(middle, 7, good), trained(middle, 8, good, status)]
    results += [trained(greatest, 7, bad), trained(greatest, 8, bad)]
    assert standings(results, of)[0].label == greatest.label
    assert standings(results[:4], of)[0].label == middle.label
    (of_none,) = standings([*results[:2], trained(middle, 7, bad, status)], of)
    assert (of_none.label, of_none.edges) == (least.label, {})


def test_an_edge_is_told_of_each_swept_number_and_of_no_switch():
    grid = {"lr": [0.1, 0.01], "eps": [1e-8], "amsgrad": [False, True], "betas": [[0.9, 0.99]]}
    of = experiment(Method("adam", label="Adam", grid=grid))
    (adam,) = standings(trained_in_turn(of, lambda choice, seed: choice.options["lr"])[0], of)
    assert adam.edges == {"lr": "lr=0.1 is the greatest of its grid"}


def test_a_method_that_is_still_being_tuned_has_no_reported_run():
    of = experiment(seeds=[0], tune_seeds=[7])
    chosen = choose_optimizers(of.optimizers)
    (adam,) = standings([trained(chosen[1], 7, 0.5, "interrupted")], of)
    assert adam.runs == adam.counted == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(None, "Aida K=1"), ("adam", "Adam lr=0.1"), ("aida_k=2", "Aida K=2"), ("SGD", "sgd")],
)
def test_the_baseline_is_found_by_its_label_or_its_optimizer(wanted, found):
    labels = {"Aida K=1": "aida", "Aida K=2": "aida", "Adam lr=0.1": "adam", "sgd": "sgd"}
    assert find_baseline(wanted, labels) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("adm", "'adm' is none of Aida, Adam"), ("aida", "'aida' is several of A, B")],
)
def test_a_baseline_that_is_not_one_method_is_refused(wanted, message):
    labels = {"Aida": "x", "Adam": "adam"} if wanted == "adm" else {"A": "aida", "B": "aida"}
    with pytest.raises(UsageError, match=f"^baseline: one method's label .* {message}$"):
        find_baseline(wanted, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "sgd"}, "'sgd' is none of Aida, Adam"),
        ({"seeds": [0, 1], "tune_seeds": [1]}, r"tune_seeds: .* \[1\] are among the seeds"),
        ({"target": Target(math.inf)}, "target.value: a finite number is needed, but got inf"),
        ({"target": Target(90.0)}, "val_accuracy is logged as a fraction .* but got 90"),
    ],
)
def test_what_makes_no_comparison_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        check_selection(experiment(**changes))


def test_a_target_beyond_1_is_fine_for_what_is_not_shown_in_percent():
    check_selection(experiment(metric=Metric("val_loss", better="min"), target=Target(90.0)))
