import copy
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2
from toy import read

from aida_lightning.callbacks import StepsizeMonitor
from aida_lightning.compare.callbacks import LetGlooFinish
from aida_lightning.datamodules import Digitsx64DataModule
from aida_lightning.example_modules import WGANGP, FIDMonitor, gradient_penalty

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning's own use of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]
SGD = {"optimizer": "sgd", "optimizer_options": {"lr": 1e-6, "momentum": 0.0}}


def tiny(**options) -> WGANGP:
    return WGANGP(**{"width": 2, "latent_size": 3, **options})


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def loader(n: int, batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(images(n), torch.zeros(n)), batch_size=batch_size)


def fit(folder: Path, gan: WGANGP, data, *callbacks, ckpt_path=None, **options) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="run"),
        callbacks=[LetGlooFinish(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "log_every_n_steps": 1, "devices": 1, **options},
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )
    given = {"datamodule": data} if isinstance(data, Digitsx64DataModule) else {}
    trainer.fit(gan, *([] if given else [data]), ckpt_path=ckpt_path, **given)
    return trainer


def trained_naively(gan: WGANGP, batches: list[list[torch.Tensor]]) -> WGANGP:
    """Train by plain SGD; ``batches`` has, for each step, what each process sees."""
    gan = copy.deepcopy(gan).double()
    for step, parts in enumerate(batches):
        latents = []
        gan.zero_grad()
        for rank, real in enumerate(parts):
            seed = np.random.SeedSequence((int(gan.noise_seed), 0, step, rank))
            random = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0]))
            latents.append(torch.randn(len(real), 3, generator=random).double())
            u = torch.rand(len(real), 1, 1, 1, generator=random, dtype=torch.float64)
            fake = gan.generator(latents[-1]).detach()
            between = (u * real + (1 - u) * fake).requires_grad_()
            ones = torch.ones(len(real), dtype=torch.float64)
            (slope,) = torch.autograd.grad(gan.critic(between), between, ones, create_graph=True)
            length = torch.stack([row.square().sum().sqrt() for row in slope])
            penalty = 10 * ((length - 1) ** 2).mean()
            loss = gan.critic(fake).mean() - gan.critic(real).mean() + penalty
            (loss / len(parts)).backward()
        plain_sgd(gan.critic)
        if step % 5 == 0:
            gan.zero_grad()
            for latent in latents:
                (-gan.critic(gan.generator(latent)).mean() / len(parts)).backward()
            plain_sgd(gan.generator)
    return gan


@torch.no_grad()
def plain_sgd(network: nn.Module) -> None:
    for p in network.parameters():
        p -= 1e-6 * p.grad


