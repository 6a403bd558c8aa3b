"""The state of a layer: its initial value, and its restoration from a checkpoint."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from aida_lightning._private import step_dtype
from aida_lightning.optim._kernels.rule import LayerMean
from aida_lightning.optim._partition import Layout, is_cut, layout_of, new_statistics, number_of
from aida_lightning.optim._renaming import by_name, check_places

# The key of a group in a state dict that says which class saved it.
_CLASS = "optimizer"
# Options that identify the optimizer of groups that do not name their class.
_TELLTALE = (
    "k",
    "xi",
    "tau",
    "amsgrad",
    "momentum",
    "initial_accumulator",
    "decoupled_weight_decay",
)


def new_state(
    param: Tensor, layer_mean: LayerMean, *, capturable: bool, layout: Layout = None
) -> dict[str, Tensor]:
    """Make the state of a layer that has taken no step, or of a tensor that is cut into layers."""
    averaged = layer_mean == "statistic" and layout != "elements"
    dtype = _statistic_dtype(param, averaged=averaged)
    if averaged:
        exp_avg_sq = new_statistics(param, layout, dtype)
    else:
        exp_avg_sq = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    return {
        "step": _step(0.0, param, capturable),
        "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
        "exp_avg_sq": exp_avg_sq,
    }


class OwnStateOptimizer(Optimizer):
    """Base class of optimizers that name themselves in their state dict, and check it on loading.

    Different optimizers keep states of the same name, such as ``exp_avg_sq``, that mean different
    things. torch's distributed checkpoints in flat form keep no class name.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state in torch's format, with the class's name in each group."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group[_CLASS] = type(self).__name__
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state.

        Raises:
            ValueError: a layer's state lacks what this class keeps or has another shape, or the
                groups do not fit. In this case, nothing is loaded.

        Warns:
            UserWarning: another class saved the state.
        """
        handle = self.register_load_state_dict_pre_hook(
            lambda _, given: self._check_loaded(by_name(self, given))
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _check_state(
        self, param: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> str | None:
        """Describe what is missing or does not fit in a layer's state, or return None."""
        return fault_of(param, state, None)

    def _own_options(self, saved: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a saved group that the optimizer's own group takes."""
        return {key: value for key, value in saved.items() if key != _CLASS}

    def _check_loaded(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Check a state dict after the user's own hooks, and remove the name from its groups."""
        name = type(self).__name__
        groups = state_dict["param_groups"]
        another = next((other for g in groups if (other := self._another(g))), None)
        # Not strict, because torch itself refuses groups that do not fit.
        pairs = [*zip(groups, self.param_groups, strict=False)]
        own = [self._own_options(saved, ours) for saved, ours in pairs]
        group_of = {id(ours): options for (_, ours), options in zip(pairs, own, strict=True)}
        for saved, param, ours in saved_layers(self, state_dict):
            if fault := self._check_state(param, saved, group_of[id(ours)]):
                whose = f", but of {another}" if another else ""
                raise ValueError(f"loaded state dict is not one of {name}{whose}: {fault}")
        if another:
            _warn_of_another(another, name)
        return {**state_dict, "param_groups": [*own, *groups[len(own) :]]}

    def _another(self, group: dict[str, Any]) -> str | None:
        """Return the name of the class that saved a group, if it was a different one."""
        if _CLASS in group:
            return group[_CLASS] if group[_CLASS] != type(self).__name__ else None
        lacking = [n for n in self.defaults if n not in group and n != "partition"]
        foreign = [name for name in _TELLTALE if name in group and name not in self.defaults]
        if lacking or foreign:
            return f"an optimizer with {foreign[0]!r}" if foreign else "another optimizer"
        return None


def check_groups(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Check, for one of torch's optimizers, whether a state dict is from this package.

    Raises:
        ValueError: the groups lack options that the optimizer needs for a step, or are not those
            of the optimizer.

    Warns:
        UserWarning: the groups have these options, but entries of one name may differ in meaning.
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
    check_places(optimizer, state_dict)


def _warn_of_another(whose: str, name: str) -> None:
    warnings.warn(
        f"the loaded state dict is one of {whose}, not of {name}: entries with the same name may "
        f"mean different things, and options that both have keep the values of {whose}. To start "
        "afresh, load only the model's weights",
        stacklevel=5,
    )


def check_layer(
    optimizer: Optimizer,
    param: Tensor,
    state: dict[str, Any] | None,
    layer_mean: LayerMean,
    layout: Layout,
) -> None:
    """Raise a RuntimeError if a layer's gradient or state does not have the layer's size."""
    fault = fault_of(param, state, layer_mean, layout) if state else None
    if param.grad is not None and param.grad.shape != param.shape:
        fault = f"its gradient has the shape {[*param.grad.shape]}, not {[*param.shape]}"
    if fault:
        raise RuntimeError(
            f"{type(optimizer).__name__} cannot update a layer of the shape {[*param.shape]}: "
            f"{fault}. When you resize a parameter, also resize its gradient and its state, or "
            "delete optimizer.state[parameter]"
        )


def fault_of(
    param: Tensor, state: dict[str, Any], layer_mean: LayerMean, layout: Layout = None
) -> str | None:
    """Describe what is missing or has the wrong shape in a layer's state, or return None."""
    for name in ("step", "exp_avg", "exp_avg_sq"):
        if name not in state:
            return f"it lacks {name!r}"
    shape = shape_sq = param.shape
    if layer_mean == "statistic" and layout != "elements":
        shape_sq = torch.Size([number_of(layout)] if is_cut(layout) else [])
    for name, expected in (("exp_avg", shape), ("exp_avg_sq", shape_sq)):
        if (found := getattr(state[name], "shape", None)) != expected:
            shown = "no shape" if found is None else f"the shape {[*found]}"
            hint = ""
            if name == "exp_avg_sq" and layer_mean == "statistic":
                hint = "; it holds one number per part, so `partition` must be what it was"
            return f"{name} has {shown}, not {[*expected]}{hint}"
    return None


def restore_dtypes(optimizer: Optimizer, layer_mean: LayerMean, state_dict: dict[str, Any]) -> None:
    """Undo torch's cast of loaded state to the parameter's dtype, from the saved state."""
    for saved, param, group in saved_layers(optimizer, state_dict):
        state = optimizer.state[param]
        state["step"] = _step(saved["step"], param, group["capturable"])
        layout = layout_of(group["partition"], param)
        averaged = layer_mean == "statistic" and layout != "elements"
        state["exp_avg_sq"] = saved["exp_avg_sq"].to(
            param.device, _statistic_dtype(param, averaged=averaged)
        )


def _step(value: float | Tensor, param: Tensor, capturable: bool) -> Tensor:
    # The host can read its own memory without a wait; a captured graph needs it on the device.
    device = param.device if capturable else torch.device("cpu")
    return torch.as_tensor(value, dtype=step_dtype(), device=device)


def _statistic_dtype(param: Tensor, *, averaged: bool) -> torch.dtype:
    # In float16 an eps of 1e-8 is 0; in bfloat16 v * 0.999 rounds back to v and never decays.
    half = param.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else param.dtype
    return dtype.to_real() if averaged else dtype


def saved_layers(
    optimizer: Optimizer, state_dict: dict[str, Any]
) -> list[tuple[dict[str, Any], Tensor, dict[str, Any]]]:
    """Pair each layer's saved state with its parameter and its group."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    ours = [(param, group) for group in optimizer.param_groups for param in group["params"]]
    # Not strict, because torch itself refuses groups that do not fit.
    return [
        (saved, param, group)
        for key, (param, group) in zip(keys, ours, strict=False)
        if (saved := state_dict["state"].get(key))
    ]
