"""Steps measured in Fabric's loops and in plain ones, against what the monitor would log."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from aida_lightning import Aida, build_optimizer, measure_step


def module_and_batch():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(5, 4)


def test_the_numbers_of_a_step_under_fabric():
    module, batch = module_and_batch()
    fabric = Fabric(accelerator="cpu", devices=1)
    optimizer = Aida(module.parameters(), lr=1e-2)
    wrapped, fabric_optimizer = fabric.setup(module, optimizer)
    for step in range(3):
        fabric_optimizer.zero_grad()
        fabric.backward(wrapped(batch).square().mean())
        if step < 2:
            fabric_optimizer.step()
    before = module[0].weight.detach().clone()
    with measure_step(
        fabric_optimizer, wrapped, statistics=["mean", "std", "update_ratio"]
    ) as numbers:
        fabric_optimizer.step()
    fabric_optimizer.zero_grad()
    assert [*numbers] == [
        f"{tag}/{layer}.weight"
        for layer in (0, 2)
        for tag in ("stepsize_mean", "stepsize_std", "update_ratio")
    ]
    state = optimizer.state[module[0].weight]
    s = 1 / (state["exp_avg_sq"] / (1 - 0.999**3)).sqrt()
    assert numbers["stepsize_mean/0.weight"] == pytest.approx(s.mean().item(), rel=1e-5)
    assert numbers["stepsize_std/0.weight"] == pytest.approx(s.std(correction=0).item(), rel=1e-5)
    change = (module[0].weight - before).norm() / before.norm()
    assert numbers["update_ratio/0.weight"] == pytest.approx(change.item(), rel=1e-3)


def test_a_plain_loop_and_an_optimizer_without_stepsizes():
    module, batch = module_and_batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(batch).square().mean().backward()
    gradient = module[2].weight.grad.norm().item()
    with measure_step(optimizer, module, layers="2.*") as numbers:
        optimizer.step()
        optimizer.zero_grad()  # within the context too, after the step
    assert numbers["gradient_norm/2.weight"] == pytest.approx(gradient)
    assert numbers["update_norm/2.weight"] == pytest.approx(0.1 * gradient)
    assert {tag.partition("/")[0] for tag in numbers} == {
        "update_ratio", "update_norm", "weight_norm", "gradient_norm"
    }  # fmt: skip
    assert {tag.partition("/")[2] for tag in numbers} == {"2.weight", "2.bias"}


def test_the_last_of_several_steps_is_measured_and_without_one_there_are_no_numbers():
    module, batch = module_and_batch()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    with measure_step(optimizer, module, statistics="weight_norm") as numbers:
        for _ in range(2):
            optimizer.zero_grad()
            module(batch).square().mean().backward()
            optimizer.step()
    assert numbers["weight_norm/0.weight"] == pytest.approx(module[0].weight.norm().item())
    with measure_step(optimizer, module) as numbers:
        optimizer.zero_grad()
    assert numbers == {}


def test_a_step_that_a_gradient_scaler_skips_is_none():
    module, batch = module_and_batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(module(batch).square().mean() * torch.inf).backward()
    with measure_step(optimizer, module) as numbers:
        scaler.step(optimizer)
    assert numbers == {}


def test_hooks_are_removed_where_a_step_raises():
    module, _ = module_and_batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(KeyError), measure_step(optimizer, module):
        raise KeyError
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"statistics": "men"}, "Unknown statistic 'men'; the statistics are mean, std"),
        ({"statistics": []}, "statistics must name at least one statistic"),
        ({"statistics": None}, "statistics must be a statistic or a list of them, got None"),
        ({"layers": 3}, "layers must be a glob or a list of them, got 3"),
        ({"layers": "3.*"}, r"No layer matches '3\.\*'; the layers are: \['0.weight', '0.bias'"),
    ],
)
def test_what_there_is_not_is_named(arguments, message):
    module, _ = module_and_batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match=message),
        measure_step(optimizer, module, **arguments),
    ):
        pass


def test_a_module_of_another_optimizer_and_what_is_none_are_refused():
    module, _ = module_and_batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match="hold none of the module's parameters, which are: "),
        measure_step(optimizer, nn.Linear(2, 2)),
    ):
        pass
    for arguments, needed in (((module, optimizer), "as first"), ((optimizer, 3), "as second")):
        with pytest.raises(TypeError, match=needed), measure_step(*arguments):
            pass


def test_several_optimizers_and_biases_alone_are_measured():
    module, batch = module_and_batch()
    for layer in (0, 2):
        module[layer].weight.requires_grad_(False)
    optimizers = [torch.optim.SGD([module[layer].bias], lr=0.1) for layer in (0, 2)]
    module(batch).square().mean().backward()
    with measure_step(optimizers, module, statistics="update_norm") as numbers:
        for optimizer in optimizers:
            optimizer.step()
    assert [*numbers] == ["SGD/update_norm/0.bias", "SGD-1/update_norm/2.bias"]


@pytest.mark.parametrize("name", ["aida", "adam"])
def test_a_complex_layers_ratios_are_of_real_and_imaginary_parts(name):
    module = nn.Module()
    module.vector = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    module.matrix = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    optimizer = build_optimizer(name, module)
    (module.vector @ module.matrix).abs().square().sum().backward()
    with measure_step(optimizer, module, ["snr", "snr_rows"], "*") as numbers:
        optimizer.step()
    for layer in ("vector", "matrix"):
        v = torch.view_as_real(optimizer.state[getattr(module, layer)]["exp_avg_sq"]).double()
        rows = v.flatten(1)
        of_rows = rows.mean(1) ** 2 / rows.var(1, correction=0)
        expected = (v.mean() ** 2 / v.var(correction=0)).item(), of_rows.mean().item()
        found = numbers[f"snr/{layer}"], numbers[f"snr_rows/{layer}"]
        assert found == pytest.approx(expected, rel=1e-5)
