"""The engine of the family: options, state, and the choice of a kernel."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from aida_lightning._private import (
    capturable_devices,
    check_graph_capture,
    default_to_fused_or_foreach,
    use_grad_for_differentiable,
)
from aida_lightning.optim._collecting import by_elements, count_steps, numel, real
from aida_lightning.optim._kernels.dispatch import dispatch, update
from aida_lightning.optim._kernels.layers import Layers
from aida_lightning.optim._kernels.rule import LayerMean, UpdateRule
from aida_lightning.optim._kernels.tracking import Track
from aida_lightning.optim._options import checked_options
from aida_lightning.optim._partition import (
    Layout,
    Partition,
    check_elements,
    check_partition,
    is_cut,
    layout_of,
    lies_whole,
    number_of,
    parts_of,
)
from aida_lightning.optim._reading import mean_stepsizes, stepsizes_of
from aida_lightning.optim._renaming import by_name
from aida_lightning.optim._sharding import (
    SharedLayers,
    aligned,
    check_whole,
    is_distributed,
    local_part,
)
from aida_lightning.optim._state import (
    OwnStateOptimizer,
    check_layer,
    fault_of,
    new_state,
    restore_dtypes,
)

# What a state dict holds in place of a callable partition.
_BY_CALLABLE = "callable"


class LayerwiseOptimizer(OwnStateOptimizer):
    r"""Base class of the family; a member chooses what it tracks and where it takes a layer mean.

    A *layer* is one parameter tensor. At step :math:`t`, :math:`d` is the tracked vector and all
    products of vectors are elementwise:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) d_t^2 + \epsilon \\
        s_t &= 1 / \sqrt{v_t / (1 - \beta_2^t)} \\
        x_t &= x_{t-1} - \eta \, \frac{m_t}{1 - \beta_1^t} \, s_t

    :math:`\epsilon` stays in the state, so no adaptive stepsize :math:`s` ever exceeds
    :math:`\sqrt{(1 - \beta_2) / \epsilon}`, 316.2 at the defaults.

    Attributes:
        track: tracked vector, one of the tracks of ``aida_lightning.optim._kernels.tracking``.
        layer_mean: what is replaced by its mean over the layer: ``"statistic"`` for :math:`d^2`,
            ``"stepsize"`` for :math:`s`, None for neither.
        eps_in_denominator: whether :math:`s = 1 / (\sqrt{v / (1 - \beta_2^t)} + \epsilon)`.
        suppresses_range: whether :math:`s = 1 / (w - \tau \min w)` with :math:`w = \sqrt{c^2 v /
            (1 - \beta_2^t) + \epsilon}`, where :math:`c` is the cosine of the angle between
            :math:`v` and the vector of ones; :math:`v` itself then has no :math:`\epsilon`.

    Args:
        params: parameters, named parameters, or dicts that define groups of them.
        defaults: default options by name, for groups that do not set them.
    """

    track: ClassVar[Track]
    layer_mean: ClassVar[LayerMean] = None
    eps_in_denominator: ClassVar[bool] = False
    suppresses_range: ClassVar[bool] = False

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, checked_options(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters and check its options as the constructor does.

        Raises:
            ValueError: an option is outside of its range.
            TypeError: an option is not a number.
        """
        options = checked_options({**self.defaults, **param_group})
        param_group.update((name, options[name]) for name in param_group)
        super().add_param_group(self._with_names(param_group))
        try:
            check_partition(self.param_groups[-1], suppresses_range=self.suppresses_range)
        except (ValueError, TypeError):
            self.param_groups.pop()  # as if it had never been added
            raise

    def _with_names(self, group: dict[str, Any]) -> dict[str, Any]:
        """Name an unnamed group that joins named groups, because torch would refuse it."""
        params = group["params"]
        if not any("param_names" in ours for ours in self.param_groups):
            return group
        if isinstance(params, set):  # torch refuses it, too
            return group
        params = [params] if isinstance(params, Tensor) else list(params)
        if any(isinstance(param, tuple) for param in params):
            return {**group, "params": params}
        count = len(self.param_groups)
        named = [(f"group_{count}.{index}", param) for index, param in enumerate(params)]
        return {**group, "params": named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in torch's format; a callable `partition` is not part of it."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            if callable(group["partition"]):
                group["partition"] = _BY_CALLABLE
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and keep the dtypes of the steps and the moving averages of squares.

        torch casts all state to the parameter's dtype. This cast rounds step 1,000,001 to 999,424
        in bfloat16 and loses ``eps`` from ``exp_avg_sq`` in float16.

        If the layers have names and the saved groups are others, each state goes to the layer of
        the same name, and a warning says what moved, starts afresh, or was dropped.

        Raises:
            ValueError: a layer's state lacks what this class keeps or has another shape, or the
                groups do not fit. In this case, nothing is loaded.
        """
        loaded: dict[str, Any] = {}

        def remember(_: Optimizer, after_users_hooks: dict[str, Any]) -> dict[str, Any]:
            loaded.update(by_name(self, after_users_hooks))
            return loaded

        def restore(_: Optimizer) -> None:
            restore_dtypes(self, self.layer_mean, loaded)

        first = self.register_load_state_dict_pre_hook(remember)
        second = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            first.remove()
            second.remove()

    def _check_state(
        self, param: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> str | None:
        return fault_of(param, state, self.layer_mean, layout_of(group["partition"], param))

    def _own_options(self, saved: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        options = super()._own_options(saved, ours)
        if options.get("partition", _BY_CALLABLE) == _BY_CALLABLE:
            options["partition"] = ours["partition"]
        return options

    @use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step.

        Args:
            closure: function that reevaluates the model and returns the loss.

        Returns:
            The value that ``closure`` returned, or None without a closure.

        Raises:
            RuntimeError: a gradient is sparse, or the step needs a sum over a whole layer but
                cannot find the layer's other parts.
        """
        check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.param_groups:
            return loss
        if not torch.compiler.is_compiling():
            self._check_layers()
        parts_of_groups: list[tuple[str, Layers, UpdateRule]] = []
        whole: dict[Tensor, Tensor] = {}  # keyed by the local part in a batch
        distributed = False
        for group in self.param_groups:
            layers = Layers([], [], [], [], [], [], {})
            is_plain = self._init_group(group, *layers.tensors())
            layers.numels.extend(numel(param) for param in layers.params)
            layouts: list[Layout] = []
            if (partition := group["partition"]) is not None and self._takes_layer_sums:
                layouts = [self._layout(partition, param) for param in layers.params]
                parts = [*map(parts_of, layers.params, layouts)]
                layers = layers._replace(parts=parts if any(parts) else ())
            if not is_plain:
                distributed |= any(is_distributed(param) for param in group["params"])
                layers.grads[:] = map(aligned, layers.grads, layers.params)
                local = layers.map(lambda tensor: real(local_part(tensor)))
                whole |= zip(local.params, layers.params, strict=True)
                layers = local
            kernel, rule = self._kernel(group, layers.params), self._rule(group)
            for of_layers, part in by_elements(layers, layouts, rule):
                parts_of_groups.append((kernel, part, of_layers))
        batches = [batch for part in parts_of_groups for batch in dispatch(*part)]
        for _, layers, _ in parts_of_groups:
            if layers.steps:
                count_steps(layers.steps)
        if distributed and self._takes_layer_sums:
            update(batches, rule, SharedLayers(self._counts_to_complete(), whole).complete)
        else:
            update(batches, rule)
        if distributed:
            # Autograd must notice that the parameters that it saved have changed.
            torch.autograd.graph.increment_version(list(whole.values()))
        return loss

    def _layout(self, partition: Partition, param: Tensor) -> Layout:
        """Find how the step cuts a parameter; layers of one element need no sums."""
        layout = layout_of(partition, param)
        single = param.ndim == 1 and layout == len(param) and not param.is_complex()
        same = self.track.is_constant and not self.suppresses_range  # as the equations say it
        return "elements" if single and same else layout

    def _counts_to_complete(self) -> Iterator[tuple[Tensor, int]]:
        """Yield all parameters, with the number of their layers that processes may share."""
        for group in self.param_groups:
            for param in group["params"]:
                layout = layout_of(group["partition"], param)
                if not is_cut(layout):
                    yield param, 0 if layout else 1
                else:
                    yield param, 0 if lies_whole(param, layout) else number_of(layout)

    def stepsize(self, param: Tensor) -> Tensor:
        r"""Compute the adaptive stepsizes :math:`s` of a layer from its state.

        Args:
            param: one of the optimizer's parameters, after at least one step.

        Returns:
            A new real tensor in the dtype of ``exp_avg_sq``. It has the parameter's shape, with an
            added last dimension of 2 if the parameter is complex. If the statistic is averaged, it
            is 0-dim, or of shape ``(rows, 1, ..., 1)`` if the parameter is cut along dimension 0
            by ``partition``. It is a DTensor if processes share the layer; if the range of the
            stepsizes is suppressed or the parameter is cut, all of these processes must make the
            call.

        Raises:
            KeyError: the parameter is not one of the optimizer's, or no step has updated it yet.
        """
        group = next((g for g in self.param_groups if any(p is param for p in g["params"])), None)
        if group is None or not self.state.get(param):
            raise KeyError("no stepsize: the tensor is not a parameter that a step has updated")
        return self._stepsize(group, self.state[param])

    @torch.no_grad()
    def _stepsize(
        self, group: dict[str, Any], state: dict[str, Any], *, applied: bool = False
    ) -> Tensor:
        """Compute a parameter's stepsizes, or the means that are `applied` in their place."""
        means = applied and self.layer_mean == "stepsize"
        layout: Layout = None
        if means or self.layer_mean == "statistic" or self.suppresses_range:
            partition, param = group["partition"], state["exp_avg"]
            if callable(partition):  # `state` may hold the same tensors in another dict
                owners = (p for p in group["params"] if self._holds(p, state["step"]))
                param = next(owners, param)
            layout = layout_of(partition, param)
        s = stepsizes_of(self._rule(group), state, layout)
        return mean_stepsizes(s, layout) if means else s

    def _holds(self, param: Tensor, step: Tensor) -> bool:
        return self.state.get(param, {}).get("step") is step

    def _check_layers(self) -> None:
        """Raise an error if any layer cannot be updated, before any of them is."""
        for group in self.param_groups:
            for param in group["params"]:
                grad, state = param.grad, self.state.get(param)
                if grad is None:
                    continue
                if grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                if self._takes_layer_sums:
                    check_whole(self, param)
                layout = layout_of(group["partition"], param)
                check_elements(layout, suppresses_range=self.suppresses_range)
                check_layer(self, param, state, self.layer_mean, layout)
                if group["capturable"]:
                    _check_capturable(param, state)

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
    ) -> bool:
        """Collect the layers with a gradient, initialise new state, and report if all are plain.

        A layer is plain if it is neither complex nor shared by processes. The lists to fill and the
        plain return value have the form that torch.compile expects of this method.
        """
        is_plain = True
        for param in group["params"]:
            is_plain &= not (param.is_complex() or is_distributed(param))
            if param.grad is None:
                continue
            state = self.state[param]
            if len(state) == 0:
                capturable, layout = group["capturable"], layout_of(group["partition"], param)
                state.update(
                    new_state(param, self.layer_mean, capturable=capturable, layout=layout)
                )
            params.append(param)
            grads.append(param.grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            steps.append(state["step"])
        return is_plain

    @property
    def _takes_layer_sums(self) -> bool:
        elementwise = self.layer_mean is None and not self.suppresses_range
        return not (elementwise and self.track.is_constant)

    def _kernel(self, group: dict[str, Any], params: list[Tensor]) -> str:
        if group["fused"]:
            supported = ["cpu", "cuda"]
            if others := {param.device.type for param in params}.difference(supported):
                raise RuntimeError(
                    "`fused=True` requires all the params to be on supported devices: "
                    f"{supported}, got {sorted(others)}; omit `fused` and `foreach` to use the "
                    "best implementation there"
                )
            return "fused"
        use_foreach = group["foreach"]
        if use_foreach is None:
            _, use_foreach = default_to_fused_or_foreach(params, group["differentiable"])
            # torch does the same: a tensor lr without capturable costs foreach one wait per layer.
            if use_foreach and isinstance(group["lr"], Tensor) and not group["capturable"]:
                use_foreach = False
        if use_foreach and group["differentiable"]:
            raise AssertionError("_foreach ops don't support autograd")
        return "foreach" if use_foreach else "loop"

    def _rule(self, group: dict[str, Any]) -> UpdateRule:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        return UpdateRule(
            track=self.track,
            layer_mean=self.layer_mean,
            eps_in_denominator=self.eps_in_denominator,
            suppresses_range=self.suppresses_range,
            k=group.get("k", 0),
            xi=group.get("xi", 0.0),
            tau=group.get("tau", 0.0),
            lr=lr.squeeze() if isinstance(lr, Tensor) else lr,
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
        )


def _check_capturable(param: Tensor, state: dict[str, Any] | None) -> None:
    devices = capturable_devices()
    beside = not state or state["step"].device.type == param.device.type
    if not beside or param.device.type not in devices:
        raise AssertionError(
            f"If capturable=True, params and state_steps must be on supported devices: {devices}."
        )
