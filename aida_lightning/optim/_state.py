"""The state of a layer: how it starts, and how it comes back from a checkpoint."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, _get_scalar_dtype

from aida_lightning.optim._kernels.rule import LayerMean


def new_state(param: Tensor, layer_mean: LayerMean, *, capturable: bool) -> dict[str, Tensor]:
    """Make the state of a layer that has taken no step."""
    dtype = _statistic_dtype(param, layer_mean)
    if layer_mean == "statistic":
        exp_avg_sq = torch.zeros((), dtype=dtype, device=param.device)
    else:
        exp_avg_sq = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    return {
        "step": _step(0.0, param, capturable),
        "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
        "exp_avg_sq": exp_avg_sq,
    }


def check_loaded(optimizer: Optimizer, layer_mean: LayerMean, state_dict: dict[str, Any]) -> None:
    """Raise a ValueError if the state dict cannot be one of the optimizer's class."""
    for saved, param, _ in _saved_layers(optimizer, state_dict):
        missing = [name for name in ("step", "exp_avg", "exp_avg_sq") if name not in saved]
        if missing:
            raise ValueError(_not_its_own(optimizer, f"it lacks {missing}"))
        one = layer_mean == "statistic"
        shapes = {"exp_avg_sq": torch.Size() if one else param.shape, "exp_avg": param.shape}
        for name, expected in shapes.items():
            if (shape := saved[name].shape) != expected:
                fault = f"{name} has the shape {[*shape]}, not {[*expected]}"
                raise ValueError(_not_its_own(optimizer, fault))


def _not_its_own(optimizer: Optimizer, fault: str) -> str:
    return f"loaded state dict is not one of {type(optimizer).__name__}: {fault}"


def restore_dtypes(optimizer: Optimizer, layer_mean: LayerMean, state_dict: dict[str, Any]) -> None:
    """Undo torch's cast of all loaded state to the parameter's dtype, from what was saved."""
    for saved, param, group in _saved_layers(optimizer, state_dict):
        state = optimizer.state[param]
        state["step"] = _step(saved["step"], param, group["capturable"])
        state["exp_avg_sq"] = saved["exp_avg_sq"].to(
            param.device, _statistic_dtype(param, layer_mean)
        )


def _step(value: float | Tensor, param: Tensor, capturable: bool) -> Tensor:
    # On the host it can be read without a wait; a graph to be captured needs it on the device.
    device = param.device if capturable else torch.device("cpu")
    return torch.as_tensor(value, dtype=_get_scalar_dtype(), device=device)


def _statistic_dtype(param: Tensor, layer_mean: LayerMean) -> torch.dtype:
    # In float16 an eps of 1e-8 is 0; in bfloat16 v * 0.999 rounds back to v and never decays.
    half = param.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else param.dtype
    return dtype.to_real() if layer_mean == "statistic" else dtype


def _saved_layers(
    optimizer: Optimizer, state_dict: dict[str, Any]
) -> list[tuple[dict[str, Any], Tensor, dict[str, Any]]]:
    """Pair what was saved of each layer with its parameter and its group."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    ours = [(param, group) for group in optimizer.param_groups for param in group["params"]]
    # Not strict, for torch itself refuses groups that do not fit.
    return [
        (saved, param, group)
        for key, (param, group) in zip(keys, ours, strict=False)
        if (saved := state_dict["state"].get(key))
    ]
