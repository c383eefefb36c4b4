"""Attention within short packed sentences on GPUs: one tile per head of a sentence, forward and backward.

FlashAttention's kernel for packed rows works in tiles of 128 rows, of which a sentence of 25 fills a fifth: it took
11.5 ms of an update where this took 3.2 (docs/log.md, 2026-11-26). Here a tile is the smallest power of two that holds
the longest sentence of the batch or, in another launch, half of that where the sentence fits; each pair of sizes is
compiled when it is first met. Projections are read as one matmul wrote them, and their gradients written as the next
one reads them. All sums are in a fixed order.

Shapes: N, M packed rows of queries and of keys; H heads; E width of a head. The plain reference is
`ops.attention.attention_reference`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.gpu import next_power_of_2, supports_triton
from seq2seq.ops.operators import register
from seq2seq.ops.packing import Layout
from seq2seq.support.devices import compute_dtype

LONGEST = 128
"""Sentence length up to which a multiprocessor can hold the attention weights of a head."""
WIDTHS = (16, 32, 64, 128)
SHARED_MEMORY = 160 << 10
"""Bytes of shared memory that the backward pass needs for heads of 128 columns on Hopper, the most of all GPUs. An A100
has 164 KiB in each multiprocessor; a GeForce card has 100, in which narrower heads fit."""
WARPS = {16: 1, 32: 2, 64: 4, 128: 8}
"""Warps for each size of tile."""
REGISTERS = {32: 112, 64: 128, 128: 128}
"""The most that a thread gets in the backward pass, for heads of up to 64 columns: with as many as the compiler would
take, fewer tiles are computed at a time."""


def prefers_short(x: Tensor, queries: Layout, keys: Layout, shape: AttentionShape) -> bool:
    """Whether to use this for projections of rows like `x`."""
    if not supports_short_sentences(x.device, compute_dtype(x), *shape.head_widths):
        return False
    # The kernels take only sentences, back to back: no filler.
    return max(queries.max_length, keys.max_length) <= LONGEST and not (queries.filler or keys.filler)


def short_attention(
    rows: tuple[Tensor, ...], queries: Layout, keys: Layout, heads: int, *, causal: bool = False
) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, H·E]; with `causal`, row i sees keys up to position i only.

    `rows` are queries [N, H·E] and keys with values [M, 2·H·E] or, in self-attention, all in one matrix [N, 3·H·E].
    """
    lengths = queries.cu_seqlens, keys.cu_seqlens, queries.max_length, keys.max_length
    out: Tensor = torch.ops.seq2seq.short_attention(rows, *lengths, heads, causal)
    return out


def supports_short_sentences(device: torch.device, dtype: torch.dtype, d_k: int, d_v: int) -> bool:
    """Whether `short_attention` can be used on this device, in this dtype and for heads of these widths."""
    if not (dtype in (torch.float16, torch.bfloat16) and d_k == d_v and d_k in WIDTHS and supports_triton(device)):
        return False
    return d_k < 128 or torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > SHARED_MEMORY


def _launch(
    name: str, tensors: list[Tensor], heads: int, cu: tuple[Tensor, Tensor], most: tuple[int, int], causal: bool
) -> None:
    from seq2seq.ops import gpu_kernels

    tensors = [x.unflatten(1, (heads, -1)) for x in tensors]
    width, distances = tensors[0].shape[2], [(x.stride(0), x.stride(1)) for x in tensors]
    kernel, grid = getattr(gpu_kernels, name), ((cu[0].shape[0] - 1) * heads,)
    smaller = 0, 0
    for tile in _tiles(*most, causal):
        sizes = {"H": heads, "L": tile[0], "S": tile[1], "SMALLER_L": smaller[0], "SMALLER_S": smaller[1], "E": width}
        registers = REGISTERS.get(max(tile)) if name == "attention_backward" and width <= 64 else None
        limits = {"num_warps": WARPS[max(tile)], "maxnreg": registers}
        kernel[grid](*tensors, *cu, *distances, width**-0.5, **sizes, CAUSAL=causal, **limits)
        smaller = tile


def _tiles(queries: int, keys: int, causal: bool) -> list[tuple[int, int]]:
    """Tiles for sentences of at most these lengths: one that holds all, after one of half the size, if that differs."""
    whole = max(16, next_power_of_2(queries)), max(16, next_power_of_2(keys))
    if causal:
        # The targets of a batch are of similar length: hardly any would fit the smaller one.
        return [whole]
    half = max(16, max(whole) // 2)
    return sorted({(min(whole[0], half), min(whole[1], half)), whole})


def _width(rows: list[Tensor]) -> int:
    return rows[0].shape[1] // (3 if len(rows) == 1 else 1)


def _parts(rows: list[Tensor]) -> list[Tensor]:
    """Queries, keys and values, [N, H·E], [M, H·E] and [M, H·E]: views of `rows`."""
    return [part for matrix in rows for part in matrix.split(_width(rows), 1)]


def _forward(
    rows: list[Tensor], cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, heads: int, causal: bool
) -> Tensor:
    out = rows[0].new_empty(rows[0].shape[0], _width(rows))
    _launch("attention_forward", [*_parts(rows), out], heads, (cu_q, cu_k), (max_q, max_k), causal)
    return out


def _backward(
    rows: list[Tensor], d_out: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, heads: int, causal: bool
) -> list[Tensor]:
    gradients = [matrix.new_empty(matrix.shape) for matrix in rows]
    # The gradient of a sum is an expanded tensor, whose elements are not adjacent in memory.
    d_out = d_out if d_out.stride(1) == 1 else d_out.contiguous()
    tensors = [*_parts(rows), d_out, *_parts(gradients)]
    _launch("attention_backward", tensors, heads, (cu_q, cu_k), (max_q, max_k), causal)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    rows, *lengths, ctx.max_q, ctx.max_k, ctx.heads, ctx.causal = inputs
    ctx.save_for_backward(*lengths, *rows)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[list[Tensor] | None, ...]:
    cu_q, cu_k, *rows = ctx.saved_tensors
    sizes = cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.heads, ctx.causal
    return torch.ops.seq2seq.short_attention_backward(rows, d_out, *sizes), None, None, None, None, None, None


_sizes = "Tensor cu_q, Tensor cu_k, SymInt max_q, SymInt max_k, int heads, bool causal"
register(
    f"short_attention(Tensor[] rows, {_sizes}) -> Tensor",
    _forward,
    lambda rows, *_: rows[0].new_empty(rows[0].shape[0], _width(rows)),
    gradients=_gradients,
    save=_save,
)
register(
    f"short_attention_backward(Tensor[] rows, Tensor d_out, {_sizes}) -> Tensor[]",
    _backward,
    lambda rows, *_: [matrix.new_empty(matrix.shape) for matrix in rows],
)
