"""Triton kernels for GPUs. The functions that launch them are elsewhere, alongside their plain references.

`TRITON_INTERPRET=1` runs them on the CPU, slowly, as the tests do. Import this where it is used: a machine without a
GPU need not have Triton.

A program computes one head of one sentence, or one row; in `residual_norm_backward`, several rows, and in
`rectified_product` a tile. L and S are powers of two, the queries and the keys that a tile holds, SMALLER_L and
SMALLER_S those of the next smaller tile or 0, E the width of a head; `at` holds the strides between rows and between
heads.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _span(cu_seqlens, sentence):
    """The first row of a sentence, and how many it has."""
    start = tl.load(cu_seqlens + sentence).to(tl.int64)
    return start, tl.load(cu_seqlens + sentence + 1) - start


@triton.jit
def _sides(cu_queries, cu_keys, H: tl.constexpr):
    """A program's head; of its sentence, the first row and the number of the queries, and those of the keys."""
    sentence, head = tl.program_id(0) // H, tl.program_id(0) % H
    first_q, rows = _span(cu_queries, sentence)
    first_k, length = _span(cu_keys, sentence)
    return head, first_q, rows, first_k, length


@triton.jit
def _belongs(rows, length, L: tl.constexpr, S: tl.constexpr, SMALLER_L: tl.constexpr, SMALLER_S: tl.constexpr):
    """Whether a sentence fits the tile, and not the smaller one, for which there is another launch."""
    return (rows <= L) & (length <= S) & ((rows > SMALLER_L) | (length > SMALLER_S))


@triton.jit
def _places(start, head, at, ROWS: tl.constexpr, E: tl.constexpr):
    """The offsets of the elements of a sentence's head, for its first ROWS rows."""
    return (start + tl.arange(0, ROWS))[:, None] * at[0] + head * at[1] + tl.arange(0, E)[None, :]


@triton.jit
def _read(x, start, has, head, at, ROWS: tl.constexpr, E: tl.constexpr):
    """The first ROWS rows of a sentence's head, with zeros for those that it does not have."""
    return tl.load(x + _places(start, head, at, ROWS, E), mask=has, other=0.0)


@triton.jit
def _write(x, rows, start, has, head, at, ROWS: tl.constexpr, E: tl.constexpr):
    """Store those of the first ROWS rows that a sentence's head has."""
    tl.store(x + _places(start, head, at, ROWS, E), rows.to(x.dtype.element_ty), mask=has)


@triton.jit
def _weights(q_LE, k_SE, length, scale, CAUSAL: tl.constexpr, L: tl.constexpr, S: tl.constexpr):
    """softmax(q·kᵀ / √d_k) over the keys that exist, [L, S]; zeros where there are none."""
    scores_LS = tl.dot(q_LE, tl.trans(k_SE), input_precision="ieee") * scale
    keys = tl.arange(0, S)[None, :]
    seen = keys < length
    if CAUSAL:
        seen = seen & (keys <= tl.arange(0, L)[:, None])
    scores_LS = tl.where(seen, scores_LS, -float("inf"))
    largest_L = tl.max(scores_LS, 1)
    weights_LS = tl.exp(scores_LS - tl.where(largest_L == -float("inf"), 0.0, largest_L)[:, None])
    total_L = tl.sum(weights_LS, 1)
    return weights_LS / tl.where(total_L == 0.0, 1.0, total_L)[:, None]


