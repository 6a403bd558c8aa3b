import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from aida_lightning.datamodules import PennTreebankDataModule, TextBatch
from aida_lightning.example_modules import LanguageModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    # Lightning's own use of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]
SMALL = {"embedding_size": 12, "hidden_size": 16}
NO_DROPOUT = dict.fromkeys(
    ["input_dropout", "hidden_dropout", "output_dropout", "word_dropout", "weight_dropout"], 0.0
)


def small(num_layers: int = 2, network_options=None, **options) -> LanguageModel:
    options = {"optimizer_options": {"lr": 1e-2, "eps": 1e-16}} | options
    return LanguageModel(num_layers, 50, SMALL | (network_options or {}), **options)


def sample(**options) -> PennTreebankDataModule:
    return PennTreebankDataModule(sample=True, **options)


def trainer(folder: Path, **options) -> Trainer:
    options = {"logger": False, "enable_checkpointing": False} | options
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class Watcher(Callback):
    """Notes at each batch its length and the rate, and at each optimizer step the rate then."""

    def __init__(self):
        self.rates, self.stepped, self.lengths, self.losses = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.lengths.append(len(batch.inputs))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.stepped.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


class Batches(DataLoader):
    """Serves the batches that it is given."""

    def __init__(self, *batches: TextBatch):
        super().__init__(batches, batch_size=None)


def random_batch(time: int, batch: int = 4, lr_scale: float = 1.0) -> TextBatch:
    words = torch.randint(50, (time + 1, batch))
    return TextBatch(words[:-1], words[1:], lr_scale)


