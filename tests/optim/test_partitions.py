"""Parts of a parameter that are layers of their own, against the boxes applied to split tensors."""

import copy
import re

import numpy as np
import pytest
import reference
import torch
from parameters import KERNELS, OPTIMIZERS, each_kernel, each_optimizer
from stepping import train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aida_lightning import diagnostics, optim
from aida_lightning.optim._kernels import dispatch, fused, loop
from aida_lightning.optim._kernels.layers import Parts

AVERAGED = ["LAdaBelief", "LAdam", "LAida"]
STEPS = 6
# Of dimension 0 of each shape below: equal parts, uneven ones, and ones of a single slice.
PARTITIONS = {"rows": "rows", "3 parts": 3, "uneven": (1, 4, 1), "one part": 1}
SHAPES = [(6, 5), (6,), (6, 2, 3, 3), (6, 0)]


def make_problem(dtype=torch.float64, shapes=SHAPES, steps=STEPS, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    start = [draw(shape).to(dtype) for shape in shapes]
    common = [draw(shape) for shape in shapes]
    # Scales of the slices far apart, so that a sum over the wrong ones is seen.
    scales = [10.0 ** -torch.arange(len(c)).reshape(-1, *[1] * (c.ndim - 1)) for c in common]
    gradients = [
        [(scale * (c + draw(c.shape))).to(dtype) for c, scale in zip(common, scales, strict=True)]
        for _ in range(steps)
    ]
    return start, gradients


def sizes_of(partition, tensor):
    rows = len(tensor)
    if partition == "rows":
        return [1] * rows
    return [rows // partition] * partition if isinstance(partition, int) else list(partition)


def boxes_of_parts(name, start, gradients, partition, **options):
    """Run the box on the parts as parameters of their own; a list of histories per tensor."""
    cut = lambda tensors: [part for t in tensors for part in t.split(sizes_of(partition, t))]  # noqa: E731
    histories = iter(reference.run(name, cut(start), [cut(step) for step in gradients], **options))
    return [[next(histories) for _ in sizes_of(partition, x)] for x in start]


def assert_follows_the_boxes(name, partition, start, gradients, *, kernel, rtol, **options):
    optimizer, params = train(name, start, gradients, partition=partition, **options, **kernel)
    boxes = boxes_of_parts(name, start, gradients, partition, **options)
    for param, of_parts in zip(params, boxes, strict=True):
        if not param.numel():
            continue
        state = optimizer.state[param]
        x, m = (torch.cat([getattr(part, at)[-1] for part in of_parts]) for at in "xm")
        v = [part.v[-1] for part in of_parts]
        v = torch.stack(v) if name in AVERAGED else torch.cat(v)
        assert state["exp_avg_sq"].shape == v.shape
        torch.testing.assert_close(param.double(), x, rtol=rtol, atol=rtol / 10)
        torch.testing.assert_close(state["exp_avg"].double(), m, rtol=rtol, atol=rtol)
        torch.testing.assert_close(state["exp_avg_sq"].double(), v, rtol=10 * rtol, atol=0)
    return optimizer, params


@each_kernel
@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
@each_optimizer
def test_parts_follow_the_boxes_as_parameters_of_their_own(name, partition, kernel):
    start, gradients = make_problem()
    options = {"weight_decay": 0.1, "lr": 0.01}
    assert_follows_the_boxes(name, partition, start, gradients, kernel=kernel, rtol=1e-9, **options)


@each_kernel
@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["Aida", "LAida"])
def test_every_number_of_projections_is_taken_per_part(name, k, kernel):
    start, gradients = make_problem()
    for partition in ("rows", 2, (1, 4, 1)):
        assert_follows_the_boxes(
            name, partition, start, gradients, kernel=kernel, rtol=1e-9, k=k, xi=1e-6
        )


@each_kernel
@pytest.mark.parametrize(
    "options", [{"maximize": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
)
@each_optimizer
def test_options_hold_of_parts(name, options, kernel):
    start, gradients = make_problem()
    assert_follows_the_boxes(name, 3, start, gradients, kernel=kernel, rtol=1e-9, **options)


@each_kernel
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 4e-3)]
)
@each_optimizer
def test_parts_of_lower_precision_follow_the_boxes(name, dtype, rtol, kernel):
    start, gradients = make_problem(dtype, shapes=[(6, 5), (6, 2, 3, 3)])
    gradients = [[g / 10 for g in step] for step in gradients]
    optimizer, params = train(name, start, gradients, partition=3, **kernel)
    boxes = boxes_of_parts(name, start, gradients, 3)
    for param, of_parts in zip(params, boxes, strict=True):
        x = torch.cat([part.x[-1] for part in of_parts])
        torch.testing.assert_close(param.double(), x, rtol=rtol, atol=rtol)
        statistic = optimizer.state[param]["exp_avg_sq"]
        assert statistic.dtype == torch.float32


