"""Attention of one search step: the new rows of each sentence against all its keys, alongside the plain reference.

The hypotheses of a sentence are its queries, side by side, so that keys are read once for all of them; a mask says
which keys each may see. Columns come in blocks: on CPUs, a softmax over fewer than 16 columns takes up to twelve times
as long as one over 16, and matmuls over part of a larger buffer copy it first.

Shapes: S slots, H heads, K hypotheses (queries) of a slot, C columns (keys), L source length, E width of a head: d_k in
queries and keys, d_v in values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops.packing import Layout
from seq2seq.support.devices import processor_has

BLOCK = 16
FEW = 32
"""Slots times heads from which two batched matmuls are faster than PyTorch's kernel in bfloat16."""
HAS_AMX = processor_has("amx_bf16")


def padded_heads(rows_NHE: Tensor, layout: Layout) -> Tensor:
    """Packed keys or values as [S, H, C, E], where C is L, but at least `BLOCK`."""
    heads_SHLE = layout.unpack(rows_NHE).transpose(1, 2)
    return F.pad(heads_SHLE, (0, 0, 0, max(BLOCK - layout.max_length, 0))).contiguous()


def pad_mask(layout: Layout) -> Tensor | None:
    """0 at the tokens of sentences, −∞ at the padding after them, [S, 1, 1, C]; None where there is no padding."""
    if layout.is_rectangular and layout.max_length >= BLOCK:
        return None
    columns = torch.arange(max(layout.max_length, BLOCK), device=layout.lengths.device)
    pads_SC = columns >= layout.lengths[:, None]
    return torch.zeros(pads_SC.shape, device=pads_SC.device).masked_fill_(pads_SC, -math.inf)[:, None, None, :]


def step_attention_reference(q_SHKE: Tensor, k_SHCE: Tensor, v_SHCE: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q·kᵀ / √d_k + mask)·v, [S, H, K, E]; the mask: 0 or −∞, in the same format, [S, 1, 1 or K, C]."""
    return F.scaled_dot_product_attention(q_SHKE, k_SHCE, v_SHCE, attn_mask=mask)


def step_attention(q_SHKE: Tensor, k_SHCE: Tensor, v_SHCE: Tensor, mask: Tensor | None) -> Tensor:
    """The same, but as matmuls in bfloat16 on the CPU, where a handful of queries is too few for PyTorch's kernel."""
    if q_SHKE.device.type != "cpu" or q_SHKE.dtype != torch.bfloat16 or _prefers_kernel(*q_SHKE.shape[:3]):
        return step_attention_reference(q_SHKE, k_SHCE, v_SHCE, mask)
    weights_SHKC = torch.matmul(q_SHKE * q_SHKE.shape[-1] ** -0.5, k_SHCE.transpose(-1, -2))
    if mask is not None:
        weights_SHKC += mask
    return torch.matmul(weights_SHKC.softmax(-1), v_SHCE)


def _prefers_kernel(slots: int, heads: int, queries: int) -> bool:
    """Whether PyTorch's kernel is faster in bfloat16.

    On CPUs with AMX it computes a single query in half the time of the matmuls (docs/log.md, 2026-11-25).
    """
    return slots * heads < FEW or (queries == 1 and HAS_AMX)