def assert_same_parameters(a: nn.Module, b: nn.Module, **tolerance) -> None:
    there = dict(b.named_parameters())
    for name, p in a.named_parameters():
        torch.testing.assert_close(p, there[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def test_a_linear_critics_penalty_is_that_of_its_weights_length():
    weight = torch.tensor([3.0, 0.0, -4.0])
    penalty = gradient_penalty(lambda x: x @ weight, torch.randn(6, 3), torch.randn(6, 3))
    assert penalty.item() == pytest.approx((5 - 1) ** 2)


def test_the_penalty_can_be_differentiated_by_the_critics_weights():
    weight = torch.tensor([3.0, 0.0, -4.0], requires_grad=True)
    gradient_penalty(lambda x: x @ weight, torch.randn(6, 3), torch.randn(6, 3)).backward()
    # d/dw (|w| - 1)² = 2 (|w| - 1) w / |w|
    torch.testing.assert_close(weight.grad, 2 * (5 - 1) * weight.detach() / 5)


def test_the_gradient_is_taken_at_one_point_between_each_real_image_and_its_fake():
    real, fake = torch.randn(2, 5, 3, 2, 2)
    fake.requires_grad_()
    random = torch.Generator().manual_seed(1)
    # The gradient of |x|²/2 is x.
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake, random)
    u = torch.rand(5, 1, 1, 1, generator=torch.Generator().manual_seed(1)).flatten()
    expected = 0.0
    for i in range(5):
        point = u[i] * real[i] + (1 - u[i]) * fake[i].detach()
        expected += (point.flatten().norm().item() - 1) ** 2 / 5
    assert penalty.item() == pytest.approx(expected)
    assert u.unique().numel() == 5
    assert not fake.grad


def test_training_takes_the_steps_of_a_loop_written_out(tmp_path):
    gan = tiny(**SGD)
    expected = trained_naively(gan, [[real] for real in images(28).double().split(4)])
    before = copy.deepcopy(gan).double()
    trainer = fit(tmp_path, gan, loader(28, 4), precision="64-true")
    assert_same_parameters(gan, expected, rtol=0, atol=1e-13)
    assert trainer.global_step == 7 + 2  # the critic's and the generator's
    assert not torch.equal(gan.critic[0].weight, before.critic[0].weight)
    assert not torch.equal(gan.generator[1].weight, before.generator[1].weight)


def mean_colours() -> nn.Module:
    return nn.Sequential(
        v2.ToDtype(torch.float32, scale=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Compare the mean colours of images in ±1."""
    a, b = (mean_colours()(((x + 1) * 127.5).round().byte()).double().numpy() for x in (a, b))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    half = scipy.linalg.sqrtm(covariances[0])
    roots = np.sqrt(np.linalg.eigvalsh(half @ covariances[1] @ half).clip(0))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances)) - 2 * roots.sum()


def test_two_processes_average_gradients_and_measure_with_noise_of_their_own(tmp_path):
    torch.manual_seed(0)
    gan = tiny(**SGD)
    with torch.no_grad():
        for p in gan.generator.parameters():
            p *= 5 if p.ndim > 1 else 1  # for images that differ in more than rounding
    before = copy.deepcopy(gan)
    expected = trained_naively(gan, [[real, real] for real in images(12).double().split(4)])
    trainer = fit(
        tmp_path,
        gan,
        loader(12, 4),
        FIDMonitor(num_samples=15, features=mean_colours(), batch_size=5),
        devices=2,
        strategy="ddp_spawn_find_unused_parameters_true",
        use_distributed_sampler=False,  # the same images for both
        precision="64-true",
    )
    # This process's copy of the weights is in single precision, good for 1e-8 to 6e-8.
    assert_same_parameters(gan, expected.float(), rtol=1e-7, atol=1e-8)
    assert (gan.critic[0].weight - before.critic[0].weight).abs().mean() > 1e-6
    assert (gan.generator[1].weight - before.generator[1].weight).abs().mean() > 4e-8
    parts = []
    for rank, numbers in enumerate([(5, 3), (5, 2)]):
        random = torch.Generator().manual_seed(int(gan.noise_seed) + rank)
        parts += [gan.sample(n, random) for n in numbers]
    distance = frechet(images(12), torch.cat(parts))
    assert float(trainer.callback_metrics["fid_proxy"]) == pytest.approx(distance, rel=1e-3)
    floor = frechet(images(12)[::2], images(12)[1::2])
    assert float(trainer.callback_metrics["fid_proxy_floor"]) == pytest.approx(floor, rel=1e-3)


@pytest.mark.filterwarnings("ignore:StepsizeMonitor, at step")
def test_the_monitor_logs_both_optimizers_at_their_own_steps(tmp_path):
    gan = tiny(optimizer_options={"eps": 1e-12})
    fit(tmp_path, gan, loader(12, 2), StepsizeMonitor(every_n_steps=1))
    scalars = read(tmp_path)
    critic = [name for name, p in gan.critic.named_parameters() if p.ndim > 1]
    generator = [name for name, p in gan.generator.named_parameters() if p.ndim > 1]
    tags = {tag for tag in scalars if "/stepsize_mean/" in tag or "/stepsize_std/" in tag}
    assert tags == {
        f"{prefix}/{statistic}/{network}.{layer}"
        for prefix, network, layers in (
            ("Aida", "critic", critic),
            ("Aida-1", "generator", generator),
        )
        for statistic in ("stepsize_mean", "stepsize_std")
        for layer in layers
    }
    assert sorted(scalars["Aida/stepsize_mean/critic.0.weight"]) == [0, 1, 2, 3, 4, 5]
    assert sorted(scalars["Aida-1/stepsize_mean/generator.1.weight"]) == [0, 5]
    losses = {"critic_loss", "wasserstein", "gradient_penalty", "generator_loss"}
    assert losses <= scalars.keys()
    assert sorted(scalars["critic_loss"]) == [0, 1, 2, 3, 4, 5]
    step = 3
    assert scalars["critic_loss"][step] == pytest.approx(
        10 * scalars["gradient_penalty"][step] - scalars["wasserstein"][step], rel=1e-4
    )


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, num_workers):
    def run(name: str, seed: int, epochs: int, ckpt_path: Path | None = None) -> WGANGP:
        torch.manual_seed(seed)
        gan = tiny(optimizer_options={"eps": 1e-12}, n_critic=2)
        data = Digitsx64DataModule(batch_size=4, num_workers=num_workers)
        checkpoint = ModelCheckpoint(tmp_path / f"{name}-kept", filename="{epoch}", save_top_k=-1)
        fit(
            tmp_path / name,
            gan,
            data,
            checkpoint,
            ckpt_path=ckpt_path,
            max_epochs=epochs,
            limit_train_batches=3,
        )
        return gan

    unbroken = run("unbroken", seed=1, epochs=3)
    run("broken", seed=1, epochs=2)
    # Another seed: what matters of the first is in the checkpoint.
    resumed = run("resumed", seed=2, epochs=3, ckpt_path=tmp_path / "broken-kept" / "epoch=1.ckpt")
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    other = run("other", seed=3, epochs=1).critic[0].weight
    assert not torch.equal(other, resumed.critic[0].weight)


def test_measuring_the_distance_does_not_change_the_training(tmp_path):
    class Brightness(nn.Module):
        num_features = 3

        def forward(self, images):
            return images.float().mean(dim=(2, 3))

    def run(*callbacks) -> tuple[WGANGP, float]:
        torch.manual_seed(1)
        gan = tiny(**SGD)
        data = Digitsx64DataModule(batch_size=4)
        fit(tmp_path, gan, data, *callbacks, max_epochs=2, limit_train_batches=2)
        return gan, torch.rand(()).item()

    monitor = FIDMonitor(1, num_samples=4, num_real=8, features=Brightness())
    (plain, next_number), (measured, next_number_measured) = run(), run(monitor)
    assert_same_parameters(plain, measured, rtol=0, atol=0)
    assert next_number == next_number_measured


def test_random_numbers_differ_between_batches_epochs_processes_and_seeds(monkeypatch):
    def drawn(seed=1, epoch=0, batch_idx=0, rank=0) -> float:
        torch.manual_seed(seed)
        gan = tiny()
        monkeypatch.setattr(WGANGP, "current_epoch", epoch)
        monkeypatch.setattr(WGANGP, "global_rank", rank)
        gan.on_train_start()
        return torch.rand((), generator=gan._random(batch_idx), dtype=torch.float64).item()

    first = drawn()
    assert drawn() == first
    others = [drawn(seed=2), drawn(epoch=1), drawn(batch_idx=1), drawn(rank=1)]
    assert len({first, *others}) == 5


def test_the_generator_samples_with_its_running_statistics_and_trains_on():
    gan = tiny()
    gan.generator[2].running_mean.fill_(5.0)
    latent = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    expected = copy.deepcopy(gan.generator).eval()(latent)
    before = gan.generator[2].running_mean.clone()
    sampled = gan.sample(4, torch.Generator().manual_seed(2))
    torch.testing.assert_close(sampled, expected)
    assert not sampled.requires_grad
    assert gan.generator.training
    assert torch.equal(gan.generator[2].running_mean, before)


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        ("aida", None, {"lr": 2e-4, "betas": (0.5, 0.999), "weight_decay": 0.0}),
        ("adam", {"eps": 1e-6}, {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-6}),
        ("adabelief", {"lr": 1e-3}, {"lr": 1e-3, "betas": (0.5, 0.999)}),
        ("sgd", None, {"lr": 2e-4, "momentum": 0.9}),
    ],
)
def test_options_left_out_are_the_papers(optimizer, options, expected):
    gan = tiny(optimizer=optimizer, optimizer_options=options)
    critic, generator = gan.configure_optimizers()
    for built, network in ((critic, gan.critic), (generator, gan.generator)):
        (group,) = built.param_groups
        assert {name: group[name] for name in expected} == expected
        assert [*map(id, group["params"])] == [*map(id, network.parameters())]


def test_a_checkpoint_loads_with_its_hyperparameters(tmp_path):
    gan = tiny(optimizer="adam", optimizer_options={"eps": 1e-6}, n_critic=2)
    trainer = fit(tmp_path, gan, loader(4, 2))
    trainer.save_checkpoint(tmp_path / "gan.ckpt")
    again = WGANGP.load_from_checkpoint(tmp_path / "gan.ckpt")
    assert again.hparams == {
        "optimizer": "adam",
        "optimizer_options": {"eps": 1e-6},
        "latent_size": 3,
        "width": 2,
        "n_critic": 2,
        "penalty_weight": 10.0,
        "fid": None,
    }
    assert_same_parameters(gan, again, rtol=0, atol=0)
    assert torch.equal(gan.noise_seed, again.noise_seed)


def test_fid_options_give_the_trainer_a_monitor(tmp_path):
    gan = tiny(fid={"features": "classifier.ckpt", "every_n_epochs": 3})
    (monitor,) = gan.configure_callbacks()
    assert monitor.every_n_epochs == 3
    assert monitor.tag == "fid_proxy"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint classifier\.ckpt"):
        fit(tmp_path, gan, loader(4, 2))


def test_the_fids_network_is_needed_for_training_alone(tmp_path):
    gan = tiny(fid={"features": "classifier.ckpt"})
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
    )
    (generated,) = trainer.predict(gan, DataLoader(torch.randn(2, 3), batch_size=2))
    assert generated.shape == (2, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint classifier\.ckpt"):
        tiny(fid=gan.fid).prepare_data()


@pytest.mark.parametrize(
    ("option", "refused"),
    [
        ({"gradient_clip_val": 1.0}, "gradient clipping is not supported for manual"),
        ({"accumulate_grad_batches": 2}, "gradient accumulation is not supported for manual"),
    ],
)
def test_lightning_refuses_what_manual_optimization_does_not_have(tmp_path, option, refused):
    with pytest.raises(MisconfigurationException, match=refused):
        fit(tmp_path, tiny(), loader(4, 2), **option)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="n_critic value: 0, it must be at least 1"):
        tiny(n_critic=0)
    with pytest.raises(ValueError, match="penalty_weight value: -1, it must be at least 0"):
        tiny(penalty_weight=-1)
    with pytest.raises(ValueError, match=r"Unknown optimizer 'aidda', did you mean: aida"):
        tiny(optimizer="aidda")
    with pytest.raises(ValueError, match="width value: 0"):
        tiny(width=0)


@pytest.mark.parametrize(
    ("fid", "refused"),
    [
        ({"wights": "w.pth"}, "no option wights; its options are: .*weights"),
        ({"num_real": 1}, "num_real"),
    ],
)
def test_options_that_the_fid_monitor_does_not_take_are_refused_at_once(fid, refused):
    with pytest.raises(ValueError, match=refused):
        WGANGP(width=4, fid=fid)
