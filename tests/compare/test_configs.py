"""Every experiment that is shipped has the paper's settings, and trains."""

import pytest
from compare.test_loading import ISSUED

from aida_lightning.compare.checks import check_experiment
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.loading import load_experiment
from aida_lightning.compare.methods import choose_optimizers
from aida_lightning.compare.run import Run, train_run

# Two steps on the sample.
SHORT = {
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
}
IMAGES = {"fig1_2_6_vgg11", "fig3_resnet34", "fig3_vgg11", "fig4_vgg11"}
IMAGES |= {"table1_resnet34", "table1_vgg11"}
# Of the paper's final version, of which neither the length nor the numbers are known.
FINAL = {"tmlr_cifar10", "tmlr_cifar100"}
IMAGES |= FINAL
# The two networks as they are once each, and a linear one in their other experiments.
FULL_SIZED = {"fig1_2_6_vgg11", "table1_resnet34"}
LINEAR = {"model.init_args.model": {"class_path": "compare.tiny.Linear"}}


def optimizers(name):
    experiment = load_experiment(name).experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    return experiment, {choice.label: choice for choice in chosen}


@pytest.mark.filterwarnings("ignore:StepsizeMonitor, at step")
@pytest.mark.parametrize("name", sorted(ISSUED))
def test_it_trains_two_steps_on_the_sample(name, tmp_path):
    changes = SHORT | ({"data.init_args.batch_size": 4} if name in IMAGES else {})
    changes |= LINEAR if name in IMAGES - FULL_SIZED else {}
    sample = name != "digits_vgg11"
    loaded = load_experiment(name, changes, sample=sample)
    experiment = loaded.experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    check_experiment(loaded, chosen[:1])
    result = train_run(Run(loaded, chosen[0], 0, run_folder(tmp_path, chosen[0].label, 0)))
    assert (result.status, result.epochs, result.message) == ("completed", 1, "")
    assert result.last is not None
    assert result.metric == experiment.metric.name
    assert result.optimizer_state_bytes > 0


def test_the_first_try_is_small_and_its_rate_falls_up_to_the_last_epoch():
    loaded = load_experiment("digits_vgg11")
    network = loaded.experiment.model(optimizer="aida", optimizer_options={}).model
    assert sum(p.numel() for p in network.parameters()) == 611_434
    iterations = loaded.experiment.model.keywords["lr_scheduler_options"]["total_iters"]
    assert iterations == loaded.trainer_options["max_epochs"] - 1
    full = load_experiment("digits_vgg11", {"model.init_args.model": "vgg11"}).experiment.model
    assert full.keywords["model"] == "vgg11"


@pytest.mark.parametrize("name", sorted(ISSUED - FINAL - {"digits_vgg11"}))
def test_the_length_is_the_papers(name):
    loaded = load_experiment(name)
    assert loaded.config["trainer"]["init_args"]["max_epochs"] == loaded.experiment.paper.epochs


@pytest.mark.parametrize("name", sorted(ISSUED))
def test_the_sample_has_one_seed(name):
    assert load_experiment(name, sample=True).experiment.seeds == [0]


@pytest.mark.parametrize("name", sorted(ISSUED))
def test_a_grid_is_chosen_on_seeds_that_are_not_reported_unless_the_paper_says_so(name):
    experiment = load_experiment(name).experiment
    has_grid = any(method.grid for method in experiment.optimizers)
    assert bool(experiment.tune_seeds) is (has_grid and name != "table3_wgan_gp")
    assert not {*experiment.tune_seeds}.intersection(experiment.seeds)


@pytest.mark.parametrize("model", ["vgg11", "resnet34"])
def test_table_1_has_nine_methods_with_their_options(model):
    experiment, chosen = optimizers(f"table1_{model}")
    adaptive = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 5e-4}
    assert {label: choice.options for label, choice in chosen.items()} == {
        "Aida K=2": {**adaptive, "k": 2},
        "AdaBelief": adaptive,
        "Yogi": {**adaptive, "eps": 1e-3},
        "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "MSVAG": {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 5e-4},
        "Fromage": {"lr": 0.01},
        "RAdam": adaptive,
        "AdamW": {**adaptive, "weight_decay": 1e-2},
        "Adam": adaptive,
    }
    assert experiment.seeds == [0, 1, 2]
    assert experiment.model.keywords["lr_scheduler_options"] == {"milestones": [150], "gamma": 0.1}


@pytest.mark.parametrize(("name", "classes"), [("tmlr_cifar10", 10), ("tmlr_cifar100", 100)])
def test_the_final_version_has_its_eps_and_schedule_and_the_other_methods_of_table_1(name, classes):
    experiment, chosen = optimizers(name)
    table1, expected = optimizers("table1_vgg11")
    options = {label: choice.options for label, choice in expected.items()}
    options["Aida K=2"] = {**options["Aida K=2"], "eps": 1e-9}
    assert {label: choice.options for label, choice in chosen.items()} == options
    schedule = {"milestones": [100, 160], "gamma": 0.1}
    assert experiment.model.keywords["lr_scheduler_options"] == schedule
    assert experiment.seeds == table1.seeds
    assert experiment.paper is None
    assert all(method.paper is None for method in experiment.optimizers)
    assert experiment.model.keywords["num_classes"] == experiment.data().num_classes == classes


def test_table_2_is_the_papers_and_the_codes_in_a_second_file():
    eps = {"Aida K=2": 1e-18, "Aida K=1": 1e-18, "AdaBelief": 1e-18, "Adam": 1e-9}
    _, paper = optimizers("table2_transformer")
    assert {label: choice.options["eps"] for label, choice in paper.items()} == eps
    assert {choice.options["betas"] for choice in paper.values()} == {(0.9, 0.999)}
    _, code = optimizers("table2_transformer_code")
    assert {label: choice.options["eps"] for label, choice in code.items()} == {
        label: 1e-16 if value == 1e-18 else value for label, value in eps.items()
    }
    assert {choice.options["betas"] for choice in code.values()} == {(0.9, 0.98)}


def test_grids_are_the_papers():
    _, table3 = optimizers("table3_wgan_gp")
    by_method: dict[str, list[float]] = {}
    for choice in table3.values():
        by_method.setdefault(choice.method, []).append(choice.options["eps"])
    grid = [1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14]
    one = [1e-12]
    assert by_method == {
        "Aida K=2": one, "Aida K=1": one, "AdaBelief": one, "Adam": grid, "RAdam": grid
    }  # fmt: skip
    for layers in (1, 2, 3):
        experiment, fig7 = optimizers(f"fig7_lstm{layers}")
        points = {(c.options["eps"], c.options["lr"]) for c in fig7.values()}
        assert points == {(e, lr) for e in (1e-8, 1e-12, 1e-16) for lr in (0.01, 0.001)}
        assert {c.options["weight_decay"] for c in fig7.values()} == {1.2e-6}
        assert experiment.model.keywords["num_layers"] == layers
