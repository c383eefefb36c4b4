"""Scaled dot-product attention over packed rows (Vaswani et al., 2017, section 3.2.1), alongside its plain reference.

`attend` chooses the form. For what neither `row_attention`, `sentence_attention` nor `short_attention` takes, GPUs that
support it use FlashAttention's kernel for packed rows (Dao, 2023); elsewhere, PyTorch's attention runs over the padded
grid. The choice depends on device, dtype, shapes and what is asked for (gradients, causality, the same bits in any
batch), never on timing: a resumed run computes what it would have computed without the interruption. FlashAttention's
backward pass accumulates in no fixed order unless `torch.use_deterministic_algorithms(True)` is set.

Shapes: N, M packed rows of queries and of keys; H heads; E width of a head, d_k in queries and keys, d_v in values and
outputs; B, L, S the padded grid.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import prefers_rows, row_attention
from seq2seq.ops.sentence_attention import prefers_sentences, sentence_attention
from seq2seq.ops.short_attention import prefers_short, short_attention
from seq2seq.support.devices import capability
from seq2seq.support.errors import first_line
from seq2seq.support.progress import say


def attend(projected: tuple[Tensor, ...], queries: Layout, keys: Layout, shape: AttentionShape) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, V], in the form that suits these rows.

    `projected` are queries [N, Q] and keys with values [M, E] or, in self-attention in training, all in one matrix
    [N, Q + E].
    """
    if not shape.causal and prefers_rows(projected[0], queries, keys):
        q_NQ, rows_ME = projected
        return row_attention(q_NQ, rows_ME, keys.lists, queries.sentences, shape.heads)
    if prefers_sentences(projected[0], queries, keys, shape):
        return sentence_attention(projected, queries, keys, shape)
    if prefers_short(projected[0], queries, keys, shape):
        return short_attention(projected, queries, keys, shape.heads, causal=shape.causal)
    return attention(*shape.split(projected), queries, keys, causal=shape.causal).flatten(1)


def attention(
    q_NHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, queries: Layout, keys: Layout, *, causal: bool = False
) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, H, E]; with `causal`, row i sees keys up to position i only."""
    # Packed-row kernels take only sentences, back to back: no filler.
    if not (queries.filler or keys.filler):
        kind = q_NHE.device, q_NHE.dtype, q_NHE.shape[-1], v_MHE.shape[-1]
        if supports_packed_rows(*kind):
            return _packed_kernel(q_NHE, k_MHE, v_MHE, queries, keys, causal)
    q_BHLE, k_BHSE, v_BHSE = (
        layout.unpack(rows).transpose(1, 2) for rows, layout in ((q_NHE, queries), (k_MHE, keys), (v_MHE, keys))
    )
    # Padding is at the end, where causal attention never looks.
    mask = None if causal or keys.is_rectangular else keys.mask[:, None, None, :]
    if q_NHE.device.type == "cpu" and q_NHE.requires_grad:
        out_BHLE = _batched_products(q_BHLE, k_BHSE, v_BHSE, mask, causal)
    else:
        out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHSE, v_BHSE, attn_mask=mask, is_causal=causal)
    return queries.pack(out_BHLE.transpose(1, 2))


def supports_packed_rows(device: torch.device, dtype: torch.dtype, d_k: int, d_v: int) -> bool:
    """Whether the packed-row kernel can be used here; if it should work but fails, one line on stderr says so."""
    return has_packed_kernel(capability(device), dtype, d_k, d_v) and _packed_kernel_works(device, dtype, d_k)


def has_packed_kernel(compute_capability: tuple[int, int], dtype: torch.dtype, d_k: int, d_v: int) -> bool:
    """Whether the packed-row kernel supports this GPU generation, dtype and head widths.

    Above a head width of 192 it has no backward pass on some of these GPUs.
    """
    return (
        compute_capability >= (8, 0) and dtype in (torch.float16, torch.bfloat16) and d_k == d_v <= 192 and d_k % 8 == 0
    )


@functools.cache
def _packed_kernel_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Try the kernel, forward and backward: an old driver, or a build without it, only shows up this way."""
    try:
        # The first question may come from translation.
        with torch.inference_mode(False), torch.enable_grad():
            rows = torch.zeros(3, 1, width, device=device, dtype=dtype, requires_grad=True)
            layout = Layout.of([2, 1], device)
            out = _packed_kernel(rows, rows, rows, layout, layout, causal=True)
            # A device error surfaces only when the result is read.
            torch.autograd.grad(out.sum(), rows)[0].sum().item()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        say(f"no attention over packed rows on {device} ({first_line(error)}); falling back to padded sentences")
        return False
    return True


def _packed_kernel(q_NHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, queries: Layout, keys: Layout, causal: bool) -> Tensor:
    # Imported here because the import takes more than a second.
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q_NHE,
        k_MHE,
        v_MHE,
        queries.cu_seqlens,
        keys.cu_seqlens,
        queries.max_length,
        keys.max_length,
        window_size=(-1, 0) if causal else (-1, -1),
    )
    return cast(Tensor, out)


def _batched_products(q_BHLE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The formula as batched matmuls over the padded grid.

    At sentence lengths, its backward pass in bfloat16 is six times as fast as that of PyTorch's fused CPU kernel
    (docs/log.md, 2026-11-22).
    """
    scores_BHLS = torch.matmul(q_BHLE * q_BHLE.shape[-1] ** -0.5, k_BHSE.transpose(-1, -2))
    if causal:
        mask = torch.ones(scores_BHLS.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores_BHLS = scores_BHLS.masked_fill(~mask, -math.inf)
    return torch.matmul(scores_BHLS.softmax(-1), v_BHSE)


def attention_reference(
    q_NHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, queries: Layout, keys: Layout, *, causal: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The textbook formula, sentence by sentence: the output [N, H, E], and each sentence's weights [H, L, S]."""
    outputs, weights = [], []
    for q, k, v in zip(
        q_NHE.split(queries.lengths.tolist()),
        k_MHE.split(keys.lengths.tolist()),
        v_MHE.split(keys.lengths.tolist()),
        strict=True,
    ):
        scores_HLS = torch.einsum("lhe,she->hls", q, k) / math.sqrt(q.shape[-1])
        if causal:
            future = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device).triu(1)
            scores_HLS = scores_HLS.masked_fill(future, -math.inf)
        weights_HLS = scores_HLS.softmax(-1)
        weights.append(weights_HLS)
        outputs.append(torch.einsum("hls,she->lhe", weights_HLS, v))
    return torch.cat(outputs), weights