@triton.jit
def attention_forward(
    q, k, v, out, cu_queries, cu_keys, q_at, k_at, v_at, out_at, scale, H: tl.constexpr, L: tl.constexpr,
    S: tl.constexpr, SMALLER_L: tl.constexpr, SMALLER_S: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """out = softmax(q·kᵀ / √d_k)·v."""
    head, first_q, rows, first_k, length = _sides(cu_queries, cu_keys, H)
    if not _belongs(rows, length, L, S, SMALLER_L, SMALLER_S):
        return
    has_q, has_k = (tl.arange(0, L) < rows)[:, None], (tl.arange(0, S) < length)[:, None]
    q_LE = _read(q, first_q, has_q, head, q_at, L, E)
    k_SE, v_SE = _read(k, first_k, has_k, head, k_at, S, E), _read(v, first_k, has_k, head, v_at, S, E)
    weights_LS = _weights(q_LE, k_SE, length, scale, CAUSAL, L, S)
    out_LE = tl.dot(weights_LS.to(v_SE.dtype), v_SE, input_precision="ieee")
    _write(out, out_LE, first_q, has_q, head, out_at, L, E)


@triton.jit
def attention_backward(
    q, k, v, d_out, d_q, d_k, d_v, cu_queries, cu_keys, q_at, k_at, v_at, d_out_at, d_q_at, d_k_at, d_v_at, scale,
    H: tl.constexpr, L: tl.constexpr, S: tl.constexpr, SMALLER_L: tl.constexpr, SMALLER_S: tl.constexpr,
    E: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """The gradients of q, k and v. The weights are recomputed rather than kept."""
    head, first_q, rows, first_k, length = _sides(cu_queries, cu_keys, H)
    if not _belongs(rows, length, L, S, SMALLER_L, SMALLER_S):
        return
    has_q, has_k = (tl.arange(0, L) < rows)[:, None], (tl.arange(0, S) < length)[:, None]
    q_LE = _read(q, first_q, has_q, head, q_at, L, E)
    k_SE, v_SE = _read(k, first_k, has_k, head, k_at, S, E), _read(v, first_k, has_k, head, v_at, S, E)
    d_out_LE = _read(d_out, first_q, has_q, head, d_out_at, L, E)
    weights_LS = _weights(q_LE, k_SE, length, scale, CAUSAL, L, S)
    d_v_SE = tl.dot(tl.trans(weights_LS.to(q_LE.dtype)), d_out_LE, input_precision="ieee")
    _write(d_v, d_v_SE, first_k, has_k, head, d_v_at, S, E)
    d_weights_LS = tl.dot(d_out_LE, tl.trans(v_SE), input_precision="ieee")
    d_weights_LS -= tl.sum(weights_LS * d_weights_LS, 1)[:, None]
    d_scores_LS = (weights_LS * d_weights_LS * scale).to(q_LE.dtype)
    d_q_LE = tl.dot(d_scores_LS, k_SE, input_precision="ieee")
    _write(d_q, d_q_LE, first_q, has_q, head, d_q_at, L, E)
    d_k_SE = tl.dot(tl.trans(d_scores_LS), q_LE, input_precision="ieee")
    _write(d_k, d_k_SE, first_k, has_k, head, d_k_at, S, E)


@triton.jit
def logits_to_gradients(logits, targets, nll, lse, stride, confidence, V: tl.constexpr, BLOCK: tl.constexpr):
    """A row of logits becomes softmax(logits) − confidence·onehot(target), in place; also −log p(target) and log Σexp.

    All are zero where there is no target, that is, where it is below 0, and NaN where it is none of the columns.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    columns = tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    has_target = target >= 0
    # Read before any of the row is overwritten.
    exists = has_target & (target < V)
    of_target = tl.load(logits + target, mask=exists, other=float("nan")).to(tl.float32)
    # Each column of the block has a maximum and a sum of its own, so that warps wait for one another only at the end.
    # The first maximum is finite: −∞ − (−∞) is NaN.
    most, sums = tl.full([BLOCK], -1e38, tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, V, BLOCK):
        x = tl.load(logits + start + columns, mask=start + columns < V, other=-float("inf")).to(tl.float32)
        above = x - most
        smaller = tl.exp2(-tl.abs(above) * LOG2_E)
        sums = tl.where(above > 0.0, sums * smaller + 1.0, sums + smaller)
        most = tl.maximum(most, x)
    largest = tl.max(most, 0)
    total = tl.sum(sums * tl.exp2((most - largest) * LOG2_E), 0)
    log_sum = largest + tl.log(total)
    tl.store(nll + row, tl.where(has_target, log_sum - of_target, 0.0))
    tl.store(lse + row, tl.where(has_target, log_sum, 0.0))
    # With these, a row that is not read becomes zero.
    largest = tl.where(has_target, largest, 0.0)
    inverse = tl.where(exists, 1.0 / total, tl.where(has_target, float("nan"), 0.0))
    for start in tl.static_range(0, V, BLOCK):
        at = start + columns
        x = tl.load(logits + at, mask=(at < V) & has_target, other=0.0).to(tl.float32)
        probability = tl.exp2((x - largest) * LOG2_E) * inverse
        tl.store(logits + at, probability.to(logits.dtype.element_ty), mask=at < V)
    tl.debug_barrier()
    of_target = tl.exp2((of_target - largest) * LOG2_E) * inverse - confidence
    tl.store(logits + target, of_target.to(logits.dtype.element_ty), mask=exists)


@triton.jit
def _kept(seed, row, DROPPED: tl.constexpr, P: tl.constexpr):
    """Which elements of a row dropout keeps: those whose 16 random bits are not below DROPPED; eight per draw."""
    a, b, c, d = tl.randint4x(tl.load(seed), row * (P // 8) + tl.arange(0, P // 8))
    a_c = tl.join(tl.join(a & 0xFFFF, (a >> 16) & 0xFFFF), tl.join(c & 0xFFFF, (c >> 16) & 0xFFFF))
    b_d = tl.join(tl.join(b & 0xFFFF, (b >> 16) & 0xFFFF), tl.join(d & 0xFFFF, (d >> 16) & 0xFFFF))
    return tl.reshape(tl.join(a_c, b_d), [P]) >= DROPPED


@triton.jit
def normalised(total_D, has, epsilon, D: tl.constexpr):
    """A row minus its mean, divided by its standard deviation, and the reciprocal of the latter."""
    centred_D = tl.where(has, total_D - tl.sum(total_D, 0) / D, 0.0)
    scale = tl.rsqrt(tl.sum(centred_D * centred_D, 0) / D + epsilon)
    return centred_D * scale, scale


@triton.jit
def residual_norm_forward(
    x, y, seed, weight, bias, out, total, keep_scale, epsilon, DROPPED: tl.constexpr, D: tl.constexpr, P: tl.constexpr
):
    """total = x + dropout(y) of a row, what is kept of y times `keep_scale`; out = LayerNorm(total)."""
    row, column = tl.program_id(0), tl.arange(0, P)
    has = column < D
    places = row.to(tl.int64) * D + column
    x_D = tl.load(x + places, mask=has, other=0.0)
    y_D = tl.load(y + places, mask=has, other=0.0).to(tl.float32)
    if DROPPED > 0:
        y_D = tl.where(_kept(seed, row, DROPPED, P), y_D * keep_scale, 0.0)
    total_D = (x_D.to(tl.float32) + y_D).to(x_D.dtype)
    tl.store(total + places, total_D, mask=has)
    normed_D, _ = normalised(total_D.to(tl.float32), has, epsilon, D)
    weight_D, bias_D = tl.load(weight + column, mask=has), tl.load(bias + column, mask=has)
    tl.store(out + places, (normed_D * weight_D + bias_D).to(out.dtype.element_ty), mask=has)


@triton.jit
def residual_norm_backward(
    d_out, total, seed, weight, d_x, d_y, sums, rows, keep_scale, epsilon,
    DROPPED: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The gradients of x and y for each row of a program, and the sums over these rows for weight and bias."""
    column = tl.arange(0, P)
    has = column < D
    weight_D = tl.load(weight + column, mask=has, other=0.0).to(tl.float32)
    d_weight_D, d_bias_D = tl.zeros([P], tl.float32), tl.zeros([P], tl.float32)
    for first in tl.range(0, rows - tl.program_id(0), tl.num_programs(0), num_stages=2):
        row = tl.program_id(0) + first
        places = row.to(tl.int64) * D + column
        total_D = tl.load(total + places, mask=has, other=0.0).to(tl.float32)
        d_out_D = tl.load(d_out + places, mask=has, other=0.0).to(tl.float32)
        normed_D, scale = normalised(total_D, has, epsilon, D)
        d_weight_D += d_out_D * normed_D
        d_bias_D += d_out_D
        d_normed_D = d_out_D * weight_D
        d_total_D = d_normed_D - tl.sum(d_normed_D, 0) / D - normed_D * (tl.sum(d_normed_D * normed_D, 0) / D)
        d_total_D *= scale
        tl.store(d_x + places, d_total_D.to(d_x.dtype.element_ty), mask=has)
        if DROPPED > 0:
            d_total_D = tl.where(_kept(seed, row, DROPPED, P), d_total_D * keep_scale, 0.0)
        tl.store(d_y + places, d_total_D.to(d_y.dtype.element_ty), mask=has)
    sums += tl.program_id(0) * 2 * D + column
    tl.store(sums, d_weight_D, mask=has)
    tl.store(sums + D, d_bias_D, mask=has)


@triton.jit
def rectified_product(
    x, y, rectified, out, sums, rows, K: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of x·y, zero where `rectified` is not above zero, and its sums over rows; all but `sums` are descriptors.

    Tiles are taken in groups of GROUP rows of them, so that what they read is in the cache.
    """
    program, along = tl.program_id(0), tl.cdiv(rows, ROWS)
    tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    first = program // (GROUP * tiles) * GROUP
    height = tl.minimum(along - first, GROUP)
    row = (first + program % (GROUP * tiles) % height) * ROWS
    column = program % (GROUP * tiles) // height * COLUMNS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, K, PART):
        total = tl.dot(x.load([row, k]), y.load([k, column]), total)
    total = tl.where(rectified.load([row, column]) > 0, total, 0.0)
    out.store([row, column], total.to(out.dtype))
    columns = column + tl.arange(0, COLUMNS)
    tl.store(sums + row // ROWS * N + columns, tl.sum(total, 0), mask=columns < N)
