"""Attention of one step of search: the new rows of each sentence against all its keys, beside the plain reference.

The hypotheses of a sentence are its queries, side by side, so that keys are read once for all of them; a mask says
which keys each may see. A handful of queries is too little for PyTorch's fused kernel on
the CPU, above all in bfloat16.

Shapes: S slots, H heads, K hypotheses (queries) of a slot, C columns (keys), E width of a head: d_k in queries and
keys, d_v in values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops.packing import Layout


def pad_mask(layout: Layout) -> Tensor | None:
    """0 at the tokens of sentences, −∞ at the pads behind them, [S, 1, 1, C]; None where there are no pads."""
    if layout.is_rectangular:
        return None
    mask_SC = torch.zeros(layout.mask.shape, device=layout.lengths.device).masked_fill_(~layout.mask, -math.inf)
    return mask_SC[:, None, None, :]


def step_attention_reference(q_SHKE: Tensor, k_SHCE: Tensor, v_SHCE: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q·kᵀ / √d_k + mask)·v, [S, H, K, E]; the mask is 0 or −∞, float32, [S, 1, 1 or K, C]."""
    mask = None if mask is None else mask.to(q_SHKE.dtype)
    return F.scaled_dot_product_attention(q_SHKE, k_SHCE, v_SHCE, attn_mask=mask)


def step_attention(q_SHKE: Tensor, k_SHCE: Tensor, v_SHCE: Tensor, mask: Tensor | None) -> Tensor:
    """The same, in two batched products in the format of the keys on the CPU, the softmax in float32."""
    if q_SHKE.device.type != "cpu":
        return step_attention_reference(q_SHKE, k_SHCE, v_SHCE, mask)
    q_SHKE = (q_SHKE * q_SHKE.shape[-1] ** -0.5).to(k_SHCE.dtype)
    weights_SHKC = torch.matmul(q_SHKE, k_SHCE.transpose(-1, -2)).float()
    if mask is not None:
        weights_SHKC += mask
    return torch.matmul(weights_SHKC.softmax(-1).to(v_SHCE.dtype), v_SHCE)
