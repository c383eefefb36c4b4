"""Attention within packed sentences, from projections as one matmul wrote them, forward and backward.

On GPUs, this is for short sentences (`ops.short_attention`). On CPUs it is for training: one head of one sentence is
computed at a time, with all that it needs in a core's cache (`attend_sentences.h`). No padded grid is written, nor are
the weights kept; gradients are written as the next matmul reads them. The plain reference is
`ops.attention.attention_reference`.

Shapes: N, M packed rows of queries and of keys; H heads; Q the width of all heads of a query, H · d_k, V that of
values, H · d_v, and E that of keys and values, Q + V.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.ops.short_attention import LONGEST as LONGEST_ON_GPU
from seq2seq.ops.short_attention import short_attention, supports_short_sentences
from seq2seq.support.devices import compute_dtype

LONGEST = {torch.float32: 2048, torch.bfloat16: 64}
"""Sentence lengths up to which this is faster than matmuls over a padded grid. There is no limit for causal attention,
where half of those matmuls is wasted (docs/log.md, 2026-11-26: bfloat16 with AMX; measured there without padding)."""


class Kind(NamedTuple):
    """The kind of attention: the number of heads, the widths Q and V of queries and values, whether it is causal."""

    heads: int
    widths: tuple[int, int]
    causal: bool

    @property
    def head_widths(self) -> tuple[int, int]:
        """The widths of one head: d_k and d_v."""
        return self.widths[0] // self.heads, self.widths[1] // self.heads


def prefers_sentences(x: Tensor, queries: Layout, keys: Layout, kind: Kind) -> bool:
    """Whether to use this for projections of rows like `x`."""
    longest = max(queries.max_length, keys.max_length)
    if native.supports(x):
        limit = LONGEST.get(compute_dtype(x), 0) if torch.is_grad_enabled() else 0
        return bool(limit) and (kind.causal or longest <= limit)
    if not supports_short_sentences(x.device, compute_dtype(x), *kind.head_widths):
        return False
    # These kernels take only sentences, back to back: no filler.
    return longest <= LONGEST_ON_GPU and not (queries.filler or keys.filler)


def sentence_attention(rows: tuple[Tensor, ...], queries: Layout, keys: Layout, kind: Kind) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, V]; if causal, row i sees keys up to position i only.

    `rows` are queries [N, Q] and keys with values [M, E] or, in self-attention, all in one matrix [N, Q + E].
    """
    if not native.supports(rows[0]):
        return short_attention(rows, queries, keys, kind.heads, causal=kind.causal)
    out_NV: Tensor = _SentenceAttention.apply(kind, queries, keys, *rows)  # type: ignore[no-untyped-call]
    return out_NV


class _SentenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: Kind, queries: Layout, keys: Layout, *rows: Tensor) -> Tensor:
        ctx.kind, ctx.layouts = kind, (queries, keys)
        ctx.save_for_backward(*rows)
        out = rows[0].new_empty(rows[0].shape[0], kind.widths[1])
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
    (heads, (width, values), causal), (queries, keys) = ctx.kind, ctx.layouts
    sizes = queries.batch_size, heads, width // heads, values // heads
    distances = rows[0].shape[1], width if len(rows) == 1 else 0, rows[-1].shape[1]
    native.call(name, *given, rows[0], rows[-1], queries.cu_seqlens, keys.cu_seqlens, *sizes, *distances, causal)
