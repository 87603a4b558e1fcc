"""Triton kernels of the classification head. To import them needs Triton: `search_space.triton_head` alone does, late.

What they compute is  E_nk = exp(s_n·cos_nk − peak),  the target's column 0, and the two products with
P_nk = E_nk·f_n, or β_n in the target's column:  ∂L/∂x̂ = P ŵ  and  ∂L/∂w = (g − (g·ŵ)ŵ)/‖w‖,  g = Pᵀ x̂.
No atomics: each program writes its own part, and parts are added in a fixed order.

Shapes: N batch, K rows of class weights, D embedding, T tiles of CLASSES rows; lower-case letters are a program's part.
Arrays lie row by row without gaps. Columns beyond K, whatever label says, are nobody's.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""The peak of no logits: finite, so that exp(−∞ − peak) is 0 and not NaN."""

SHORTEST = tl.constexpr(1e-12)
"""Norms below count as this and have no gradient, as in `torch.nn.functional.normalize`."""


@triton.jit
def exponentials(
    unit_ND,
    w_KD,
    label_N,
    scale_N,
    peak_N,
    exp_NK,
    top_TN,
    total_TN,
    mapped_TN,
    inverse_K,
    N,
    K,
    D,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DIMS: tl.constexpr,
    AGAIN: tl.constexpr,
    STORES: tl.constexpr,
    MAPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of E: norms, product, target mask, exp and row sums in one pass over its class weights.

    With `AGAIN` from the peaks that are given, else from the tile's own, which are left in `top` with the sums Σ E in
    `total`, Σ E·cos in `mapped` (`MAPS`) and 1/‖w‖ in `inverse`.
    """
    sample_tiles = tl.cdiv(N, SAMPLES)
    sample_tile = tl.program_id(0) % sample_tiles
    class_tile = tl.program_id(0) // sample_tiles
    n = sample_tile * SAMPLES + tl.arange(0, SAMPLES)
    k = class_tile * CLASSES + tl.arange(0, CLASSES)
    dot_nk = tl.zeros([SAMPLES, CLASSES], dtype=tl.float32)
    square_k = tl.zeros([CLASSES], dtype=tl.float32)
    for start in range(0, D, DIMS):
        d = start + tl.arange(0, DIMS)
        unit_nd = tl.load(unit_ND + n[:, None] * D + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        w_at = w_KD + k[:, None].to(tl.int64) * D + d[None, :]
        w_kd = tl.load(w_at, mask=(k < K)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        dot_nk = tl.dot(unit_nd, tl.trans(w_kd), dot_nk, input_precision=PRECISION)
        square_k += tl.sum(w_kd * w_kd, 1)
    inverse_k = 1.0 / tl.maximum(tl.sqrt(square_k), SHORTEST)
    cos_nk = dot_nk * inverse_k[None, :]
    label_n = tl.load(label_N + n, mask=n < N, other=-1)
    scale_n = tl.load(scale_N + n, mask=n < N, other=0.0)
    is_negative_nk = (label_n[:, None] != k[None, :]) & (k < K)[None, :]
    logit_nk = tl.where(is_negative_nk, scale_n[:, None] * cos_nk, float("-inf"))
    if AGAIN:  # noqa: SIM108 (chosen when compiled)
        peak_n = tl.load(peak_N + n, mask=n < N, other=0.0)
    else:
        peak_n = tl.maximum(tl.max(logit_nk, 1), LOWEST)
    exp_nk = tl.exp(logit_nk - peak_n[:, None])
    if STORES:
        exp_at = exp_NK + n[:, None].to(tl.int64) * K + k[None, :]
        tl.store(exp_at, exp_nk.to(exp_NK.dtype.element_ty), mask=(n < N)[:, None] & (k < K)[None, :])
    if not AGAIN:
        part = class_tile * N + n
        tl.store(top_TN + part, peak_n, mask=n < N)
        tl.store(total_TN + part, tl.sum(exp_nk, 1), mask=n < N)
        if MAPS:
            tl.store(mapped_TN + part, tl.sum(exp_nk * cos_nk, 1), mask=n < N)
        if sample_tile == 0:
            tl.store(inverse_K + k, inverse_k, mask=k < K)


@triton.jit
def _push(exp_NK, factor_TN, factor_stride, beta_N, label_N, n, k, class_tile, N, K):
    """P_nk."""
    exp_at = exp_NK + n[:, None].to(tl.int64) * K + k[None, :]
    exp_nk = tl.load(exp_at, mask=(n < N)[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)
    factor_n = tl.load(factor_TN + class_tile * factor_stride + n, mask=n < N, other=0.0)
    label_n = tl.load(label_N + n, mask=n < N, other=-1)
    beta_n = tl.load(beta_N + n, mask=n < N, other=0.0)
    is_target_nk = (label_n[:, None] == k[None, :]) & (k < K)[None, :]
    return tl.where(is_target_nk, beta_n[:, None], exp_nk * factor_n[:, None])


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """total + a·b in float32, the factors in bfloat16 or in float32 as Triton's `input_precision` says.

    'rounded' is bfloat16 for Triton's interpreter, which multiplies its bits as whole numbers.
    """
    if PRECISION == "bfloat16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    elif PRECISION == "rounded":
        total = tl.dot(a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def embedding_gradients(
    exp_NK,
    factor_TN,
    factor_stride,
    beta_N,
    label_N,
    w_KD,
    inverse_K,
    grad_SND,
    N,
    K,
    D,
    tiles_a_split,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """P ŵ over the class tiles of one split, n×d of it."""
    sample_tiles = tl.cdiv(N, SAMPLES)
    dim_tiles = tl.cdiv(D, DIMS)
    sample_tile = tl.program_id(0) % sample_tiles
    dim_tile = tl.program_id(0) // sample_tiles % dim_tiles
    split = tl.program_id(0) // (sample_tiles * dim_tiles)
    n = sample_tile * SAMPLES + tl.arange(0, SAMPLES)
    d = dim_tile * DIMS + tl.arange(0, DIMS)
    grad_nd = tl.zeros([SAMPLES, DIMS], dtype=tl.float32)
    for class_tile in range(split * tiles_a_split, tl.minimum((split + 1) * tiles_a_split, tl.cdiv(K, CLASSES))):
        k = class_tile * CLASSES + tl.arange(0, CLASSES)
        push_nk = _push(exp_NK, factor_TN, factor_stride, beta_N, label_N, n, k, class_tile, N, K)
        push_nk = push_nk * tl.load(inverse_K + k, mask=k < K, other=0.0)[None, :]
        w_at = w_KD + k[:, None].to(tl.int64) * D + d[None, :]
        w_kd = tl.load(w_at, mask=(k < K)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        grad_nd = _product(push_nk, w_kd, grad_nd, PRECISION)
    at = grad_SND + (split * N + n[:, None]) * D + d[None, :]
    tl.store(at, grad_nd, mask=(n < N)[:, None] & (d < D)[None, :])


@triton.jit
def weight_gradients(
    exp_NK,
    factor_TN,
    factor_stride,
    beta_N,
    label_N,
    unit_ND,
    w_KD,
    inverse_K,
    grad_KD,
    N,
    K,
    D,
    learning_rate,
    momentum,
    weight_decay,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
):
    """(g − (g·ŵ)ŵ)/‖w‖ of ROWS classes, a divisor of CLASSES, of all D at once (DIMS ≥ D): g is never stored.

    With `STEP` 'none' it is left in `grad`; with 'plain' the class weights move down it; with 'momentum' down the
    buffer that `grad` is, which takes it up.
    """
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    class_tile = tl.program_id(0) * ROWS // CLASSES
    d = tl.arange(0, DIMS)
    g_kd = tl.zeros([ROWS, DIMS], dtype=tl.float32)
    for start in range(0, N, SAMPLES):
        n = start + tl.arange(0, SAMPLES)
        push_nk = _push(exp_NK, factor_TN, factor_stride, beta_N, label_N, n, k, class_tile, N, K)
        unit_nd = tl.load(unit_ND + n[:, None] * D + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        g_kd = _product(tl.trans(push_nk), unit_nd, g_kd, PRECISION)
    is_there_kd = (k < K)[:, None] & (d < D)[None, :]
    at_kd = k[:, None].to(tl.int64) * D + d[None, :]
    inverse_k = tl.load(inverse_K + k, mask=k < K, other=0.0)
    w_kd = tl.load(w_KD + at_kd, mask=is_there_kd, other=0.0).to(tl.float32)
    unit_kd = w_kd * inverse_k[:, None]
    along_k = tl.where(inverse_k * SHORTEST < 1.0, tl.sum(g_kd * unit_kd, 1), 0.0)
    grad_kd = (g_kd - along_k[:, None] * unit_kd) * inverse_k[:, None]
    if STEP != "none":
        grad_kd += weight_decay * w_kd
        if STEP == "momentum":
            grad_kd += momentum * tl.load(grad_KD + at_kd, mask=is_there_kd, other=0.0)
        tl.store(w_KD + at_kd, w_kd - learning_rate * grad_kd, mask=is_there_kd)
    if STEP != "plain":
        tl.store(grad_KD + at_kd, grad_kd.to(grad_KD.dtype.element_ty), mask=is_there_kd)
