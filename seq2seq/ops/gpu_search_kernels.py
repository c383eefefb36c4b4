"""Triton kernels for what a search step does on GPUs between its matmuls; see `ops.gpu_kernels`.

The functions that launch them are elsewhere, alongside their plain references: in row_attention.py, topk.py,
residual_norm.py and model/recorded_cache.py. All sums are in a fixed order, row by row. Sizes in capitals are known at
compile time; one that begins with P is another rounded up to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seq2seq.ops.gpu_kernels import normalised

LEAST = tl.constexpr(-3e38)
"""Stands for a score of −∞ where −∞ itself marks what does not exist."""


@triton.jit(do_not_specialize=["before", "width", "count", "filled", "length", "filler"])
def grown_lists(
    lists, parents, sentences, out, places, sentence_of, before, width, count, filled, length, filler, T: tl.constexpr,
):  # fmt: skip
    """A row's list: that of its parent, one of the `before` hypotheses of its sentence, and then the row's own place.

    Rows after the first `count` are padding: they do what the last of these does, but in the place `filler`.
    """
    row, in_T = tl.program_id(0), tl.arange(0, T)
    child = tl.minimum(row, count - 1)
    place = tl.where(row < count, filled + row, filler)
    parent = child // width * before + tl.load(parents + child)
    list_T = tl.load(lists + parent * T + in_T, mask=in_T < length, other=-1)
    tl.store(out + row * T + in_T, tl.where(in_T == length, place, list_T))
    tl.store(places + row, place.to(tl.int64))
    tl.store(sentence_of + row, tl.load(sentences + child // width))


@triton.jit(do_not_specialize=["longest"])
def row_attention(
    q, rows, lists, list_of, out, longest, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of a query attends to the rows in the query's list: H heads, K and V the widths of a key and a value."""
    row, head = tl.program_id(0) // H, tl.program_id(0) % H
    in_k, in_v, in_block = tl.arange(0, PK), tl.arange(0, PV), tl.arange(0, BLOCK)
    q_K = tl.load(q + row.to(tl.int64) * H * K + head * K + in_k, mask=in_k < K, other=0.0).to(tl.float32) * scale
    lists += tl.load(list_of + row).to(tl.int64) * longest
    most, total, sum_V = -float("inf"), 0.0, tl.zeros([PV], tl.float32)
    start = 0
    while start < longest:
        place = tl.load(lists + start + in_block, mask=start + in_block < longest, other=-1).to(tl.int64)[:, None]
        # Most lists are shorter than the longest.
        goes_on = tl.load(lists + start + BLOCK, mask=start + BLOCK < longest, other=-1) >= 0
        keys = rows + place * (H * (K + V)) + head * K + in_k[None, :]
        values = rows + place * (H * (K + V)) + H * K + head * V + in_v[None, :]
        k_BK = tl.load(keys, mask=(place >= 0) & (in_k < K)[None, :], other=0.0).to(tl.float32)
        v_BV = tl.load(values, mask=(place >= 0) & (in_v < V)[None, :], other=0.0).to(tl.float32)
        scores_B1 = tl.where(place >= 0, tl.sum(k_BK * q_K[None, :], 1)[:, None], -float("inf"))
        # No list is empty, so this is finite from the first block on.
        larger = tl.maximum(most, tl.max(scores_B1))
        weights_B1 = tl.exp(scores_B1 - larger)
        shrunk = tl.exp(most - larger)
        sum_V = sum_V * shrunk + tl.sum(weights_B1 * v_BV, 0)
        total = total * shrunk + tl.sum(weights_B1)
        most = larger
        start = tl.where(goes_on, start + BLOCK, longest)
    places = row.to(tl.int64) * H * V + head * V + in_v
    tl.store(out + places, (sum_V / total).to(out.dtype.element_ty), mask=in_v < V)