def parameters(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def naive_loss(model: LanguageModel, output, targets, alpha: float, beta: float) -> float:
    """The loss with AR and TAR, word by word and element by element."""
    time, batch = targets.shape
    log_probabilities = output.logits.double().log_softmax(-1)
    loss = -sum(
        log_probabilities[t, b, targets[t, b]].item() for t in range(time) for b in range(batch)
    ) / (time * batch)
    squares = [x * x for x in output.dropped.double().flatten().tolist()]
    changes = [
        (x - y) ** 2
        for t in range(1, time)
        for x, y in zip(
            output.raw[t].double().flatten().tolist(),
            output.raw[t - 1].double().flatten().tolist(),
            strict=True,
        )
    ]
    tar = sum(changes) / len(changes) if changes else 0.0
    return loss + alpha * sum(squares) / len(squares) + beta * tar


@pytest.mark.parametrize("time", [7, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 1.0), (0.0, 0.0), (0.0, 3.0)])
def test_the_loss_has_both_regularisers_and_the_logged_one_has_none(tmp_path, time, alpha, beta):
    torch.manual_seed(0)
    model = small(activation_reg=alpha, temporal_activation_reg=beta)
    outputs, watcher, batch = [], Watcher(), random_batch(time)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(5)  # else the regularisers would be of the order of the rounding
    model.model.register_forward_hook(lambda module, args, output: outputs.append(output))
    run = trainer(tmp_path, max_steps=1, callbacks=[watcher])
    run.fit(model, Batches(batch))
    (output,) = outputs
    assert not torch.equal(output.raw, output.dropped)
    expected = naive_loss(model, output, batch.targets, alpha, beta)
    assert watcher.losses == [pytest.approx(expected, rel=1e-5)]
    plain = naive_loss(model, output, batch.targets, 0, 0)
    assert run.callback_metrics["train_loss"].item() == pytest.approx(plain, rel=1e-5)
    if alpha or (beta and time > 1):
        assert expected > plain + 1e-3


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_perplexity_is_that_of_each_stream_read_in_one_go(tmp_path, stage):
    torch.manual_seed(0)
    model, data = small(), sample(val_batch_size=7, test_batch_size=3)
    with torch.no_grad():
        model.model.embedding.weight.mul_(20)
    (logged,) = getattr(trainer(tmp_path), stage)(model, data, verbose=False)
    prefix, split, streams = {"validate": ("val", "valid", 7), "test": ("test", "test", 3)}[stage]
    words = data.words[split]
    rows = len(words) // streams
    losses = []
    for i in range(streams):
        stream = words[i * rows : (i + 1) * rows]
        with torch.no_grad():
            logits, _ = model.eval()(stream[:-1, None])
        probabilities = logits[:, 0].double().softmax(-1)
        losses += [-math.log(p[w]) for p, w in zip(probabilities.tolist(), stream[1:], strict=True)]
    mean = sum(losses) / len(losses)
    # The last segment is shorter than the others: a mean over batches would be another.
    assert logged[f"{prefix}_loss"] == pytest.approx(mean, rel=1e-6)
    assert logged[f"{prefix}_perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert mean > 4


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_one_batch_that_is_not_a_number_makes_the_evaluation_none(tmp_path, stage):
    model, batches = small(), [random_batch(5), random_batch(5)]
    model.model.register_forward_hook(
        lambda module, args, output: (
            output._replace(logits=output.logits * math.nan) if args[0] is batches[0][0] else None
        )
    )
    (logged,) = getattr(trainer(tmp_path), stage)(model, Batches(*batches), verbose=False)
    prefix = {"validate": "val", "test": "test"}[stage]
    assert math.isnan(logged[f"{prefix}_loss"])
    assert math.isnan(logged[f"{prefix}_perplexity"])


def test_the_state_is_carried_in_training_and_forgotten_at_an_epochs_start(tmp_path):
    torch.manual_seed(0)
    model = small(network_options=NO_DROPOUT, optimizer="SGD", optimizer_options={"lr": 0.0})
    calls = []
    model.model.register_forward_hook(
        lambda module, args, output: calls.append((module.training, args[1], output.states))
    )
    batches = [random_batch(5) for _ in range(4)]
    run = trainer(tmp_path, max_epochs=2, val_check_interval=2)
    run.fit(model, Batches(*batches), Batches(*batches[:2]))
    training = [(given, left) for is_training, given, left in calls if is_training]
    validation = [(given, left) for is_training, given, left in calls if not is_training]
    assert len(training) == 8
    assert len(validation) == 8  # twice an epoch, in the middle of the training's state
    for calls, epoch in ((training, 4), (validation, 2)):
        for i, (given, _) in enumerate(calls):
            if i % epoch == 0:
                assert given is None
            else:
                torch.testing.assert_close(given, calls[i - 1][1], rtol=0, atol=0)
                assert not any(tensor.requires_grad for state in given for tensor in state)


def test_each_step_has_the_rate_scaled_and_leaves_the_rate_as_it_was(tmp_path):
    watcher = Watcher()
    model = small(
        lr_scheduler="MultiStepLR", lr_scheduler_options={"milestones": [1, 2], "gamma": 0.1}
    )
    run = trainer(tmp_path, max_epochs=3, callbacks=[watcher])
    run.fit(model, datamodule=sample(batch_size=10))
    epochs = len(watcher.rates) // 3
    expected = [1e-2] * epochs + [1e-3] * epochs + [1e-4] * epochs
    assert watcher.rates == pytest.approx(expected, rel=1e-12)
    assert watcher.rates[:epochs] == [1e-2] * epochs
    assert watcher.stepped == pytest.approx(
        [rate * length / 70 for rate, length in zip(expected, watcher.lengths, strict=True)]
    )
    assert len(set(watcher.lengths)) > 5


def test_a_step_is_that_of_the_scaled_rate(tmp_path):
    torch.manual_seed(0)
    options = {"optimizer": "SGD", "optimizer_options": {"lr": 0.5}}
    model = small(
        network_options=NO_DROPOUT, activation_reg=0, temporal_activation_reg=0, **options
    )
    batch = random_batch(6, lr_scale=0.25)
    before = parameters(model)
    logits, _ = model(batch.inputs)
    nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    trainer(tmp_path, max_steps=1).fit(model, Batches(batch))
    torch.testing.assert_close(parameters(model), before - 0.5 * 0.25 * gradient)


def test_the_rate_is_put_back_when_a_step_fails(tmp_path):
    class Failure(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            raise RuntimeError("stop here")

    run = trainer(tmp_path, max_steps=1, callbacks=[Failure()])
    with pytest.raises(RuntimeError, match="stop here"):
        run.fit(small(), Batches(random_batch(6, lr_scale=0.25)))
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-2


def test_dropout_is_drawn_for_each_batch_and_leaves_the_random_numbers_alone(tmp_path):
    batches = Batches(*[random_batch(6)] * 3)

    def fit(**options) -> tuple[list[float], float]:
        model = small(optimizer="SGD", optimizer_options={"lr": 0.0}, **options)
        watcher = Watcher()
        seed_everything(3, verbose=False)
        trainer(tmp_path, max_epochs=2, callbacks=[watcher]).fit(model, batches)
        return watcher.losses, torch.rand(()).item()

    losses, next_number = fit()
    losses_without, next_number_without = fit(network_options=NO_DROPOUT)
    assert len(set(losses)) == 6
    assert len(set(losses_without)) < 6
    assert next_number == next_number_without


def test_dropout_follows_seed_everything(tmp_path):
    def losses(seed: int) -> list[float]:
        torch.manual_seed(0)
        weights = small().state_dict()
        batch = random_batch(6)
        seed_everything(seed, verbose=False)
        model, watcher = small(), Watcher()
        model.load_state_dict(weights)
        torch.rand(seed)  # what else is drawn makes no difference
        trainer(tmp_path, max_steps=1, callbacks=[watcher]).fit(model, Batches(batch))
        return watcher.losses

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    def fit(folder: str, epochs: int, seed: int, ckpt_path=None) -> tuple[LanguageModel, Trainer]:
        seed_everything(seed, verbose=False)
        model = small(
            3,
            optimizer="aida",
            lr_scheduler="MultiStepLR",
            lr_scheduler_options={"milestones": [2]},
        )
        run = trainer(
            tmp_path,
            max_epochs=epochs,
            gradient_clip_val=0.25,
            enable_checkpointing=True,
            callbacks=[ModelCheckpoint(tmp_path / folder, save_last=True)],
        )
        run.fit(model, datamodule=sample(), ckpt_path=ckpt_path)
        return model, run

    unbroken, first = fit("unbroken", 4, seed=1)
    halfway, _ = fit("halfway", 2, seed=1)
    # In a process of its own seed, whose module is initialised differently.
    resumed, second = fit("resumed", 4, seed=2, ckpt_path=tmp_path / "halfway" / "last.ckpt")
    assert not torch.equal(parameters(halfway), parameters(unbroken))
    assert torch.equal(parameters(resumed), parameters(unbroken))
    assert second.callback_metrics["val_loss"] == first.callback_metrics["val_loss"]
    a, b = (torch.load(tmp_path / f / "last.ckpt") for f in ("unbroken", "resumed"))
    for x, y in zip(
        a["optimizer_states"][0]["state"].values(),
        b["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(x[key], y[key]) for key in x)
    assert a["optimizer_states"][0]["param_groups"] == b["optimizer_states"][0]["param_groups"]


def test_it_learns_what_follows_what(tmp_path):
    seed_everything(0, verbose=False)
    model = small(
        1,
        {**NO_DROPOUT, "weight_dropout": 0.5, "word_dropout": 0.1, "embedding_size": 24},
        optimizer_options={"lr": 2e-2, "eps": 1e-16},
    )
    run = trainer(tmp_path, max_epochs=8, gradient_clip_val=0.25)
    run.fit(model, datamodule=sample(bptt=20))
    assert 3.3 < run.callback_metrics["val_perplexity"] < 6  # chance is 50, the best is 3.36


@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_parameter_moves_under_the_trainer(tmp_path, num_layers):
    seed_everything(0, verbose=False)
    model = small(num_layers)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(model, datamodule=sample())
    moved = [(p != before[name]).float().mean().item() for name, p in model.named_parameters()]
    assert min(moved) > 0.9


def test_accumulated_gradients_step_at_the_last_batchs_rate(tmp_path):
    watcher = Watcher()
    batches = Batches(random_batch(6, lr_scale=0.5), random_batch(6, lr_scale=0.25))
    run = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, callbacks=[watcher])
    run.fit(small(), batches)
    assert watcher.stepped == [1e-2 * 0.25]


def test_a_checkpoint_loads_without_arguments(tmp_path):
    model = small(1, optimizer="SGD", optimizer_options={"lr": 0.1}, activation_reg=1.5)
    assert model.hparams == {
        "num_layers": 1,
        "vocab_size": 50,
        "network_options": SMALL,
        "activation_reg": 1.5,
        "temporal_activation_reg": 1.0,
        "optimizer": "SGD",
        "optimizer_options": {"lr": 0.1},
        "lr_scheduler": None,
        "lr_scheduler_options": None,
    }
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=sample())
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = LanguageModel.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(parameters(again), parameters(model))
    assert again.activation_reg == 1.5
    assert again.optimizer_options == {"lr": 0.1}


def test_layers_are_named_under_model():
    names = [name for name, _ in small(1).named_parameters()]
    assert names == [
        "model.embedding.weight",
        "model.lstms.0.weight_ih_l0",
        "model.lstms.0.weight_hh_l0",
        "model.lstms.0.bias_ih_l0",
        "model.lstms.0.bias_hh_l0",
        "model.decoder.bias",
    ]


def test_the_default_optimizer_is_aida_on_each_tied_weight_once():
    optimizer = LanguageModel(1, 50, SMALL).configure_optimizers()
    assert type(optimizer).__name__ == "Aida"
    assert len(optimizer.param_groups[0]["params"]) == 6


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"activation_reg": -1.0}, ValueError, "Invalid activation_reg value: -1.0"),
        ({"temporal_activation_reg": math.nan}, ValueError, "temporal_activation_reg value: nan"),
        ({"num_layers": 0}, ValueError, "Invalid num_layers value: 0"),
        ({"network_options": {"dropout": 0.1}}, TypeError, "dropout"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_allowed(options, error, said):
    with pytest.raises(error, match=said):
        LanguageModel(**options)
