"""Each project trains as the page "Using it with …" says."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aida_lightning import Aida, build_optimizer
from aida_lightning._lightning import find
from aida_lightning.callbacks import StepsizeMonitor, UseOptimizer

# The projects warn of what they and Lightning do, which is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore", "error:.*(UseOptimizer|StepsizeMonitor)")


def batches(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=4)


def watching(**options):
    return [UseOptimizer("aida", lr=1e-3), StepsizeMonitor(every_n_steps=1, **options)]


def resume(fits, loader, epochs, **options):
    """Save the last fit's checkpoint, and train on from it with a new module and Trainer."""
    fit = fits[-1]
    fit.trainer.save_checkpoint("saved.ckpt")
    again = type(fit.trainer)(max_epochs=epochs, callbacks=watching(**options))
    again.fit(type(fit.module)(), loader, ckpt_path="saved.ckpt")
    assert again.global_step > fit.trainer.global_step
    assert fits[-1].counts == {again.global_step}


def series(length=60):
    pandas = pytest.importorskip("pandas")
    values = torch.linspace(0, 12, length).sin().tolist()
    return pandas.DataFrame({"series": "a", "time": range(length), "value": values})


def test_gpt2_of_transformers(run, fits):
    pytest.importorskip("transformers")
    loader = DataLoader(torch.arange(64).repeat(2).reshape(8, 16), batch_size=4)
    fit = run("transformers", loader=loader)
    blocks = {
        f"model.transformer.h.{block}.{layer}.weight"
        for block in range(2)
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    # The head is tied to the first of these.
    assert fit.logged == blocks | {f"model.transformer.{name}.weight" for name in ("wte", "wpe")}
    resume(fits, loader, 3)


def test_bert_of_transformers(fits):
    transformers = pytest.importorskip("transformers")
    (base, *_), (trainer, *_) = find("pytorch.LightningModule"), find("pytorch.Trainer")

    class Bert(base):
        def __init__(self):
            super().__init__()
            sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
            config = transformers.BertConfig(vocab_size=64, num_hidden_layers=1, **sizes)
            self.model = transformers.BertForMaskedLM(config)

        def training_step(self, batch):
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    tokens = DataLoader(torch.arange(64).reshape(8, 8), batch_size=4)
    callbacks = watching(layers=["*.cls.predictions.decoder.weight", "*.query.weight"])
    trainer(max_epochs=1, callbacks=callbacks).fit(Bert(), tokens)
    assert fits[-1].logged == {
        "model.bert.embeddings.word_embeddings.weight",
        "model.bert.encoder.layer.0.attention.self.query.weight",
    }


def test_the_trainer_of_transformers_takes_the_optimizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    )
    start = copy.deepcopy(model.state_dict())
    tokens = torch.arange(64).reshape(8, 8)
    transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path), max_steps=3, use_cpu=True, report_to=[], disable_tqdm=True
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizers=(build_optimizer("aida", model, lr=1e-3), None),
    ).train()
    assert not any(
        torch.equal(start[name], tensor)
        for name, tensor in model.state_dict().items()
        if tensor.ndim == 2
    )


def images(count=8, size=32):
    return torch.randn(count, 3, size, size)


def test_timm_with_layer_decay_and_its_schedule(run, fits, caplog):
    pytest.importorskip("timm")
    loader = batches(images(), torch.arange(8))
    with caplog.at_level("INFO"):
        fit = run("timm", loader=loader)
    assert {"model.cls_token", "model.pos_embed", "model.blocks.1.attn.qkv.weight"} < fit.logged
    assert not {name for name in fit.logged if "norm" in name or "gamma" in name}
    (line,) = [message for message in caplog.messages if message.startswith("UseOptimizer")]
    assert line == "UseOptimizer: Aida in place of AdamW, lr 0.001, CosineLRScheduler kept"
    # Past the warm-up, at the third of ten epochs' cosine.
    rates = {group["lr"] / group["lr_scale"] for group in fit.optimizer.param_groups}
    cosine = (1 + torch.cos(torch.tensor(torch.pi * 3 / 10))) / 2
    assert [*rates] == pytest.approx([1e-3 * cosine.item()] * len(rates))
    resume(fits, loader, 4)


