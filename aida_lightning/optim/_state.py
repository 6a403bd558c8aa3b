"""The state of a layer: how it starts, and how it comes back from a checkpoint."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from aida_lightning._private import step_dtype
from aida_lightning.optim._kernels.rule import LayerMean

# The key of a group in a state dict that says which class saved it.
_CLASS = "optimizer"
# Options that tell whose the groups are that do not say it.
_TELLTALE = (
    "k",
    "xi",
    "tau",
    "amsgrad",
    "momentum",
    "initial_accumulator",
    "decoupled_weight_decay",
)


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


class OwnStateOptimizer(Optimizer):
    """Base of the optimizers whose state dict says whose it is, and which load no other's unseen.

    Optimizers keep states of the same names, such as ``exp_avg_sq``, that mean different things.
    torch's distributed checkpoints in flat form keep no name, and tell nothing.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's optimizers do, with the class's name in each group."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group[_CLASS] = type(self).__name__
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state.

        Raises:
            ValueError: a layer's state lacks what this class keeps or has another shape, or the
                groups do not fit. Nothing has been loaded then.

        Warns:
            UserWarning: the state is one of another class.
        """
        handle = self.register_load_state_dict_pre_hook(lambda _, given: self._check_loaded(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _check_state(self, param: Tensor, state: dict[str, Any]) -> str | None:
        """Say what of a layer's state is missing or does not fit, or None."""
        return fault_of(param, state, None)

    def _check_loaded(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Check a state dict after the user's own hooks, and take the name out of its groups."""
        name = type(self).__name__
        groups = state_dict["param_groups"]
        another = next((other for g in groups if (other := self._another(g))), None)
        for saved, param, _ in saved_layers(self, state_dict):
            if fault := self._check_state(param, saved):
                whose = f", but of {another}" if another else ""
                raise ValueError(f"loaded state dict is not one of {name}{whose}: {fault}")
        if another:
            _warn_of_another(another, name)
        own = [{key: group[key] for key in group if key != _CLASS} for group in groups]
        return {**state_dict, "param_groups": own}

    def _another(self, group: dict[str, Any]) -> str | None:
        """Name the class that a group was saved by, if it was another one."""
        if _CLASS in group:
            return group[_CLASS] if group[_CLASS] != type(self).__name__ else None
        lacking = [name for name in self.defaults if name not in group]
        foreign = [name for name in _TELLTALE if name in group and name not in self.defaults]
        if lacking or foreign:
            return f"an optimizer with {foreign[0]!r}" if foreign else "another optimizer"
        return None


def check_groups(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Notice, for an optimizer of torch's, a state dict that is one of ours.

    Raises:
        ValueError: its groups lack what the optimizer would miss at a step.

    Warns:
        UserWarning: they do not, and what both keep may mean something else.
    """
    name = type(optimizer).__name__
    for group in state_dict["param_groups"]:
        lacking = [option for option in optimizer.defaults if option not in group]
        whose = group.get(_CLASS, "another optimizer")
        if lacking and (_CLASS in group or "xi" in group):
            raise ValueError(
                f"loaded state dict is not one of {name}, but of {whose}: its groups lack {lacking}"
            )
        if _CLASS in group:
            _warn_of_another(whose, name)


def _warn_of_another(whose: str, name: str) -> None:
    warnings.warn(
        f"the loaded state dict is one of {whose}, not of {name}: what both call by the same name "
        f"may mean something else, and the options of the groups are those of {whose} where both "
        "have them. To start afresh, load the model's weights alone",
        stacklevel=5,
    )


def check_layer(
    optimizer: Optimizer, param: Tensor, state: dict[str, Any] | None, layer_mean: LayerMean
) -> None:
    """Raise a RuntimeError if a layer's gradient or its state is not of the layer's size."""
    fault = fault_of(param, state, layer_mean) if state else None
    if param.grad is not None and param.grad.shape != param.shape:
        fault = f"its gradient has the shape {[*param.grad.shape]}, not {[*param.shape]}"
    if fault:
        raise RuntimeError(
            f"{type(optimizer).__name__} cannot update a layer of the shape {[*param.shape]}: "
            f"{fault}. Where a parameter is changed in size, so have to be its gradient and its "
            "state, or delete optimizer.state[parameter]"
        )


def fault_of(param: Tensor, state: dict[str, Any], layer_mean: LayerMean) -> str | None:
    """Say what of a layer's state is missing or has another shape than it has to have."""
    for name in ("step", "exp_avg", "exp_avg_sq"):
        if name not in state:
            return f"it lacks {name!r}"
    averaged = layer_mean == "statistic"
    shape, shape_sq = param.shape, torch.Size() if averaged else param.shape
    for name, expected in (("exp_avg", shape), ("exp_avg_sq", shape_sq)):
        if (found := getattr(state[name], "shape", None)) != expected:
            shown = "no shape" if found is None else f"the shape {[*found]}"
            return f"{name} has {shown}, not {[*expected]}"
    return None


def restore_dtypes(optimizer: Optimizer, layer_mean: LayerMean, state_dict: dict[str, Any]) -> None:
    """Undo torch's cast of all loaded state to the parameter's dtype, from what was saved."""
    for saved, param, group in saved_layers(optimizer, state_dict):
        state = optimizer.state[param]
        state["step"] = _step(saved["step"], param, group["capturable"])
        state["exp_avg_sq"] = saved["exp_avg_sq"].to(
            param.device, _statistic_dtype(param, layer_mean)
        )


def _step(value: float | Tensor, param: Tensor, capturable: bool) -> Tensor:
    # On the host it can be read without a wait; a graph to be captured needs it on the device.
    device = param.device if capturable else torch.device("cpu")
    return torch.as_tensor(value, dtype=step_dtype(), device=device)


def _statistic_dtype(param: Tensor, layer_mean: LayerMean) -> torch.dtype:
    # In float16 an eps of 1e-8 is 0; in bfloat16 v * 0.999 rounds back to v and never decays.
    half = param.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else param.dtype
    return dtype.to_real() if layer_mean == "statistic" else dtype


def saved_layers(
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