@triton.jit
def negative_log_sum_exp(logits, out, V: tl.constexpr, BLOCK: tl.constexpr):
    """−log Σexp of a row of V logits."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        x = tl.load(logits + row * V + start + columns, mask=start + columns < V, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(most, x)
        # −∞ − (−∞) is NaN.
        safe = tl.where(larger == -float("inf"), 0.0, larger)
        sums = sums * tl.exp(most - safe) + tl.exp(x - safe)
        most = larger
    largest = tl.max(most, 0)
    tl.store(out + row, -largest - tl.log(tl.sum(sums * tl.exp(most - largest), 0)))


@triton.jit
def block_maxima(scores, out, V: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr):
    """The maximum of each block of SIZE scores in a row of V, the last perhaps shorter; BLOCKS blocks at a time."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.cdiv(V, SIZE)
    for first in range(0, count, BLOCKS):
        blocks = first + tl.arange(0, BLOCKS)
        at = blocks[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
        found = tl.max(tl.load(scores + row * V + at, mask=at < V, other=-float("inf")).to(tl.float32), 1)
        tl.store(out + row * count + blocks, found.to(out.dtype.element_ty), mask=blocks < count)


@triton.jit
def best_of_blocks(
    log_probs, maxima, scores, out, places, tokens,
    K: tl.constexpr, V: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, COUNT: tl.constexpr,
    P: tl.constexpr, PC: tl.constexpr,
):  # fmt: skip
    """The COUNT best continuations of K scored hypotheses, highest first, from the COUNT blocks with largest maxima.

    Each of the N blocks of a hypothesis holds SIZE log-probabilities, the last perhaps fewer.
    """
    slot = tl.program_id(0).to(tl.int64)
    in_P, in_C, in_CB = tl.arange(0, P), tl.arange(0, PC), tl.arange(0, PC * SIZE)
    maxima_P = tl.load(maxima + slot * K * N + in_P, mask=in_P < K * N, other=0.0).to(tl.float32)
    maxima_P += tl.load(scores + slot * K + in_P // N, mask=in_P < K * N, other=0.0)
    left_P = tl.where(in_P < K * N, tl.where(maxima_P > LEAST, maxima_P, LEAST), -float("inf"))
    chosen_C = tl.zeros([PC], tl.int32)
    for rank in range(COUNT):
        block = tl.argmax(left_P, 0)
        chosen_C = tl.where(in_C == rank, block, chosen_C)
        left_P = tl.where(in_P == block, -float("inf"), left_P)
    rows_C = slot * K + chosen_C // N
    tokens_CB = (chosen_C % N * SIZE)[:, None] + tl.arange(0, SIZE)[None, :]
    has_CB = (in_C < COUNT)[:, None] & (tokens_CB < V)
    sums_CB = tl.load(log_probs + rows_C[:, None] * V + tokens_CB, mask=has_CB, other=0.0).to(tl.float32)
    sums_CB += tl.load(scores + rows_C)[:, None]
    left_CB = tl.reshape(tl.where(has_CB, tl.where(sums_CB > LEAST, sums_CB, LEAST), -float("inf")), [PC * SIZE])
    for rank in range(COUNT):
        most, at = tl.max(left_CB, 0, return_indices=True)
        left_CB = tl.where(in_CB == at, -float("inf"), left_CB)
        block = tl.sum(tl.where(in_C == at // SIZE, chosen_C, 0))
        tl.store(out + slot * COUNT + rank, tl.where(most > LEAST, most, -float("inf")))
        tl.store(places + slot * COUNT + rank, (block // N).to(tl.int64))
        tl.store(tokens + slot * COUNT + rank, (block % N * SIZE + at % SIZE).to(tl.int64))


@triton.jit
def add_norm(x, y, weight, bias, out, epsilon, D: tl.constexpr, P: tl.constexpr):
    """LayerNorm(x + y) of a row; the sum is rounded to the rows' dtype, as a separate addition would round it."""
    places = tl.program_id(0).to(tl.int64) * D + tl.arange(0, P)
    column = tl.arange(0, P)
    has = column < D
    x_D = tl.load(x + places, mask=has, other=0.0)
    total_D = (x_D + tl.load(y + places, mask=has, other=0.0)).to(x_D.dtype).to(tl.float32)
    normed_D, _ = normalised(total_D, has, epsilon, D)
    weight_D = tl.load(weight + column, mask=has, other=0.0).to(tl.float32)
    bias_D = tl.load(bias + column, mask=has, other=0.0).to(tl.float32)
    tl.store(out + places, (normed_D * weight_D + bias_D).to(out.dtype.element_ty), mask=has)
