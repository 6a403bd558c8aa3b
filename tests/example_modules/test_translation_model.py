import itertools
import math
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from aida_lightning.compare.callbacks import LetGlooFinish
from aida_lightning.datamodules import Multi30kDataModule
from aida_lightning.example_modules import InverseSqrtLR, TranslationModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning's own use of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]

PAD, BOS, EOS = 0, 2, 3
TINY = {"d_model": 32, "nhead": 4, "num_encoder_layers": 1, "num_decoder_layers": 1}
# Of different numbers of words, so that a mean over batches is not the mean over words.
PAIRS = [
    (
        torch.tensor([[BOS, 4, 5, 6, EOS], [BOS, 7, EOS, PAD, PAD]]),
        torch.tensor([[BOS, 8, 9, 4, 5, EOS], [BOS, 6, EOS, PAD, PAD, PAD]]),
    ),
    (torch.tensor([[BOS, 9, EOS]]), torch.tensor([[BOS, 1, EOS]])),
]


def model(seed: int = 0, **options) -> TranslationModel:
    torch.manual_seed(seed)
    options = {"optimizer": "Adam", "optimizer_options": {"lr": 3e-3}} | options
    return TranslationModel(**{"vocab_size": 24, "dim_feedforward": 64} | TINY | options)


def batches() -> DataLoader:
    return DataLoader(PAIRS, batch_size=None)


