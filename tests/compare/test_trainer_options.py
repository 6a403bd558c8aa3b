"""What `docs/experiments.md` says of the Trainer's options in a comparison."""

import pytest
from compare import tiny
from compare.tiny import write_experiment

from aida_lightning.compare.comparison import compare
from aida_lightning.compare.folder import run_folder
from aida_lightning.compare.loading import load_experiment
from aida_lightning.logs.curves import read_scalars


def scalars_of(tmp_path, optimizers, **trainer):
    """Compare under options of the Trainer, and return the result and the scalars of each run."""
    callbacks = trainer.pop("callbacks", tiny.EXPERIMENT["callbacks"])
    options = {**tiny.EXPERIMENT["trainer"], **trainer}
    path = write_experiment(tmp_path, figures=None, trainer=options, callbacks=callbacks)
    results = compare(load_experiment(path), optimizers, tmp_path / "out")
    folders = [run_folder(tmp_path / "out", run.label, run.seed) for run in results]
    return [*zip(results, map(read_scalars, folders), strict=True)]


NORMS = {
    "class_path": "aida_lightning.callbacks.StepsizeMonitor",
    "init_args": {"health": False, "layers": ["*"], "statistics": ["gradient_norm"]},
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_optimizer_is_given_gradients_clipped_at_the_same_norm(tmp_path, precision):
    runs = scalars_of(
        tmp_path, ["aida", "adam", "sgd"],
        gradient_clip_val=0.01, precision=precision, callbacks=[NORMS],
    )  # fmt: skip
    for result, scalars in runs:
        assert result.status == "completed"
        norms = [c.values for tag, c in scalars.items() if tag.startswith("gradient_norm/")]
        whole = sum(values**2 for values in norms) ** 0.5
        assert len(norms) == 4
        assert whole == pytest.approx([0.01] * 8, rel=1e-3)


def test_what_precision_the_optimizers_state_has(tmp_path):
    sizes = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        folder = tmp_path / precision
        folder.mkdir()
        runs = scalars_of(folder, ["adam", "aida"], precision=precision)
        assert [result.status for result, _ in runs] == 2 * ["completed"]
        sizes[precision] = [result.optimizer_state_bytes for result, _ in runs]
    count = 4 * 6 + 6 + 6 * 3 + 3
    steps = 4 * 4  # a float32 per layer
    assert sizes["32-true"] == sizes["bf16-mixed"] == 2 * [8 * count + steps]
    assert sizes["bf16-true"] == [4 * count + steps, 6 * count + steps]


STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val_accuracy", "mode": "max", "patience": 2, "min_delta": 0.0},
}


def test_early_stopping_ends_each_run_by_itself_and_the_run_is_complete(tmp_path, capsys):
    optimizers = ["sgd:lr=0.0,momentum=0.0", "sgd:lr=0.3"]
    trainer = {"max_epochs": 6, "callbacks": [STOPPING]}
    (still, _), (learning, scalars) = scalars_of(tmp_path, optimizers, **trainer)
    assert (still.status, still.epochs) == ("completed", 3)
    assert (learning.status, learning.epochs > 3) == ("completed", True)
    assert learning.best == scalars["val_accuracy"].values.max()
    capsys.readouterr()
    scalars_of(tmp_path, optimizers, **trainer)
    assert capsys.readouterr().out.count("finished before, not run again") == 2


def test_steps_are_those_of_the_optimizer_where_gradients_accumulate(tmp_path):
    ((_, scalars),) = scalars_of(tmp_path, ["adam"], accumulate_grad_batches=2)
    assert scalars["stepsize_mean/first.weight"].steps.tolist() == [0, 1, 2, 3]


def test_two_processes_take_half_the_steps_and_validate_on_all_data(tmp_path):
    lasts = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        ((result, scalars),) = scalars_of(folder, ["sgd:lr=0.0,momentum=0.0"], devices=devices)
        assert (result.status, result.epochs) == ("completed", 2)
        steps = scalars["gradient_norm/first.weight"].steps.tolist()
        assert steps == [*range(8 // devices)]
        lasts.append(result.last)
    # Of the untrained model; half of the data would have another accuracy.
    assert lasts[0] == pytest.approx(lasts[1])
