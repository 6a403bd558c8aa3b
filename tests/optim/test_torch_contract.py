"""The ten members in torch's own harness for optimizers, ``OptimizerInfo`` and ``@optims``.

What torch's suite asks of NAdam, the nearest of its optimizers, is asked of each member. Left out:
- sparse parameters and gradients: NAdam has none either, and both refuse them;
- several GPUs in one process: there is one at most where these tests run.
Tests that need a GPU are made only where there is one, by ``instantiate_device_type_tests``.
"""

import copy
import io
import math
import unittest
import warnings

import pytest
import reference
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.testing._internal import common_optimizers as torchs
from torch.testing._internal.common_device_type import instantiate_device_type_tests, onlyCUDA
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    TensorTracker,
    optims,
)
from torch.testing._internal.common_utils import TestCase

from aida_lightning import optim


def inputs(name):
    def make(device, dtype=None):
        configurations = [
            {},
            {"lr": 1e-2},
            {"lr": 1e-2, "eps": 1e-16},
            {"betas": (0.5, 0.9)},
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "decoupled_weight_decay": True},
            {"weight_decay": 0.1, "maximize": True},
        ]
        if name in ("Aida", "LAida"):
            configurations += [{"k": 0}, {"k": 1, "weight_decay": 0.1}, {"k": 5}]
        if torch.device(device).type == "cuda":
            configurations += [
                {"capturable": True},
                {"capturable": True, "weight_decay": 0.1},
                {"capturable": True, "lr": torch.tensor(1e-3)},
            ]
        return [OptimizerInput(params=None, kwargs=kw, desc=str(kw)) for kw in configurations]

    return make


def error_inputs(device, dtype):
    errors = torchs.get_error_inputs_for_all_optims(device, dtype)
    for kwargs, message in [
        ({"betas": (1.0, 0.0)}, "Invalid beta parameter at index 0: 1.0"),
        ({"eps": 0.0}, "Invalid epsilon value: 0.0"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        (
            {"lr": torch.tensor(0.001), "foreach": True},
            "lr as a Tensor is not supported for capturable=False and foreach=True",
        ),
    ]:
        errors.append(
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)),
                error_type=ValueError,
                error_regex=message,
            )
        )
    for kwargs, message in [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together."),
        ({"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
    ]:
        errors.append(
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)),
                error_type=RuntimeError,
                error_regex=message,
            )
        )
    return errors


def info(name):
    return OptimizerInfo(
        getattr(optim, name),
        optim_inputs_func=inputs(name),
        optim_error_inputs_func=error_inputs,
        supported_impls=("foreach", "fused", "differentiable"),
        supports_fused_on=("cpu",),
        has_capturable_arg=True,
    )


# In place, so that whatever in torch's harness reads its list of optimizers reads ours.
torchs.optim_db[:] = [info(name) for name in sorted(reference.MEMBERS)]
optim_db = torchs.optim_db


def every_input(device, dtype, optim_info, skip=("differentiable",)):
    return torchs._get_optim_inputs_including_global_cliquey_kwargs(
        device, dtype, optim_info, skip=skip
    )


def small_model(device, dtype):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()
    ).to(dtype=dtype, device=device)


def closure_of(model, optimizer, device, dtype):
    batch = torch.ones((5, 2), device=device, dtype=dtype) * 0.5

    def closure():
        optimizer.zero_grad()
        loss = model(batch).sum()
        loss.backward()
        return loss

    return closure


