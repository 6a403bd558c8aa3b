"""What must hold of every member, whatever the layers, the numbers and the options."""

import math

import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import train

from aida_lightning.optim._kernels.tracking import mutual_projection

OPTIMIZERS = sorted(reference.MEMBERS)
KERNELS = [{"foreach": False}, {"foreach": True}, {"fused": True}]

shapes = st.lists(
    st.sampled_from([(), (0,), (1,), (3,), (2, 5), (4, 1, 3)]), min_size=1, max_size=4
)
magnitudes = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)
betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.9, 0.999]))
orders = st.integers(0, 6)
unhurried = settings(deadline=None, max_examples=60, derandomize=True)


def draw_problem(seed, shapes, magnitude, steps=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(scale):
        return [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]

    return draw(1.0), [draw(magnitude) for _ in range(steps)]


@unhurried
@given(st.sampled_from(OPTIMIZERS), st.integers(0, 2**20), shapes, magnitudes, betas, orders)
def test_finite_input_gives_finite_results_below_the_ceiling_with_any_kernel(
    name, seed, shapes, magnitude, betas, k
):
    start, gradients = draw_problem(seed, shapes, magnitude)
    options = {"betas": betas, "k": k} if name in ("Aida", "LAida") else {"betas": betas}
    ceiling = reference.ceiling(name, betas[1], reference.default_eps(name))
    runs = [train(name, start, gradients, **kernel, **options) for kernel in KERNELS]
    for optimizer, params in runs:
        for param in params:
            assert torch.isfinite(param).all()
            s = optimizer.stepsize(param)
            assert torch.isfinite(s).all()
            assert (s <= ceiling * (1 + 1e-5)).all()


@unhurried
@given(st.sampled_from(OPTIMIZERS), st.integers(0, 2**20), shapes, magnitudes, betas, orders)
def test_the_kernels_agree(name, seed, shapes, magnitude, betas, k):
    # Not with beta1 = 0, where m is g but for rounding, and what is tracked but rounding.
    betas = (betas[0] or 0.7, betas[1])
    # In float64, for where momentum and gradient are nearly at a right angle their inner product,
    # and with it all that is tracked, is as inexact as the order of its sum makes it.
    start, gradients = draw_problem(seed, shapes, magnitude, dtype=torch.float64)
    options = {"betas": betas, "k": k} if name in ("Aida", "LAida") else {"betas": betas}
    runs = [train(name, start, gradients, **kernel, **options) for kernel in KERNELS]
    for _, params in runs[1:]:
        for a, b in zip(runs[0][1], params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@unhurried
@given(
    st.sampled_from(OPTIMIZERS),
    st.integers(0, 2**20),
    st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    st.sampled_from(KERNELS),
)
def test_what_is_not_finite_poisons_its_own_layer_only(name, seed, poison, kernel):
    start, gradients = draw_problem(seed, [(3,), (2, 2), (4,)], 1.0)
    clean = train(name, start, gradients, **kernel)[1]
    gradients[1][1][0, 1] = poison
    poisoned = train(name, start, gradients, **kernel)[1]
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[2], poisoned[2])
    assert not torch.equal(clean[1], poisoned[1])


@unhurried
@given(st.integers(0, 2**20), st.integers(1, 40), st.floats(-8, 8), st.floats(-8, 8))
def test_projections_never_grow(seed, size, m_exponent, g_exponent):
    """Eq. 15 and 16: neither vector of the pair grows with k, nor their difference."""
    generator = torch.Generator().manual_seed(seed)
    m, g = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    m, g = m * 10**m_exponent, g * 10**g_exponent
    sums = [torch.dot(a, b).item() for a, b in ((m, m), (g, g), (m, g))]
    previous = last = math.inf
    for k in range(7):
        alpha, beta = mutual_projection(*sums, k=k, xi=1e-20)
        of_m, of_g = (abs(alpha), abs(beta))
        norms = sorted((of_m * m.norm().item(), of_g * g.norm().item()))
        # One of the pair is a multiple of m, the other of g; together they never grow.
        assert norms[-1] <= previous * (1 + 1e-9)
        previous = norms[-1]
        difference = (alpha * m + beta * g).norm().item()
        assert difference <= last * (1 + 1e-9) + 1e-12 * previous
        last = difference


@unhurried
@given(st.integers(0, 2**20), st.integers(2, 40), orders)
def test_the_difference_is_the_residual_times_a_power_of_the_cosine(seed, size, k):
    """|m^(k) - g^(k)| = |cos(m, g)|^k |m - g| as xi vanishes; for k = 2 d is c^2 (m - g)."""
    generator = torch.Generator().manual_seed(seed)
    m, g = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    sums = [torch.dot(a, b).item() for a, b in ((m, m), (g, g), (m, g))]
    alpha, beta = mutual_projection(*sums, k=k, xi=1e-30)
    cosine = sums[2] / math.sqrt(sums[0] * sums[1])
    torch.testing.assert_close(
        (alpha * m + beta * g).norm(), abs(cosine) ** k * (m - g).norm(), rtol=1e-9, atol=1e-12
    )
    if k == 2:
        assert math.isclose(alpha, cosine**2, rel_tol=1e-9)
        assert math.isclose(alpha, -beta, rel_tol=1e-15)


@unhurried
@given(st.integers(0, 2**20), orders, st.floats(-6, -1))
def test_the_coefficients_are_those_of_vectors_projected_one_by_one(seed, k, closeness):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(12, generator=generator, dtype=torch.float64)
    m = g + 10**closeness * torch.randn(12, generator=generator, dtype=torch.float64)
    sums = [torch.dot(a, b) for a, b in ((m, m), (g, g), (m, g))]
    alpha, beta = mutual_projection(*sums, k=k, xi=1e-20)
    projected_m, projected_g = m, g
    for _ in range(k):
        projected_m, projected_g = (
            (projected_m @ projected_g) / (projected_g @ projected_g + 1e-20) * projected_g,
            (projected_m @ projected_g) / (projected_m @ projected_m + 1e-20) * projected_m,
        )
    torch.testing.assert_close(
        alpha * m + beta * g, projected_m - projected_g, rtol=1e-8, atol=1e-13
    )