@pytest.mark.parametrize("partition", ["rows", 3, (1, 4, 1)])
@each_optimizer
def test_large_parts_are_cut_into_blocks_and_threads(name, partition):
    """Parts of several blocks of the compiled kernel and of the loop, and some of one."""
    start, gradients = make_problem(torch.float32, shapes=[(6, 40_000), (6, 3)], steps=2)
    trained = {
        key: train(name, start, gradients, partition=partition, **kernel)[1]
        for key, kernel in KERNELS.items()
    }
    boxes = boxes_of_parts(name, start, gradients, partition)
    for params in trained.values():
        for param, of_parts in zip(params, boxes, strict=True):
            x = torch.cat([part.x[-1] for part in of_parts])
            torch.testing.assert_close(param.double(), x, rtol=1e-4, atol=1e-5)


@each_kernel
@each_optimizer
def test_complex_parameters_are_cut_as_pairs_of_numbers(name, kernel):
    start, gradients = make_problem(shapes=[(6, 5, 2), (6, 2)])
    as_complex = lambda tensors: [torch.view_as_complex(t) for t in tensors]  # noqa: E731
    for partition in ("rows", 3):
        options = {"partition": partition, **kernel}
        real_optimizer, real = train(name, start, gradients, **options)
        optimizer, params = train(
            name, as_complex(start), [as_complex(step) for step in gradients], **options
        )
        for param, expected in zip(params, real, strict=True):
            torch.testing.assert_close(torch.view_as_real(param), expected, rtol=1e-12, atol=0)
            s, s_real = optimizer.stepsize(param), real_optimizer.stepsize(expected)
            assert s.shape == s_real.shape
            torch.testing.assert_close(s, s_real, rtol=1e-12, atol=0)


LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda x: torch.stack((x, x), -1)[..., 0],
}


@each_kernel
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@each_optimizer
def test_other_layouts_give_the_same_and_keep_their_strides(name, layout, kernel):
    start, gradients = make_problem(shapes=[(6, 2, 3, 3)])
    _, (expected,) = train(name, start, gradients, partition=3, **kernel)
    laid_out = [layout(start[0])], [[layout(g)] for (g,) in gradients]
    params = [nn.Parameter(x.clone()) for x in laid_out[0]]
    stride = params[0].stride()
    optimizer, params = train(name, *laid_out, partition=3, **kernel)
    torch.testing.assert_close(params[0], expected, rtol=1e-12, atol=1e-15)
    assert params[0].stride() == stride
    assert optimizer.state[params[0]]["exp_avg"].stride() == stride


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [(LAYOUTS["channels last"], fused), (LAYOUTS["transposed"], loop)],
    ids=["channels last", "transposed"],
)
def test_compiled_code_takes_slices_that_lie_together_and_no_others(layout, kernel, monkeypatch):
    taken = []
    real = dispatch.batches_of
    monkeypatch.setattr(
        dispatch, "batches_of", lambda kernel, *rest: taken.append(kernel) or real(kernel, *rest)
    )
    start, gradients = make_problem(shapes=[(6, 2, 3, 3)], steps=1)
    train("Aida", [layout(start[0])], [[layout(gradients[0][0])]], partition=2, fused=True)
    assert taken == [kernel]