def trainer(folder: Path, callbacks=(), **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=[LetGlooFinish(), *callbacks],
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def gold_log_probabilities(module: TranslationModel) -> list[tuple[Tensor, int]]:
    """For each word to predict, of all batches: log-probabilities and the word."""
    pairs = []
    with torch.no_grad():
        for source, target in PAIRS:
            logits = module(source, target[:, :-1])
            for row, words in zip(logits, target[:, 1:].tolist(), strict=True):
                for scores, word in zip(row, words, strict=True):
                    if word != PAD:
                        pairs.append((scores - scores.exp().sum().log(), word))
    return pairs


def test_the_loss_is_smoothed_and_summed_over_the_words():
    module = model(label_smoothing=0.1).eval()
    module.log = lambda *_, **__: None
    loss = sum(module.training_step(pair, 0).item() for pair in PAIRS)
    expected = 0.0
    for log_p, word in gold_log_probabilities(module):
        target = torch.full((24,), 0.1 / 24)
        target[word] += 0.9
        expected -= (target * log_p).sum().item()
    assert len(gold_log_probabilities(module)) == 9
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_is_a_mean_over_words_without_smoothing(tmp_path, stage):
    module = model().eval()
    run = trainer(tmp_path)
    (logged,) = getattr(run, stage)(module, batches(), verbose=False)
    pairs = gold_log_probabilities(module)
    loss = -sum(log_p[word].item() for log_p, word in pairs) / len(pairs)
    hits = sum(log_p.argmax().item() == word for log_p, word in pairs) / len(pairs)
    prefix = {"validate": "val", "test": "test"}[stage]
    assert logged == {
        f"{prefix}_loss": pytest.approx(loss, rel=1e-5),
        f"{prefix}_accuracy": pytest.approx(hits),
        f"{prefix}_perplexity": pytest.approx(math.exp(loss), rel=1e-5),
    }


def test_the_accuracy_counts_hits_among_the_words_alone(tmp_path):
    module = model()
    # Whatever it is given, this model predicts 5, and <pad> next to never.
    module.model.decode = lambda target, memory, source: torch.zeros(*target.shape, 24).index_fill(
        2, torch.tensor([5]), 1.0
    )
    (logged,) = trainer(tmp_path).validate(module, batches(), verbose=False)
    assert logged["val_accuracy"] == pytest.approx(1 / 9)


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("broken", [0, 1])
def test_one_batch_that_is_not_a_number_makes_the_evaluation_none(tmp_path, stage, broken):
    module = model()
    decode, calls = module.model.decode, itertools.count()
    module.model.decode = lambda *args: decode(*args) * (math.nan if next(calls) == broken else 1)
    (logged,) = getattr(trainer(tmp_path), stage)(module, batches(), verbose=False)
    prefix = {"validate": "val", "test": "test"}[stage]
    assert math.isnan(logged[f"{prefix}_loss"])
    assert math.isnan(logged[f"{prefix}_perplexity"])


def test_processes_weigh_their_words_alike(tmp_path):
    # Each process has one of the two batches, of 7 words and of 2.
    one, two = (
        trainer(tmp_path, devices=n, strategy=strategy).validate(model(), batches(), verbose=False)
        for n, strategy in ((1, "auto"), (2, "ddp_spawn"))
    )
    assert two == [pytest.approx(one[0], rel=1e-6)]


class Recorder(Callback):
    """What each step of the optimizer was taken with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def paper_rate(n: int, d_model: int, warmup: int) -> float:
    return 2 * d_model**-0.5 * min(n**-0.5, n * warmup**-1.5)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_rate_rises_and_falls_with_the_optimizers_steps_counted_from_one(tmp_path, accumulated):
    recorder = Recorder()
    module = model(
        optimizer_options={"lr": 2.0},
        lr_scheduler="InverseSqrtLR",
        lr_scheduler_options={"d_model": 32, "warmup_steps": 5},
    )
    run = trainer(tmp_path, max_epochs=6, callbacks=[recorder], accumulate_grad_batches=accumulated)
    run.fit(module, batches(), batches())
    steps = 12 // accumulated
    assert recorder.rates == pytest.approx([paper_rate(n, 32, 5) for n in range(1, steps + 1)])


def test_the_papers_rate_is_the_schedules_default_with_a_factor_of_two():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = InverseSqrtLR(optimizer)
    (factor,) = scheduler.lr_lambdas
    for n in (1, 145, 58_000, 127_999, 128_000, 128_001, 500_000):
        assert 2 * factor(n - 1) == pytest.approx(paper_rate(n, 512, 128_000), rel=1e-12)
    assert 2 * factor(127_999) == pytest.approx(2.470529e-4, rel=1e-6)


@pytest.mark.parametrize("options", [{"d_model": 0}, {"warmup_steps": 0}])
def test_a_schedule_without_width_or_warm_up_is_refused(options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    with pytest.raises(ValueError, match=f"{next(iter(options))} value: 0, it must be at least 1"):
        InverseSqrtLR(optimizer, **options)


def test_a_schedule_of_torchs_is_stepped_at_each_epoch(tmp_path):
    recorder = Recorder()
    module = model(lr_scheduler="StepLR", lr_scheduler_options={"step_size": 1, "gamma": 0.5})
    trainer(tmp_path, max_epochs=3, callbacks=[recorder]).fit(module, batches(), batches())
    assert recorder.rates == pytest.approx([3e-3, 3e-3, 1.5e-3, 1.5e-3, 0.75e-3, 0.75e-3])


def test_optimizer_and_schedule_are_those_of_a_yaml_file():
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model")
    text = """
      model:
        class_path: aida_lightning.example_modules.TranslationModel
        init_args:
          vocab_size: 24
          num_encoder_layers: 1
          num_decoder_layers: 1
          d_model: 32
          optimizer: aida
          optimizer_options: {lr: 2.0, k: 1, eps: 1.0e-18}
          lr_scheduler: InverseSqrtLR
          lr_scheduler_options: {d_model: 32, warmup_steps: 10}
    """
    module = TranslationModel(**parser.parse_string(text).model.init_args.as_dict())
    built = module.configure_optimizers()
    assert type(built["optimizer"]).__name__ == "Aida"
    assert built["optimizer"].param_groups[0]["k"] == 1
    assert built["optimizer"].param_groups[0]["eps"] == 1e-18
    assert isinstance(built["lr_scheduler"]["scheduler"], InverseSqrtLR)
    assert built["lr_scheduler"]["interval"] == "step"


def test_the_default_is_aida_at_a_constant_rate_and_the_papers_network():
    with torch.device("meta"):
        module = TranslationModel(9521)
    assert sum(p.numel() for p in module.parameters()) == 48_978_432
    assert type(module.configure_optimizers()).__name__ == "Aida"


def test_label_smoothing_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing value: 1.0, it must be in \[0, 1\)"):
        model(label_smoothing=1.0)


class Interrupted(Callback):
    """Stops after an epoch, as a run that was killed then did."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_ends_as_an_unbroken_one_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")  # what seed_everything sets

    def fit(folder: str, ckpt_path: Path | None = None, callbacks: tuple[Callback, ...] = ()):
        data = Multi30kDataModule(sample=True, batch_size=150)
        module = model(
            seed=0 if ckpt_path is None else 1,  # as in a process that was not seeded
            optimizer="aida",
            optimizer_options={"lr": 2.0},
            lr_scheduler="InverseSqrtLR",
            lr_scheduler_options={"d_model": 32, "warmup_steps": 100},
        )
        kept = ModelCheckpoint(tmp_path / ("ours" if folder == "whole" else "shared"))
        run = trainer(tmp_path / folder, max_epochs=4, callbacks=[kept, *callbacks])
        run.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return run, module

    whole_run, whole = fit("whole")
    first_run, first = fit("first", callbacks=(Interrupted(),))
    assert first_run.current_epoch == 2
    assert not torch.equal(first.model.embedding.weight, whole.model.embedding.weight)
    checkpoint = Path(first_run.checkpoint_callback.best_model_path)
    second_run, second = fit("second", checkpoint)

    assert second_run.current_epoch == whole_run.current_epoch == 4
    assert second_run.global_step == whole_run.global_step == 28
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        state = second_run.optimizers[0].state[q]
        for name, value in whole_run.optimizers[0].state[p].items():
            assert torch.equal(torch.as_tensor(state[name]), torch.as_tensor(value)), name
    assert second_run.logged_metrics["val_loss"] == whole_run.logged_metrics["val_loss"]


