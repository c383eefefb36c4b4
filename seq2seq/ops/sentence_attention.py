"""Attention within packed sentences in training on CPUs, by C++ functions, forward and backward.

One head of one sentence is computed at a time, with all that it needs in a core's cache (`attend_sentences.h`).
Projections are read as one matmul wrote them, and their gradients written as the next one reads them; no padded grid is
written, nor are the weights kept. The plain reference is `ops.attention.attention_reference`.

Shapes: as in `attention_shape`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seq2seq.ops import native
from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.packing import Layout
from seq2seq.support.devices import compute_dtype

LONGEST = {torch.float32: 2048, torch.bfloat16: 64}
"""Sentence lengths up to which this is faster than matmuls over a padded grid. There is no limit for causal attention,
where half of those matmuls is wasted (docs/log.md, 2026-11-26: bfloat16 with AMX; measured there without padding)."""


def prefers_sentences(x: Tensor, queries: Layout, keys: Layout, shape: AttentionShape) -> bool:
    """Whether to use this for projections of rows like `x`."""
    if not (native.supports(x) and torch.is_grad_enabled()):
        return False
    limit = LONGEST.get(compute_dtype(x), 0)
    return limit > 0 and (shape.causal or max(queries.max_length, keys.max_length) <= limit)


def sentence_attention(rows: tuple[Tensor, ...], queries: Layout, keys: Layout, shape: AttentionShape) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, V]; if causal, row i sees keys up to position i only.

    `rows` are queries [N, Q] and keys with values [M, E] or, in self-attention, all in one matrix [N, Q + E].
    """
    out_NV: Tensor = _SentenceAttention.apply(shape, queries, keys, *rows)  # type: ignore[no-untyped-call]
    return out_NV


class _SentenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: AttentionShape, queries: Layout, keys: Layout, *rows: Tensor) -> Tensor:
        ctx.shape, ctx.layouts = shape, (queries, keys)
        ctx.save_for_backward(*rows)
        out = rows[0].new_empty(rows[0].shape[0], shape.widths[1])
        _call("attend_sentences", [out], rows, ctx)
        out[queries.total - queries.filler :] = 0
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        rows = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in rows]
        _call("gradients_of_sentences", [gradients[0], gradients[-1], d_out.contiguous()], rows, ctx)
        for x, layout in zip(gradients, ctx.layouts, strict=False):
            x[layout.total - layout.filler :] = 0
        return None, None, None, *gradients


def _call(name: str, given: list[Tensor], rows: tuple[Tensor, ...], ctx: Any) -> None:
    (heads, (width, values), causal), (queries, keys) = ctx.shape, ctx.layouts
    sizes = queries.batch_size, heads, width // heads, values // heads
    distances = rows[0].shape[1], width if len(rows) == 1 else 0, rows[-1].shape[1]
    native.call(name, *given, rows[0], rows[-1], queries.cu_seqlens, keys.cu_seqlens, *sizes, *distances, causal)