WARM = {"warmup_t": 3, "warmup_lr_init": 1e-3}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        ("CosineLRScheduler", {"t_initial": 8, "lr_min": 1e-3, **WARM}),
        ("MultiStepLRScheduler", {"decay_t": [4, 6], **WARM}),
        ("PlateauLRScheduler", {"patience_t": 0, "lr_min": 1e-2, **WARM}),
        ("PolyLRScheduler", {"t_initial": 8, "lr_min": 1e-3}),
        ("StepLRScheduler", {"decay_t": 2, "noise_range_t": 3, **WARM}),
        ("TanhLRScheduler", {"t_initial": 8, "lr_min": 1e-3, "warmup_t": 0}),
        ("WSDLRScheduler", {"t_initial": 8, "decay_t": 4, "lr_min": 1e-3, **WARM}),
    ],
)
def test_each_schedule_of_timm_keeps_its_shape(fits, cls, options):
    scheduler = getattr(pytest.importorskip("timm.scheduler"), cls)
    make = partial(scheduler, **options)
    own = rates_of_epochs(make)
    kept = rates_of_epochs(make, UseOptimizer("aida"))
    scaled = rates_of_epochs(make, UseOptimizer("aida", lr=1e-3))
    assert len({tuple(rates) for rates in own}) > 2
    assert kept == own
    torch.testing.assert_close(torch.tensor(scaled), torch.tensor(own) / 100, rtol=1e-5, atol=0)


def rates_of_epochs(make, *callbacks):
    """Return the rates of two groups in each of ten epochs."""
    (base, *_), (trainer, *_) = find("pytorch.LightningModule"), find("pytorch.Trainer")

    class Module(base):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)])
            self.rates = []

        def training_step(self, batch):
            self.rates.append([g["lr"] for g in self.optimizers().param_groups])
            hidden = batch[0]
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden.square().mean()

        def configure_optimizers(self):
            groups = [
                {"params": layer.parameters(), "lr": lr}
                for layer, lr in zip(self.layers, (0.1, 0.05), strict=True)
            ]
            optimizer = torch.optim.AdamW(groups)
            return [optimizer], [make(optimizer)]

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(self.current_epoch + 1, 1.0)

    module = Module()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer(max_epochs=10, callbacks=[*callbacks], **options).fit(module, batches(torch.ones(4, 2)))
    return module.rates


def test_segmentation_models(run, fits):
    pytest.importorskip("segmentation_models_pytorch")
    loader = batches(images(), torch.randint(2, (8, 1, 32, 32)).float())
    fit = run("segmentation-models-pytorch", loader=loader)
    assert {"model.encoder.layer1.0.conv1.weight", "model.segmentation_head.0.weight"} < fit.logged
    assert not {name for name in fit.logged if "decoder" in name}
    resume(fits, loader, 2, layers=["model.encoder.*.weight", "model.segmentation_head.*"])


def test_torch_geometric(run, fits):
    geometric = pytest.importorskip("torch_geometric")
    from torch_geometric.loader import DataLoader

    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    graph = geometric.data.Data(torch.randn(4, 5), edges, y=torch.tensor([0, 1, 2, 0]))
    loader = DataLoader([graph] * 8, batch_size=4)
    fit = run("torch-geometric", loader=loader)
    assert fit.logged == {
        f"model.convs.{conv}.{name}"
        for conv in range(2)
        for name in ("att_src", "att_dst", "lin.weight")
    }
    resume(fits, loader, 3)


def test_sparse_embeddings_of_torch_geometric_are_refused(fits):
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn.kge import TransE

    with pytest.raises(ValueError, match="Aida does not support sparse gradients"):
        build_optimizer("aida", TransE(5, 2, 4, sparse=True))


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_e3nn(run, fits, caplog, package):
    pytest.importorskip("e3nn")
    pytest.importorskip(package)
    loader = batches(torch.randn(16, 16), torch.randn(16, 3), torch.randn(16, 1))
    with caplog.at_level("INFO"):
        fit = run("e3nn", package, loader=loader)
    assert type(fit.trainer).__module__.startswith(package)
    assert fit.logged == {"mix.weight", "read.weight"}
    assert "lr 0.001, amsgrad=True dropped" in caplog.text
    resume(fits, loader, 3)


