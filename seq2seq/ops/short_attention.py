"""Attention within short packed sentences on GPUs: one tile per head of a sentence, forward and backward.

FlashAttention's kernel for packed rows works in tiles of 128 rows, of which a sentence of 25 fills a fifth: it took
11.5 ms of an update where this takes 3.2 (docs/log.md, 2026-11-26). Here all sentences use the smallest tile, a power
of two, that holds the longest of the batch; each pair of sizes is compiled when it is first met. All sums are in a
fixed order.

Shapes: N, M packed rows of queries and of keys; H heads; E width of a head. The plain reference is
`ops.attention.attention_reference`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2seq.ops.gpu import power_of_two, runs_kernels
from seq2seq.ops.packing import Layout

LONGEST = 128
"""Sentence length up to which a multiprocessor can hold the attention weights of a head."""
WIDTHS = (16, 32, 64, 128)
WARPS = {16: 1, 32: 2, 64: 4, 128: 8}


def short_attention(
    q_NHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, queries: Layout, keys: Layout, *, causal: bool = False
) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, H, E]; with `causal`, row i sees keys up to position i only."""
    lengths = queries.cu_lengths, keys.cu_lengths, queries.max_length, keys.max_length
    out: Tensor = torch.ops.seq2seq.short_attention(q_NHE, k_MHE, v_MHE, *lengths, causal)
    return out


def takes_short_sentences(device: torch.device, dtype: torch.dtype, d_k: int, d_v: int) -> bool:
    """Whether `short_attention` can be used on this device, in this dtype and for heads of these widths."""
    return dtype in (torch.float16, torch.bfloat16) and d_k == d_v and d_k in WIDTHS and runs_kernels(device)


def _launch(name: str, tensors: list[Tensor], cu: list[Tensor], most: tuple[int, int], causal: bool) -> None:
    from seq2seq.ops import gpu_kernels

    _, heads, width = tensors[0].shape
    tile_q, tile_k = (max(16, power_of_two(length)) for length in most)
    distances = [(x.stride(0), x.stride(1)) for x in tensors]
    sizes = {"H": heads, "L": tile_q, "S": tile_k, "E": width, "CAUSAL": causal}
    grid = ((cu[0].shape[0] - 1) * heads,)
    getattr(gpu_kernels, name)[grid](
        *tensors, *cu, *distances, width**-0.5, **sizes, num_warps=WARPS[max(tile_q, tile_k)]
    )


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, most_q: int, most_k: int, causal: bool
) -> Tensor:
    out = q.new_empty(q.shape)
    _launch("attention_forward", [q, k, v, out], [cu_q, cu_k], (most_q, most_k), causal)
    return out


def _backward(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, cu_q: Tensor, cu_k: Tensor, most_q: int, most_k: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    # The gradient of a sum is an expanded tensor, whose elements are not adjacent in memory.
    d_out = d_out if d_out.stride(2) == 1 else d_out.contiguous()
    _launch("attention_backward", [q, k, v, d_out, *gradients], [cu_q, cu_k], (most_q, most_k), causal)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.most_q, ctx.most_k, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, cu_q, cu_k = ctx.saved_tensors
    backward = torch.ops.seq2seq.short_attention_backward
    return (*backward(q, k, v, d_out, cu_q, cu_k, ctx.most_q, ctx.most_k, ctx.causal), None, None, None, None, None)


# Registered as operators so that PyTorch's compiler does not look inside.
_library = torch.library.Library("seq2seq", "DEF")
_lengths = "Tensor cu_q, Tensor cu_k, SymInt most_q, SymInt most_k, bool causal"
_library.define(f"short_attention(Tensor q, Tensor k, Tensor v, {_lengths}) -> Tensor")
_library.define(
    f"short_attention_backward(Tensor q, Tensor k, Tensor v, Tensor d_out, {_lengths}) -> (Tensor, Tensor, Tensor)"
)
for _key in ("CUDA", "CPU"):
    _library.impl("short_attention", _forward, _key)
    _library.impl("short_attention_backward", _backward, _key)
torch.library.register_fake("seq2seq::short_attention", lambda q, *_: q.new_empty(q.shape), lib=_library)
torch.library.register_fake(
    "seq2seq::short_attention_backward",
    lambda q, k, v, *_: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
    lib=_library,
)
torch.library.register_autograd("seq2seq::short_attention", _gradients, setup_context=_save, lib=_library)