def test_each_batch_of_each_epoch_draws_numbers_of_its_own_by_the_modules_seed(tmp_path):
    class Watched(TranslationModel):
        drawn: list[float]

        def forward(self, source, target):
            if self.training:
                self.drawn.append(torch.rand(1).item())
            return super().forward(source, target)

    def draws(seed: int) -> list[float]:
        torch.manual_seed(seed)
        module = Watched(24, dim_feedforward=8, **TINY, optimizer="SGD")
        module.drawn = []
        torch.manual_seed(999)
        trainer(tmp_path, max_epochs=2).fit(module, batches(), batches())
        return module.drawn

    first = draws(1)
    assert len(set(first)) == 4
    assert draws(1) == first
    assert not set(draws(2)) & set(first)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[TranslationModel, Trainer, Multi30kDataModule]:
    """A model that was trained on the sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        data = Multi30kDataModule(sample=True, batch_size=25)
        module = model(optimizer="aida", optimizer_options={"lr": 3e-3}, dropout=0.0)
        run = trainer(tmp_path_factory.mktemp("learned"), max_epochs=12)
        run.fit(module, datamodule=data)
    return module, run, data


def test_training_on_the_sample_learns_it(learned):
    _, run, _ = learned
    assert {"train_loss", "train_accuracy"} <= set(run.logged_metrics)
    assert run.logged_metrics["val_accuracy"] > 0.95
    assert run.logged_metrics["val_perplexity"] < 1.5


def test_a_greedy_translation_is_right_where_the_model_has_learned(learned):
    module, _, data = learned
    module.eval()
    source, target = next(iter(data.test_dataloader()))
    translation = module.translate(source)
    sentences = [data.vocabulary.decode(row) for row in translation]
    expected = [data.vocabulary.decode(row) for row in target]
    assert sum(map(list.__eq__, sentences, expected)) > 0.8 * len(expected)
    for row in translation.tolist():
        assert row[0] == BOS
        assert EOS not in row or set(row[row.index(EOS) + 1 :]) <= {PAD}


def test_a_greedy_translation_takes_the_most_probable_word_at_each_position():
    module = model().eval()
    source = PAIRS[0][0]
    translation = module.translate(source, max_length=6)
    with torch.no_grad():
        best = module(source, translation[:, :-1]).argmax(dim=-1)
    for row, words in zip(translation[:, 1:].tolist(), best.tolist(), strict=True):
        end = row.index(EOS) + 1 if EOS in row else len(row)
        assert row[:end] == words[:end]


def test_a_checkpoint_loads_without_arguments(learned, tmp_path):
    module, run, _ = learned
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = TranslationModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.hparams == module.hparams
    assert torch.equal(again.model.embedding.weight, module.model.embedding.weight)