def test_lightly(run, fits):
    pytest.importorskip("lightly")
    loader = DataLoader([((image, image.flip(2)), 0) for image in images()], batch_size=4)
    fit = run("lightly", loader=loader)
    assert {"backbone.0.weight", "head.layers.0.weight", "head.layers.3.weight"} < fit.logged
    assert len(fit.logged) == 22  # ResNet-18's 20 convolutions
    resume(fits, loader, 2)


def test_pytorch_forecasting(run, fits):
    pytest.importorskip("pytorch_forecasting")
    fit = run("pytorch-forecasting", frame=series())
    assert {"lstm_encoder.weight_ih_l0", "multihead_attn.v_layer.weight"} < fit.logged
    assert not {name for name in fit.logged if ".norm." in name}
    fit.trainer.save_checkpoint("saved.ckpt")
    loader = fit.trainer.train_dataloader
    model = type(fit.module).load_from_checkpoint("saved.ckpt", weights_only=False)
    again = type(fit.trainer)(max_epochs=2, limit_train_batches=4, callbacks=watching())
    again.fit(model, loader, ckpt_path="saved.ckpt", weights_only=False)
    assert fits[-1].counts == {again.global_step} == {fit.trainer.global_step * 2}


def test_the_optimizer_as_an_argument_of_pytorch_forecasting(fits):
    forecasting = pytest.importorskip("pytorch_forecasting")
    training = forecasting.TimeSeriesDataSet(
        series(),
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=8,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
    )
    model = forecasting.NBeats.from_dataset(
        training, widths=[8, 8], optimizer=Aida, optimizer_params={"k": 1}
    )
    (trainer,) = (t for t in find("pytorch.Trainer") if t.__module__.startswith("lightning.pytor"))
    trainer(max_steps=2).fit(model, training.to_dataloader(batch_size=16))
    assert type(fits[-1].optimizer) is Aida
    assert fits[-1].optimizer.param_groups[0]["k"] == 1


def test_darts(run, fits):
    darts = pytest.importorskip("darts")
    values = darts.TimeSeries.from_dataframe(series(), value_cols="value").astype("float32")
    fit = run("darts", series=values)
    assert type(fit.optimizer) is Aida
    assert {"stacks.0.blocks.0.fc_stack.0.weight", "stacks.1.blocks.0.fc_stack.0.weight"} < (
        fit.logged
    )
    (steps,) = fit.counts
    model = darts.models.NBEATSModel.load_from_checkpoint("nbeats", best=False, trusted=True)
    model.fit(values, epochs=3)
    assert fits[-1].counts == {steps * 3 // 2}
    assert fits[-1].logged == fit.logged


def test_the_optimizer_as_an_argument_of_darts(fits):
    darts = pytest.importorskip("darts")
    values = darts.TimeSeries.from_dataframe(series(), value_cols="value").astype("float32")
    darts.models.RNNModel(
        input_chunk_length=8,
        training_length=10,
        hidden_dim=4,
        n_epochs=1,
        optimizer_cls=Aida,
        optimizer_kwargs={"lr": 1e-3, "k": 1},
    ).fit(values)
    assert type(fits[-1].optimizer) is Aida
    assert fits[-1].optimizer.param_groups[0]["k"] == 1


def test_neuralforecast(run):
    pytest.importorskip("neuralforecast")
    frame = series().rename(columns={"series": "unique_id", "time": "ds", "value": "y"})
    fit = run("neuralforecast", frame=frame)
    assert type(fit.optimizer) is Aida
    assert fit.counts == {6}
    assert {f"blocks.{block}.layers.0.weight" for block in range(3)} < fit.logged


def test_the_optimizer_as_an_argument_of_neuralforecast(fits):
    forecast = pytest.importorskip("neuralforecast")
    frame = series().rename(columns={"series": "unique_id", "time": "ds", "value": "y"})
    model = forecast.models.MLP(
        h=2, input_size=8, max_steps=2, hidden_size=8, optimizer=Aida, optimizer_kwargs={"k": 1}
    )
    forecast.NeuralForecast(models=[model], freq=1).fit(df=frame)
    assert type(fits[-1].optimizer) is Aida
    assert fits[-1].optimizer.param_groups[0]["k"] == 1


def test_each_section_of_the_page_is_run(sections):
    runs = re.findall(r'\brun\("(.+?)"', Path(__file__).read_text("utf-8"))
    assert sorted(runs) == sorted(sections)
    assert len(runs) == 9
