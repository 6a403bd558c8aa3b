# mypy: ignore-errors
# Triton's language only looks like Python: its values and types are not those that mypy knows.
"""The sweeps of the multi-tensor kernel, in Triton's language (see triton.py).

Letters, as in the paper: x parameter, g gradient, m and v the moving averages of the gradient and
of the squared tracked vector d = alpha m + beta g, s the adaptive stepsize, t the step.
P is the type of x, g and m in memory, S that of v and of the arithmetic.

Each program updates one chunk of one layer, block by block, and leaves its share of the layer's
sums where no other program writes; so the sums do not depend on the order that programs run in.
"""

import triton
import triton.language as tl

# The columns of a layer's record: five addresses, the number of elements that this process holds,
# and the number that the whole layer has.
X, G, M, V, T, PART, WHOLE = (tl.constexpr(column) for column in range(7))
COLUMNS = tl.constexpr(7)

# Where alpha and beta come from (see tracking.py).
CONSTANT, MUTUAL_PROJECTION, PROJECTED_GRADIENT = (tl.constexpr(track) for track in range(3))


@triton.jit
def vector(record, COLUMN: tl.constexpr, TYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return the pointer to a layer's first element."""
    return tl.multiple_of(tl.load(record + COLUMN).to(tl.pointer_type(TYPE)), ALIGNMENT)


@triton.jit
def chunk_of_program(records, chunks, CHUNK: tl.constexpr):
    """Return the layer, its record, and the first and the number of the elements to update."""
    chunk = chunks + 2 * tl.program_id(0)
    layer = tl.load(chunk)
    begin = tl.load(chunk + 1) * CHUNK
    record = records + COLUMNS * layer
    count = tl.minimum(tl.load(record + PART) - begin, CHUNK).to(tl.int32)
    return layer, record, begin, count


@triton.jit
def bounds(count, BLOCK: tl.constexpr, TAIL: tl.constexpr):
    """Return the bounds of the whole blocks, or of what is left.

    These are two loops, for only whole blocks are known to end where a vector of elements does, so
    that they are read in vectors.
    """
    whole = count // BLOCK * BLOCK
    if TAIL:
        return whole, count
    else:
        return 0, whole


@triton.jit
def lerp(m, g, beta1, S: tl.constexpr):
    """Move m towards g as torch.lerp does: from the nearer end, so that beta1 = 0 gives g."""
    beta1 = tl.full((), beta1, tl.float64)
    from_m = beta1 > 0.5
    rate = tl.where(from_m, 1.0 - beta1, -beta1).to(S)
    return tl.where(from_m, m, g) + rate * (g - m)


@triton.jit
def bias_correction(record, log_beta, TIME: tl.constexpr):
    """Compute 1 - beta^t in double by exp alone: logarithms come from the host."""
    t = tl.load(tl.load(record + T).to(tl.pointer_type(TIME))).to(tl.float64)
    return 1.0 - tl.exp(t * tl.full((), log_beta, tl.float64))


@triton.jit
def learning_rate(lr, lr_tensor):
    """Return the learning rate in double, wherever it is kept."""
    if lr_tensor is None:
        return tl.full((), lr, tl.float64)
    else:
        return tl.load(lr_tensor).to(tl.float64)


@triton.jit
def finite(total):
    """Return a sum in double, or float32's largest number if it overflowed."""
    total = total.to(tl.float64)
    largest = tl.full((), 3.4028234663852886e38, tl.float64)
    total = tl.where(total == float("inf"), largest, total)
    return tl.where(total == float("-inf"), -largest, total)


@triton.jit
def norm(square, other, product):
    """Return a squared norm, or what the product needs if it overflowed (see finite_sums)."""
    tiny, largest = 1.1754943508222875e-38, tl.full((), 3.4028234663852886e38, tl.float64)
    least = product * product / tl.where(other < tiny, tl.full((), tiny, tl.float64), other)
    return tl.where(square == float("inf"), tl.where(least < largest, largest, least), square)


@triton.jit
def coefficients(
    sums, layer, alpha, beta, xi, SUMS: tl.constexpr, TRACK: tl.constexpr, K: tl.constexpr
):
    """Compute alpha and beta of a layer in double, from its sums unless they are constant."""
    alpha, beta = tl.full((), alpha, tl.float64), tl.full((), beta, tl.float64)
    if TRACK != CONSTANT:
        xi = tl.full((), xi, tl.float64)
        m_sq, g_sq = tl.load(sums + SUMS * layer), tl.load(sums + SUMS * layer + 1)
        m_dot_g = tl.load(sums + SUMS * layer + 2)
        m_sq, g_sq = norm(m_sq, finite(g_sq), m_dot_g), norm(g_sq, finite(m_sq), m_dot_g)
        if TRACK == PROJECTED_GRADIENT:
            alpha, beta = m_dot_g / (m_sq + xi), tl.full((), 0.0, tl.float64)
        else:
            of_m, of_g = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
            for _ in tl.static_range(K):
                a, b = m_dot_g / (g_sq + xi), m_dot_g / (m_sq + xi)
                of_m, of_g = a * of_g, b * of_m
                # From the left, so that nothing in between exceeds both the old and the new value.
                m_sq, g_sq, m_dot_g = a * (a * g_sq), b * (b * m_sq), a * (b * m_dot_g)
            if K % 2 == 0:
                alpha, beta = of_m, -of_g
            else:
                alpha, beta = -of_g, of_m
    return alpha, beta


@triton.jit
def share_of(partials, record, begin, SUMS: tl.constexpr, CHUNK: tl.constexpr):
    """Return where the program leaves its sums, and how far apart: a layer's lie sum by sum."""
    stride = tl.maximum((tl.load(record + PART) + CHUNK - 1) // CHUNK, 1)
    return partials + SUMS * tl.program_id(0) - (SUMS - 1) * (begin // CHUNK), stride


@triton.jit
def decayed(v, beta2):
    """Return beta2 v, and not NaN where beta2 = 0 and the statistic overflowed."""
    return tl.where(beta2 == 0.0, 0.0, beta2 * v)


@triton.jit
def momentum(
    records, chunks, partials, beta1: tl.float64, sign: tl.float64, coupled: tl.float64,
    P: tl.constexpr, S: tl.constexpr, COUPLED: tl.constexpr, SUMS: tl.constexpr,
    ALIGNMENT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update m and sum <m, m>, <g, g>, <m, g> and, of r = m - g, <r, r> and <r, g> if SUMS is 5."""
    _, record, begin, count = chunk_of_program(records, chunks, CHUNK)
    x, g = vector(record, X, P, ALIGNMENT), vector(record, G, P, ALIGNMENT)
    m = vector(record, M, P, ALIGNMENT)
    sign, coupled = tl.full((), sign, S), tl.full((), coupled, S)
    mm, gg, mg = tl.full((BLOCK,), 0.0, S), tl.full((BLOCK,), 0.0, S), tl.full((BLOCK,), 0.0, S)
    rr, rg = tl.full((BLOCK,), 0.0, S), tl.full((BLOCK,), 0.0, S)
    for TAIL in tl.static_range(2):
        first, end = bounds(count, BLOCK, TAIL)
        for offset in range(first, end, BLOCK):
            within = offset + tl.arange(0, BLOCK)
            mask, i = within < end, begin + within
            g_i = sign * tl.load(g + i, mask=mask, other=0.0).to(S)
            if COUPLED:
                g_i += coupled * tl.load(x + i, mask=mask, other=0.0).to(S)
            m_i = lerp(tl.load(m + i, mask=mask, other=0.0).to(S), g_i, beta1, S).to(P)
            tl.store(m + i, m_i, mask=mask)
            m_i = m_i.to(S)  # as rounded, for the other sweeps read it so
            mm += m_i * m_i
            gg += g_i * g_i
            mg += m_i * g_i
            if SUMS == 5:
                r_i = m_i - g_i
                rr += r_i * r_i
                rg += r_i * g_i
    # Products that overflowed become finite, for inf - inf of two chunks would be NaN.
    share, stride = share_of(partials, record, begin, SUMS, CHUNK)
    tl.store(share, tl.sum(mm, axis=0).to(tl.float64))
    tl.store(share + stride, tl.sum(gg, axis=0).to(tl.float64))
    tl.store(share + 2 * stride, finite(tl.sum(mg, axis=0)))
    if SUMS == 5:
        tl.store(share + 3 * stride, tl.sum(rr, axis=0).to(tl.float64))
        tl.store(share + 4 * stride, finite(tl.sum(rg, axis=0)))


@triton.jit
def update(
    records, chunks, sums, partials, lr: tl.float64, lr_tensor, beta1: tl.float64,
    log_beta1: tl.float64, beta2: tl.float64, log_beta2: tl.float64, eps: tl.float64,
    second_eps: tl.float64, sign: tl.float64, coupled: tl.float64, decoupled: tl.float64,
    alpha: tl.float64, beta: tl.float64, xi: tl.float64, P: tl.constexpr, S: tl.constexpr,
    TIME: tl.constexpr, COUPLED: tl.constexpr, SUMS: tl.constexpr, TRACK: tl.constexpr,
    K: tl.constexpr, MOMENTUM: tl.constexpr, TOTALS: tl.constexpr, ALIGNMENT: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update v, with MOMENTUM m too, and x.

    With TOTALS x stays, and each chunk gives its sum of s (1), or of v and of its squares and its
    least v (3).
    """
    layer, record, begin, count = chunk_of_program(records, chunks, CHUNK)
    x, g = vector(record, X, P, ALIGNMENT), vector(record, G, P, ALIGNMENT)
    m, v = vector(record, M, P, ALIGNMENT), vector(record, V, S, ALIGNMENT)
    alpha, beta = coefficients(sums, layer, alpha, beta, xi, SUMS, TRACK, K)
    alpha, beta = alpha.to(S), beta.to(S)
    lr = learning_rate(lr, lr_tensor)
    scale = (-lr / bias_correction(record, log_beta1, TIME)).to(S)
    shrink = (1.0 - lr * tl.full((), decoupled, tl.float64)).to(S)
    unbias = (1.0 / tl.sqrt(bias_correction(record, log_beta2, TIME))).to(S)
    weight = (1.0 - tl.full((), beta2, tl.float64)).to(S)
    sign, coupled, beta2 = tl.full((), sign, S), tl.full((), coupled, S), tl.full((), beta2, S)
    eps, second_eps = tl.full((), eps, S), tl.full((), second_eps, S)
    total = tl.full((BLOCK,), 0.0, S)
    vs, squares = tl.full((BLOCK,), 0.0, tl.float64), tl.full((BLOCK,), 0.0, tl.float64)
    least = tl.full((BLOCK,), float("inf"), S)
    for TAIL in tl.static_range(2):
        first, end = bounds(count, BLOCK, TAIL)
        for offset in range(first, end, BLOCK):
            within = offset + tl.arange(0, BLOCK)
            mask, i = within < end, begin + within
            g_i = sign * tl.load(g + i, mask=mask, other=0.0).to(S)
            m_i = tl.load(m + i, mask=mask, other=0.0).to(S)
            if COUPLED or TOTALS == 0:
                x_i = tl.load(x + i, mask=mask, other=0.0).to(S)
            if COUPLED:
                g_i += coupled * x_i
            if MOMENTUM:
                m_i = lerp(m_i, g_i, beta1, S)
                tl.store(m + i, m_i.to(P), mask=mask)
            # m and g may be infinite, and 0 times them NaN.
            d_i = tl.where(alpha == 0.0, 0.0, alpha * m_i) + tl.where(beta == 0.0, 0.0, beta * g_i)
            v_i = decayed(tl.load(v + i, mask=mask, other=0.0), beta2) + (weight * d_i * d_i + eps)
            tl.store(v + i, v_i, mask=mask)
            if TOTALS == 3:
                v_i = tl.where(mask, v_i, 0.0)
                vs += v_i.to(tl.float64)
                squares += v_i.to(tl.float64) * v_i.to(tl.float64)
                least = tl.minimum(least, tl.where(mask, v_i, float("inf")))
            else:
                s_i = 1.0 / (tl.sqrt(v_i) * unbias + second_eps)
                if TOTALS == 1:
                    total += tl.where(mask, s_i, 0.0)
                else:
                    tl.store(x + i, (x_i * shrink + scale * (m_i * s_i)).to(P), mask=mask)
    if TOTALS != 0:
        share, stride = share_of(partials, record, begin, TOTALS, CHUNK)
        if TOTALS == 3:
            tl.store(share, tl.sum(vs, axis=0))
            tl.store(share + stride, tl.sum(squares, axis=0))
            tl.store(share + 2 * stride, tl.min(least, axis=0).to(tl.float64))
        else:
            tl.store(share, tl.sum(total, axis=0).to(tl.float64))


@triton.jit(do_not_specialize=["n"])
def statistics(
    records, sums, stepsizes, n, beta2: tl.float64, log_beta2: tl.float64, eps: tl.float64,
    second_eps: tl.float64, alpha: tl.float64, beta: tl.float64, xi: tl.float64, S: tl.constexpr,
    TIME: tl.constexpr, SUMS: tl.constexpr, TRACK: tl.constexpr, K: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Update the v of layers that have one number each by the mean of d^2, and store their s."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer = tl.minimum(lane, n - 1)  # lanes too many compute what is not stored
    record = records + COLUMNS * layer
    alpha, beta = coefficients(sums, layer, alpha, beta, xi, SUMS, TRACK, K)
    # |alpha m + beta g|^2 from m - g, which was subtracted before it was squared. What overflowed
    # is infinite: its stepsize is 0.
    both = alpha + beta
    g_sq, r_sq = tl.load(sums + SUMS * layer + 1), tl.load(sums + SUMS * layer + 3)
    r_dot_g = tl.load(sums + SUMS * layer + 4)
    of_r = alpha * alpha * finite(r_sq) + 2.0 * alpha * both * r_dot_g
    d_sq = tl.where(alpha == 0.0, 0.0, of_r) + both * both * finite(g_sq)
    overflowed = tl.load(sums + SUMS * layer) + g_sq + r_sq == float("inf")
    d_sq = tl.where(overflowed, float("inf"), tl.where(d_sq < 0.0, 0.0, d_sq))
    mean = d_sq / tl.maximum(tl.load(record + WHOLE), 1).to(tl.float64)
    beta2 = tl.full((), beta2, tl.float64)
    v = tl.load(record + V).to(tl.pointer_type(S))
    v_l = decayed(tl.load(v).to(tl.float64), beta2) + ((1.0 - beta2) * mean + eps)
    tl.store(v, v_l.to(S), mask=lane < n)
    root = tl.sqrt(v_l / bias_correction(record, log_beta2, TIME))
    tl.store(stepsizes + layer, 1.0 / (root + second_eps), mask=lane < n)


@triton.jit
def move(
    records, chunks, stepsizes, lr: tl.float64, lr_tensor, log_beta1: tl.float64,
    decoupled: tl.float64, P: tl.constexpr, S: tl.constexpr, TIME: tl.constexpr,
    SUPPRESSED: tl.constexpr, ALIGNMENT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update x by its layer's one stepsize s, or if SUPPRESSED by s / (sqrt(v + inner) + outer)."""
    layer, record, begin, count = chunk_of_program(records, chunks, CHUNK)
    x, m = vector(record, X, P, ALIGNMENT), vector(record, M, P, ALIGNMENT)
    lr = learning_rate(lr, lr_tensor)
    if SUPPRESSED:
        v = vector(record, V, S, ALIGNMENT)
        s = tl.load(stepsizes + 3 * layer)
        inner = tl.load(stepsizes + 3 * layer + 1).to(S)
        outer = tl.load(stepsizes + 3 * layer + 2).to(S)
    else:
        s = tl.load(stepsizes + layer).to(tl.float64)
    scale = (-lr / bias_correction(record, log_beta1, TIME) * s).to(S)
    shrink = (1.0 - lr * tl.full((), decoupled, tl.float64)).to(S)
    for TAIL in tl.static_range(2):
        first, end = bounds(count, BLOCK, TAIL)
        for offset in range(first, end, BLOCK):
            within = offset + tl.arange(0, BLOCK)
            mask, i = within < end, begin + within
            x_i = tl.load(x + i, mask=mask, other=0.0).to(S)
            m_i = tl.load(m + i, mask=mask, other=0.0).to(S)
            if SUPPRESSED:
                m_i = m_i / (tl.sqrt(tl.load(v + i, mask=mask, other=1.0) + inner) + outer)
            tl.store(x + i, (x_i * shrink + scale * m_i).to(P), mask=mask)


# In Triton's interpreter the sweeps run on the CPU, on tensors in its memory.
INTERPRETED = not isinstance(update, triton.JITFunction)