class Operations(TorchDispatchMode):
    """Count operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [KERNELS["loop"], KERNELS["foreach"]], ids=["loop", "foreach"])
@each_optimizer
def test_operations_do_not_grow_with_the_number_of_parts(name, kernel):
    counts = []
    for rows in (8, 64):
        optimizer, params = train(
            name, *make_problem(shapes=[(rows, 5)], steps=1), partition="rows", **kernel
        )
        params[0].grad = torch.ones(rows, 5, dtype=torch.float64)
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[0] == counts[1]


def test_views_share_the_memory_of_what_they_are_cut_from():
    x = torch.arange(12.0).reshape(6, 2)
    for parts in (Parts(3, 2, 4), Parts(3, (1, 4, 1), (2, 8, 2))):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                views = parts.cut(x)
            assert torch.equal(torch.cat([*views]), x)
            assert [view.data_ptr() for view in views] == [
                x.data_ptr() + 4 * view.reshape(-1)[0].long().item() for view in views
            ]


@each_kernel
@each_optimizer
def test_elements_are_layers_of_one_element(name, kernel):
    if name == "SETAdam":
        pytest.skip("its range is suppressed over several elements")
    start, gradients = make_problem(shapes=[(6, 5)])
    optimizer, (param,) = train(name, start, gradients, partition="elements", **kernel)
    flat = [x.reshape(-1) for x in start], [[g.reshape(-1) for g in step] for step in gradients]
    (of_parts,) = boxes_of_parts(name, *flat, "rows")
    x, v = (torch.cat([getattr(p, at)[-1].reshape(1) for p in of_parts]) for at in "xv")
    torch.testing.assert_close(param.detach(), x.view_as(param), rtol=1e-9, atol=1e-10)
    state = optimizer.state[param]
    torch.testing.assert_close(state["exp_avg_sq"], v.view_as(param), rtol=1e-6, atol=0)
    assert optimizer.stepsize(param).shape == param.shape


@each_kernel
@pytest.mark.parametrize("name", ["LAdam", "LAida", "Aida", "AdamL"])
def test_a_callable_chooses_for_each_parameter_of_a_group(name, kernel):
    chosen = {6: 3, 4: None, 2: "elements", 5: "rows"}
    start, gradients = make_problem(shapes=[(rows, 3) for rows in chosen])
    together, params = train(
        name, start, gradients, partition=lambda p: chosen[p.shape[0]], **kernel
    )
    for index, partition in enumerate(chosen.values()):
        alone, (param,) = train(
            name, [start[index]], [[s[index]] for s in gradients], partition=partition, **kernel
        )
        torch.testing.assert_close(params[index], param, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            together.stepsize(params[index]), alone.stepsize(param), rtol=1e-12, atol=0
        )


@each_optimizer
def test_the_stepsizes_of_parts_are_the_boxes(name):
    start, gradients = make_problem(shapes=[(6, 5)])
    for partition in PARTITIONS.values():
        optimizer, (param,) = train(name, start, gradients, partition=partition)
        (of_parts,) = boxes_of_parts(name, start, gradients, partition)
        s = optimizer.stepsize(param)
        whole = torch.cat([part.stepsize[-1].expand_as(part.x[-1]) for part in of_parts])
        assert s.shape == ((6, 1) if name in AVERAGED else (6, 5))
        torch.testing.assert_close(s.expand_as(param), whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("partition", ["rows", 2])
@each_optimizer
def test_the_stepsizes_of_a_parameter_without_rows_are_broadcast_to_it(name, partition):
    empty = torch.ones(0, 3)
    optimizer, (param,) = train(name, [empty], [[empty]], partition=partition)
    assert optimizer.stepsize(param).shape == ((0, 1) if name in AVERAGED else (0, 3))


@pytest.mark.parametrize("decoupled", [False, True])
@each_optimizer
def test_the_last_update_of_parts_is_what_moved_them(name, decoupled):
    start, gradients = make_problem(shapes=[(6, 5)])
    options = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    for partition in PARTITIONS.values():
        optimizer, (before,) = train(name, start, gradients[:-1], partition=partition, **options)
        x = before.detach().clone()
        before.grad = gradients[-1][0].clone()
        optimizer.step()
        group, state = optimizer.param_groups[0], optimizer.state[before]
        update = diagnostics.last_update(optimizer, group, state, before)
        torch.testing.assert_close(update, before.detach() - x, rtol=1e-7, atol=1e-13)


def test_rows_keep_one_number_each():
    optimizer, (param,) = train("LAdam", *make_problem(shapes=[(6, 50)]), partition="rows")
    state = optimizer.state[param]
    assert state["exp_avg_sq"].nbytes == 6 * 8
    assert state["exp_avg"].nbytes == 300 * 8


def test_autograd_notices_that_a_part_was_changed():
    param = nn.Parameter(torch.ones(4, 2))
    for kernel in KERNELS.values():
        optimizer = optim.Aida([param], partition=2, **kernel)
        param.grad = torch.ones(4, 2)
        product = (param**2).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


@pytest.mark.parametrize("partition", ["rows", 2, (1, 3)])
@pytest.mark.parametrize("name", ["Aida", "LAdam", "AdamL", "SETAdam"])
def test_autograd_goes_through_steps_of_parts(name, partition):
    start, ((gradient,), *_) = make_problem(shapes=[(4, 3)], steps=1)

    def trained(gradient):
        param = start[0].clone().requires_grad_().clone()
        optimizer = getattr(optim, name)([param], lr=0.1, partition=partition, differentiable=True)
        for scale in (1, 2, 3):
            param.grad = gradient * scale
            optimizer.step()
        return param

    assert torch.autograd.gradcheck(trained, gradient.requires_grad_())


def test_a_compiled_step_is_that_of_the_loop():
    start, gradients = make_problem(torch.float32, shapes=[(4, 3), (4,)], steps=3)
    for name in ("Aida", "LAdam", "AdamL"):
        expected = train(name, start, gradients, partition=2, foreach=False)[1]
        params = [nn.Parameter(x.clone()) for x in start]
        optimizer = getattr(optim, name)(params, partition=2, foreach=True)
        step = torch.compile(optimizer.step, backend="eager")
        for of_step in gradients:
            for param, gradient in zip(params, of_step, strict=True):
                param.grad = gradient.clone()
            step()
        for param, other in zip(params, expected, strict=True):
            torch.testing.assert_close(param, other)


@pytest.mark.parametrize("partition", ["rows", 3, (1, 4, 1), "elements"])
@pytest.mark.parametrize("name", ["LAdam", "Aida", "AdamL"])
def test_training_goes_on_from_a_state_dict(name, partition, tmp_path):
    start, gradients = make_problem(shapes=[(6, 5)])
    _, (straight,) = train(name, start, gradients, partition=partition)
    optimizer, (param,) = train(name, start, gradients[:3], partition=partition)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    again, (resumed,) = train(name, [param.detach()], [])
    again.load_state_dict(loaded)  # whose options win, as those of torch's optimizers do
    assert again.param_groups[0]["partition"] == partition
    for (gradient,) in gradients[3:]:
        resumed.grad = gradient.clone()
        again.step()
    assert torch.equal(resumed, straight)


def test_a_callable_is_not_saved_and_stays_that_of_the_optimizer(tmp_path):
    start, gradients = make_problem(shapes=[(6, 5)])
    optimizer, (param,) = train("LAdam", start, gradients, partition=lambda _: 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    again = optim.LAdam([nn.Parameter(param.detach())], partition=lambda _: 3)
    again.load_state_dict(loaded)
    assert callable(again.param_groups[0]["partition"])
    another = optim.LAdam([nn.Parameter(param.detach())], partition=lambda _: 2)
    message = r"exp_avg_sq has the shape \[3\], not \[2\]; it holds one number per part"
    with pytest.raises(ValueError, match=message):
        another.load_state_dict(loaded)
    assert not another.state


def test_an_older_state_dict_without_partitions_fits_what_it_was_trained_with():
    optimizer, (param,) = train("LAdam", *make_problem(shapes=[(6, 5)]))
    older = optimizer.state_dict()
    del older["param_groups"][0]["partition"]
    again = optim.LAdam([nn.Parameter(param.detach())])
    again.load_state_dict(older)
    assert again.param_groups[0]["partition"] is None
    rows = optim.LAdam([nn.Parameter(param.detach())], partition="rows")
    with pytest.raises(ValueError, match=r"has the shape \[\], not \[6\]"):
        rows.load_state_dict(older)


def test_a_copy_goes_on_as_the_original():
    start, gradients = make_problem(shapes=[(6, 5)])
    optimizer, _ = train("LAida", start, gradients[:3], partition="rows")
    copied = copy.deepcopy(optimizer)
    for one in (optimizer, copied):
        one.param_groups[0]["params"][0].grad = gradients[3][0].clone()
        one.step()
    original, twin = (one.param_groups[0]["params"][0] for one in (optimizer, copied))
    assert torch.equal(original, twin)


def test_a_partition_that_was_changed_between_steps_is_noticed():
    start, gradients = make_problem(shapes=[(6, 5)])
    optimizer, _ = train("LAdam", start, gradients, partition="rows")
    optimizer.param_groups[0]["partition"] = 2
    with pytest.raises(RuntimeError, match="`partition` must be what it was"):
        optimizer.step()


@each_kernel
@pytest.mark.parametrize("partition", [(7, -1), -3, 0, "columns", 2.0, True])
@pytest.mark.parametrize("name", ["AdamPlus", "LAida"])
def test_what_was_set_in_a_group_is_checked_before_a_step(name, partition, kernel):
    """Sizes below 1 would give compiled code addresses outside of the tensors."""
    optimizer, (param,) = train(name, [torch.ones(6, 5)], [], **kernel)
    optimizer.param_groups[0]["partition"] = partition
    param.grad = torch.ones(6, 5)
    with pytest.raises((ValueError, TypeError), match="Invalid partition"):
        optimizer.step()
    assert torch.equal(param, torch.ones(6, 5))


def test_sizes_that_were_set_in_a_group_may_be_a_list():
    optimizer, (param,) = train("LAida", [torch.ones(6, 5)], [])
    optimizer.param_groups[0]["partition"] = [2, 4]
    param.grad = torch.ones(6, 5)
    optimizer.step()
    assert optimizer.state[param]["exp_avg_sq"].shape == (2,)


def test_lazy_parameters_with_suppressed_ranges_are_not_cut_into_elements():
    module = nn.LazyLinear(6)
    message = '"elements", because the range of the stepsizes is'
    with pytest.raises(ValueError, match=message):
        optim.SETAdam(module.parameters(), partition="elements")
    optimizer = optim.SETAdam(module.parameters(), partition=lambda _: "elements")
    module(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_lazy_parameters_are_checked_when_they_have_a_shape():
    module = nn.LazyLinear(6)
    optimizer = optim.LAdam(module.parameters(), partition=4)
    module(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match=r"4, it does not divide dimension 0 of a layer of the"):
        optimizer.step()
    for group in optimizer.param_groups:
        group["partition"] = 3
    optimizer.step()
    assert optimizer.state[module.weight]["exp_avg_sq"].shape == (3,)


MATRIX, NUMBER = torch.ones(6, 5), torch.ones(())
BAD = [
    # Errors are compared as plain text.
    (
        MATRIX,
        4,
        ValueError,
        "partition: 4, it does not divide dimension 0 of a layer of the shape [6, 5] (weight)",
    ),
    (MATRIX, 0, ValueError, "partition: 0, the number of parts must be >= 1"),
    (MATRIX, -3, ValueError, "partition: -3, the number of parts must be >= 1"),
    (MATRIX, True, TypeError, "partition: True, it must be None"),
    (MATRIX, 3.0, TypeError, "partition: 3.0, it must be None"),
    (MATRIX, "columns", ValueError, "partition: 'columns', it must be None"),
    (MATRIX, (), ValueError, "partition: (), all sizes must be integers >= 1"),
    (MATRIX, (3, 0, 3), ValueError, "partition: (3, 0, 3), all sizes must be integers >= 1"),
    (MATRIX, (3, True, 2), ValueError, "partition: (3, True, 2), all sizes must be integers >= 1"),
    (
        MATRIX,
        (3, 4),
        ValueError,
        "its sizes add up to 7, but dimension 0 of a layer of the shape [6, 5] (weight) has 6",
    ),
    (
        NUMBER,
        "rows",
        ValueError,
        "'rows', a layer of the shape [] (weight) has no dimension 0 to cut",
    ),
    (NUMBER, 1, ValueError, "1, a layer of the shape [] (weight) has no dimension 0 to cut"),
    (MATRIX, lambda p: 4, ValueError, "4, it does not divide dimension 0"),
    (
        MATRIX,
        lambda p: "q",
        ValueError,
        "returned 'q' for a layer of the shape [6, 5] (weight), but it must return one of: None",
    ),
    (
        MATRIX,
        lambda p: 2.5,
        TypeError,
        "returned 2.5 for a layer of the shape [6, 5] (weight), but it must return one of: None",
    ),
    (MATRIX, lambda p: lambda q: 2, TypeError, "but it must return one of: None"),
]


@pytest.mark.parametrize(("tensor", "partition", "error", "message"), BAD)
def test_what_is_no_partition_is_refused_at_construction(tensor, partition, error, message):
    with pytest.raises(error, match=re.escape(message)):
        optim.LAdam([("weight", nn.Parameter(tensor))], partition=partition)


def test_a_refused_group_is_not_added_and_named():
    optimizer = optim.LAdam([("first", nn.Parameter(torch.ones(6)))])
    message = r"it does not divide dimension 0 of a layer of the shape \[5\] \(second\)"
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(
            {"params": [("second", nn.Parameter(torch.ones(5)))], "partition": 2}
        )
    assert len(optimizer.param_groups) == 1


def test_suppressed_ranges_need_more_than_an_element():
    with pytest.raises(ValueError, match='"elements", because the range of the stepsizes is'):
        optim.SETAdam([nn.Parameter(torch.ones(6))], partition="elements")


def test_plain_numbers_of_other_libraries_are_stored_as_ints():
    optimizer = optim.LAdam([nn.Parameter(torch.ones(6))], partition=np.int64(3))
    assert type(optimizer.param_groups[0]["partition"]) is int
    optimizer = optim.LAdam([nn.Parameter(torch.ones(6))], partition=[np.int64(4), 2])
    assert optimizer.param_groups[0]["partition"] == (4, 2)
    assert {type(size) for size in optimizer.param_groups[0]["partition"]} == {int}


def test_every_member_has_the_option():
    for name in OPTIMIZERS:
        optimizer = getattr(optim, name)([nn.Parameter(torch.ones(6))], partition=2)
        assert optimizer.param_groups[0]["partition"] == 2