class TestOptimRenewed(TestCase):
    @optims(optim_db)
    def test_construction_errors(self, device, dtype, optim_info):
        for error_input in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = error_input.optimizer_error_input
            params = given.params
            if params is None:
                params = [Parameter(torch.randn(2, device=device, dtype=dtype))]
            self.assertEqual(error_input.error_on, OptimizerErrorEnum.CONSTRUCTION_ERROR)
            if issubclass(error_input.error_type, Warning):
                with pytest.warns(error_input.error_type, match=error_input.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)
            else:
                with self.assertRaisesRegex(error_input.error_type, error_input.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)

    @optims(optim_db, dtypes=[torch.float32, torch.float64])
    def test_forloop_goes_right_direction(self, device, dtype, optim_info):
        self._goes_right_direction(device, dtype, optim_info, schedulers=[], foreach=False)

    @optims(optim_db, dtypes=[torch.float32])
    def test_foreach_goes_right_direction_with_lrsched(self, device, dtype, optim_info):
        schedulers = [lambda o: StepLR(o, gamma=0.9, step_size=10), ReduceLROnPlateau]
        self._goes_right_direction(device, dtype, optim_info, schedulers, foreach=True)

    def _goes_right_direction(self, device, dtype, optim_info, schedulers, foreach):
        for optim_input in optim_info.optim_inputs_func(device=device):
            if isinstance(optim_input.kwargs.get("lr"), torch.Tensor):
                continue
            torch.manual_seed(1)
            weight = Parameter(torch.randn(10, 5, device=device, dtype=dtype))
            bias = Parameter(torch.randn(10, device=device, dtype=dtype))
            batch = torch.randn(5, device=device, dtype=dtype)
            # Averaged statistics see the batch's mean, whose sign the sum of squares is safe from.
            optimizer = optim_info.optim_cls(
                [weight, bias], foreach=foreach, **{"lr": 1e-3, **optim_input.kwargs}
            )
            built = [make(optimizer) for make in schedulers]

            def closure(weight=weight, bias=bias, batch=batch, optimizer=optimizer):
                optimizer.zero_grad()
                loss = (weight.mv(batch) + bias).pow(2).sum()
                loss.backward()
                return loss

            first = closure().item()
            for _ in range(20):
                closure()
                optimizer.step()
                for scheduler in built:
                    scheduler.step(first) if isinstance(
                        scheduler, ReduceLROnPlateau
                    ) else scheduler.step()
            if optim_input.kwargs.get("maximize"):
                self.assertGreater(closure().item(), first)
            else:
                self.assertLess(closure().item(), first)

    @optims(optim_db, dtypes=[torch.float32])
    def test_param_groups_have_their_own_lr_and_weight_decay(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            kwargs = {
                k: v for k, v in optim_input.kwargs.items() if k not in ("lr", "weight_decay")
            }
            frozen = Parameter(torch.ones(3, device=device, dtype=dtype))
            moving = Parameter(torch.ones(3, device=device, dtype=dtype))
            optimizer = optim_info.optim_cls(
                [
                    {"params": [moving], "lr": 0.1, "weight_decay": 0.5},
                    {"params": [frozen], "lr": 0.0},
                ],
                **kwargs,
            )
            for param in (frozen, moving):
                param.grad = torch.full_like(param, 0.25)
            optimizer.step()
            self.assertEqual(frozen, torch.ones_like(frozen))
            self.assertNotEqual(moving, torch.ones_like(moving))

    @optims(optim_db, dtypes=[torch.float32])
    def test_tensor_lr_equals_float_lr(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            kwargs = {**optim_input.kwargs}
            kwargs.pop("lr", None)
            if kwargs.get("foreach") and not kwargs.get("capturable"):
                continue  # refused, as torch's Adam refuses it; see the construction errors
            for shape in ((), (1,)):
                results = []
                for lr in (1e-3, torch.full(shape, 1e-3, dtype=torch.float64)):
                    model = small_model(device, dtype)
                    optimizer = optim_info.optim_cls(model.parameters(), lr=lr, **kwargs)
                    for _ in range(5):
                        closure_of(model, optimizer, device, dtype)()
                        optimizer.step()
                    results.append([p.detach().clone() for p in model.parameters()])
                self.assertEqual(results[0], results[1], rtol=1e-5, atol=1e-6)

    @optims(optim_db, dtypes=[torch.float32, torch.float64])
    def test_foreach_matches_forloop(self, device, dtype, optim_info):
        self._matches_forloop(device, dtype, optim_info, {"foreach": True})

    @optims(optim_db, dtypes=[torch.float32, torch.float64, torch.bfloat16])
    def test_fused_matches_forloop(self, device, dtype, optim_info):
        self._matches_forloop(device, dtype, optim_info, {"fused": True})

    def _matches_forloop(self, device, dtype, optim_info, kernel):
        for optim_input in optim_info.optim_inputs_func(device=device):
            if isinstance(optim_input.kwargs.get("lr"), torch.Tensor):
                continue
            tolerance = {
                torch.float64: {},
                torch.float32: {"rtol": 1e-4, "atol": 1e-6},
                # The momentum is rounded before or after it is used.
                torch.bfloat16: {"rtol": 0.05, "atol": 1e-3},
            }
            tracker = TensorTracker(tolerance[dtype])
            for options in ({"foreach": False}, kernel):
                model = small_model(device, dtype)
                # Empty and 0-dim layers, which a batch over all layers has to get right as well.
                more = [
                    Parameter(torch.empty((), device=device, dtype=dtype).fill_(0.5)),
                    Parameter(torch.empty((0,), device=device, dtype=dtype)),
                ]
                params = [*model.parameters(), *more]
                optimizer = optim_info.optim_cls(params, **options, **optim_input.kwargs)
                for _ in range(7):
                    closure_of(model, optimizer, device, dtype)()
                    for param in more:
                        param.grad = torch.ones_like(param)
                    optimizer.step()
                    for param in params:
                        for value in (param, *optimizer.state[param].values()):
                            if options is kernel:
                                tracker.pop_check_set(value, self)
                            else:
                                tracker.add(value)
            self.assertTrue(tracker.all_popped())

    @optims(optim_db, dtypes=[torch.float32])
    def test_mixed_dtypes_in_one_group(self, device, dtype, optim_info):
        dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
        for optim_input in optim_info.optim_inputs_func(device=device):
            if "eps" in optim_input.kwargs or isinstance(
                optim_input.kwargs.get("lr"), torch.Tensor
            ):
                continue
            results = []
            for kernel in ({"foreach": False}, {"foreach": True}, {"fused": True}):
                params = [
                    Parameter(torch.full((2, 3), 0.5, device=device, dtype=each)) for each in dtypes
                ]
                optimizer = optim_info.optim_cls(params, **kernel, **optim_input.kwargs)
                for step in range(7):
                    for index, param in enumerate(params):
                        param.grad = torch.full_like(param, 0.1 * (index + 1) * (-1) ** step)
                    optimizer.step()
                results.append([p.detach().clone() for p in params])
                self.assertEqual([p.dtype for p in params], dtypes)
                for param in params:
                    statistic = optimizer.state[param]["exp_avg_sq"]
                    expected = torch.float64 if param.dtype == torch.float64 else torch.float32
                    self.assertEqual(statistic.dtype, expected)
            for other in results[1:]:
                self.assertEqual(results[0], other, rtol=1e-5, atol=1e-5)
            for low in results[0][1:]:
                self.assertTrue(torch.isfinite(low).all())

    @optims(optim_db, dtypes=[torch.complex64, torch.complex128])
    def test_complex_equals_real_views(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            torch.manual_seed(0)
            start = torch.randn(10, 5, device=device, dtype=dtype)
            complex_param = Parameter(start.clone())
            real_param = Parameter(torch.view_as_real(start.clone()))
            both = [
                optim_info.optim_cls([param], **optim_input.kwargs)
                for param in (complex_param, real_param)
            ]
            for _ in range(4):
                gradient = torch.randn_like(start)
                complex_param.grad = gradient
                real_param.grad = torch.view_as_real(gradient)
                for optimizer in both:
                    optimizer.step()
                self.assertEqual(torch.view_as_real(complex_param), real_param)

    @optims(optim_db, dtypes=[torch.float32])
    def test_state_dict_is_deterministic(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            model = small_model(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **optim_input.kwargs)
            closure = closure_of(model, optimizer, device, dtype)
            for _ in range(3):
                closure()
                optimizer.step()
            twin = copy.deepcopy(model)
            resumed = optim_info.optim_cls(twin.parameters(), **optim_input.kwargs)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            self.assertEqual(resumed.state_dict(), optimizer.state_dict())
            for _ in range(3):
                closure()
                optimizer.step()
                closure_of(twin, resumed, device, dtype)()
                resumed.step()
                self.assertEqual(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)

    @optims(optim_db, dtypes=[torch.float32])
    def test_save_load_equality_with_weights_only(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            model = small_model(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **optim_input.kwargs)
            closure_of(model, optimizer, device, dtype)()
            optimizer.step()
            with io.BytesIO() as file:
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                loaded = torch.load(file, weights_only=True)
            self.assertEqual(loaded, optimizer.state_dict())

    @optims(optim_db, dtypes=[torch.float32])
    def test_can_load_older_state_dict(self, device, dtype, optim_info):
        flags = (
            "foreach",
            "fused",
            "maximize",
            "capturable",
            "differentiable",
            "decoupled_weight_decay",
        )
        for optim_input in every_input(device, dtype, optim_info):
            model = small_model(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **optim_input.kwargs)
            closure = closure_of(model, optimizer, device, dtype)
            closure()
            optimizer.step()
            older = copy.deepcopy(optimizer.state_dict())
            for group in older["param_groups"]:
                for flag in flags:
                    group.pop(flag)
            optimizer.load_state_dict(older)
            for flag in flags:
                self.assertIn(flag, optimizer.param_groups[0])
            closure()
            optimizer.step()

    @optims(optim_db, dtypes=[torch.float32])
    def test_can_load_a_step_that_is_a_number(self, device, dtype, optim_info):
        model = small_model(device, dtype)
        optimizer = optim_info.optim_cls(model.parameters())
        closure = closure_of(model, optimizer, device, dtype)
        closure()
        optimizer.step()
        state_dict = copy.deepcopy(optimizer.state_dict())
        for state in state_dict["state"].values():
            state["step"] = state["step"].item()
        optimizer.load_state_dict(state_dict)
        closure()
        optimizer.step()
        steps = {state["step"].item() for state in optimizer.state.values()}
        self.assertEqual(steps, {2.0})

    @optims(optim_db, dtypes=[torch.float32])
    def test_can_load_from_and_to_a_named_state_dict(self, device, dtype, optim_info):
        for named_first in (False, True):
            model = small_model(device, dtype)
            optimizers = [
                optim_info.optim_cls(
                    model.named_parameters() if named else model.parameters(), lr=1e-2
                )
                for named in (named_first, not named_first)
            ]
            closure_of(model, optimizers[0], device, dtype)()
            optimizers[0].step()
            optimizers[1].load_state_dict(optimizers[0].state_dict())
            self.assertEqual(
                [s for s in optimizers[0].state_dict()["state"].values()],
                [s for s in optimizers[1].state_dict()["state"].values()],
            )

    @optims(optim_db, dtypes=[torch.float32])
    def test_step_is_noop_without_gradients(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            param = Parameter(torch.randn(2, 3, device=device, dtype=dtype))
            before = param.detach().clone()
            optimizer = optim_info.optim_cls([param], **optim_input.kwargs)
            optimizer.step()
            self.assertEqual(param, before, rtol=0, atol=0)
            self.assertEqual(len(optimizer.state), 0)

    @optims(optim_db, dtypes=[torch.float32])
    def test_step_is_noop_for_zero_gradients(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            kwargs = {**optim_input.kwargs, "weight_decay": 0.0}
            param = Parameter(torch.randn(2, 3, device=device, dtype=dtype))
            before = param.detach().clone()
            optimizer = optim_info.optim_cls([param], **kwargs)
            param.grad = torch.zeros_like(param)
            optimizer.step()
            self.assertEqual(param, before, rtol=0, atol=0)

    @optims(optim_db, dtypes=[torch.float32])
    def test_distributed_checkpoints_start_of_state_moves_nothing(self, device, dtype, optim_info):
        # torch.distributed.checkpoint makes an optimizer's state by a step on zeros at lr 0.
        for optim_input in every_input(device, dtype, optim_info):
            if isinstance(optim_input.kwargs.get("lr"), torch.Tensor):
                continue
            param = Parameter(torch.randn(2, 3, device=device, dtype=dtype))
            before = param.detach().clone()
            optimizer = optim_info.optim_cls([param], **{**optim_input.kwargs, "lr": 0.0})
            param.grad = torch.zeros_like(param)
            optimizer.step()
            self.assertEqual(param, before, rtol=0, atol=0)
            for value in optimizer.state[param].values():
                self.assertTrue(torch.isfinite(value).all())

    @optims(optim_db, dtypes=[torch.float32])
    def test_hooks_run_around_the_step(self, device, dtype, optim_info):
        param = Parameter(torch.ones(2, device=device, dtype=dtype))
        optimizer = optim_info.optim_cls([param])
        calls = []
        optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *args: calls.append("post"))
        param.grad = torch.ones_like(param)
        optimizer.step()
        self.assertEqual(calls, ["pre", "post"])
        optimizer.register_state_dict_post_hook(lambda *args: calls.append("saved"))
        optimizer.register_load_state_dict_post_hook(lambda *args: calls.append("loaded"))
        optimizer.load_state_dict(optimizer.state_dict())
        self.assertEqual(calls[2:], ["saved", "loaded"])

    @optims(optim_db, dtypes=[torch.float32])
    def test_a_pre_hook_may_replace_what_is_loaded(self, device, dtype, optim_info):
        param = Parameter(torch.ones(2, device=device, dtype=dtype))
        optimizer = optim_info.optim_cls([param])
        param.grad = torch.ones_like(param)
        optimizer.step()

        def later(optimizer, state_dict):
            state_dict = copy.deepcopy(state_dict)
            state_dict["state"][0]["step"].fill_(7.0)
            state_dict["state"][0]["exp_avg_sq"].fill_(3.0)
            return state_dict

        optimizer.register_load_state_dict_pre_hook(later)
        optimizer.load_state_dict(optimizer.state_dict())
        self.assertEqual(optimizer.state[param]["step"].item(), 7.0)
        self.assertTrue((optimizer.state[param]["exp_avg_sq"] == 3.0).all())

    @optims(optim_db, dtypes=[torch.float32])
    def test_deepcopy_copies_all_public_attributes(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            model = small_model(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **optim_input.kwargs)
            closure_of(model, optimizer, device, dtype)()
            optimizer.step()
            twin = copy.deepcopy(optimizer)

            def public(each):
                return {k for k in dir(each) if not k.startswith("_")}

            self.assertEqual(public(twin), public(optimizer))
            self.assertEqual(twin.state_dict(), optimizer.state_dict())

    @optims(optim_db, dtypes=[torch.float32])
    def test_it_can_be_printed(self, device, dtype, optim_info):
        text = repr(optim_info.optim_cls([Parameter(torch.ones(1))]))
        self.assertIn(optim_info.name, text)
        self.assertIn(f"eps: {reference.default_eps(optim_info.name)}", text)

    @optims(optim_db, dtypes=[torch.float32])
    def test_unequal_steps_in_one_group(self, device, dtype, optim_info):
        results = []
        for kernel in ({"foreach": False}, {"foreach": True}, {"fused": True}):
            first, second = (Parameter(torch.ones(3, device=device, dtype=dtype)) for _ in range(2))
            optimizer = optim_info.optim_cls([first, second], lr=0.1, **kernel)
            for step in range(5):
                first.grad = torch.tensor([1.0, -2.0, 0.5], device=device, dtype=dtype)
                second.grad = first.grad.clone() if step >= 3 else None
                optimizer.step()
            self.assertEqual(optimizer.state[first]["step"].item(), 5.0)
            self.assertEqual(optimizer.state[second]["step"].item(), 2.0)
            results.append((first.detach().clone(), second.detach().clone()))
        self.assertEqual(results[0], results[1])
        self.assertEqual(results[0], results[2])

    @optims(optim_db, dtypes=[torch.float64])
    def test_the_step_is_differentiable(self, device, dtype, optim_info):
        def stepped(param, gradient, exp_avg, exp_avg_sq, lr):
            # What autograd sees is the step's input, so the leaf is a clone.
            leaf = param.clone()
            leaf.grad = gradient
            optimizer = optim_info.optim_cls([leaf], lr=lr, differentiable=True, weight_decay=0.1)
            optimizer.state[leaf] = {
                "step": torch.tensor(10.0, dtype=dtype),
                "exp_avg": exp_avg.clone(),
                "exp_avg_sq": exp_avg_sq.clone(),
            }
            optimizer.step()
            return leaf

        generator = torch.Generator(device).manual_seed(0)

        def draw():
            return torch.rand(6, generator=generator, device=device, dtype=dtype)

        averaged = optim_info.optim_cls.layer_mean == "statistic"
        statistic = draw() + 0.5
        arguments = [draw(), draw(), draw(), statistic.mean() if averaged else statistic]
        lr = torch.tensor(0.1, device=device, dtype=dtype)
        given = [each.requires_grad_() for each in (*arguments, lr)]
        torch.autograd.gradcheck(stepped, given)

    @optims(optim_db, dtypes=[torch.float32])
    def test_grad_scaling_skips_a_step_with_infinite_gradients(self, device, dtype, optim_info):
        for optim_input in every_input(device, dtype, optim_info):
            param = Parameter(torch.ones(3, device=device, dtype=dtype))
            optimizer = optim_info.optim_cls([param], **optim_input.kwargs)
            scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=4.0)
            scaler.scale((param * 2).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            state = copy.deepcopy(optimizer.state_dict()["state"])
            before = param.detach().clone()
            optimizer.zero_grad()
            scaler.scale((param * torch.inf).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            self.assertEqual(param, before, rtol=0, atol=0)
            self.assertEqual(optimizer.state_dict()["state"], state)

    @optims(optim_db, dtypes=[torch.float32])
    def test_capturable_on_the_cpu_is_refused_in_torchs_words(self, device, dtype, optim_info):
        if torch.device(device).type != "cpu":
            raise unittest.SkipTest("it is allowed there")
        param = Parameter(torch.ones(3))
        optimizer = optim_info.optim_cls([param], capturable=True)
        param.grad = torch.ones(3)
        with self.assertRaisesRegex(AssertionError, "If capturable=True, params and state_steps"):
            optimizer.step()

    @onlyCUDA
    @optims(optim_db, dtypes=[torch.float32])
    def test_cuda_graphs_capture_the_step(self, device, dtype, optim_info):
        results = []
        for captured in (False, True):
            torch.manual_seed(0)
            param = Parameter(torch.randn(64, 64, device=device))
            optimizer = optim_info.optim_cls([param], capturable=True)
            param.grad = torch.randn_like(param)
            optimizer.step()
            if captured:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    optimizer.step()
                for _ in range(3):
                    graph.replay()
            else:
                for _ in range(3):
                    optimizer.step()
            results.append(param.detach().clone())
        self.assertEqual(results[0], results[1])

    @onlyCUDA
    @optims(optim_db, dtypes=[torch.float32])
    def test_parameters_on_several_devices(self, device, dtype, optim_info):
        params = [Parameter(torch.ones(3, device=each)) for each in ("cpu", device)]
        optimizer = optim_info.optim_cls(params, foreach=True)
        for _ in range(3):
            for param in params:
                param.grad = torch.tensor([1.0, -2.0, 0.5], device=param.device)
            optimizer.step()
        self.assertEqual(params[0], params[1], exact_device=False)

    @onlyCUDA
    @optims(optim_db, dtypes=[torch.float32])
    def test_peak_memory_of_foreach(self, device, dtype, optim_info):
        param = Parameter(torch.randn(1 << 22, device=device))
        param.grad = torch.randn_like(param)
        optimizer = optim_info.optim_cls([param], foreach=True)
        optimizer.step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        extra = torch.cuda.max_memory_allocated() - before
        self.assertLess(extra, 2.5 * param.numel() * 4)


instantiate_device_type_tests(TestOptimRenewed, globals(), allow_mps=False)


@pytest.mark.parametrize("name", sorted(reference.MEMBERS))
@pytest.mark.parametrize("problem", ["quadratic", "rosenbrock"])
def test_each_member_reaches_the_optimum_of_torchs_problems(name, problem):
    """The two problems of torch's own convergence tests, with a rate that falls to 0."""
    if problem == "quadratic":
        start, optimum = torch.tensor([1.5, -1.0]), torch.tensor([0.0, 0.0])

        def loss(x):
            return (x**2 * torch.tensor([1.0, 10.0])).sum()
    else:
        start, optimum = torch.tensor([1.5, 1.5]), torch.tensor([1.0, 1.0])

        def loss(x):
            return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    param = Parameter(start.clone())
    lr, steps = (0.1, 300) if problem == "quadratic" else (0.3, 1500)
    optimizer = getattr(optim, name)([param], lr=lr)
    distance = math.dist(start.tolist(), optimum.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            loss(param).backward()
            optimizer.step()
    assert math.dist(param.tolist(), optimum.tolist()) < 0.05 * distance
