"""Scaled dot-product attention over packed rows (Vaswani et al., 2017, section 3.2.1), beside its plain reference.

Shapes: N, M packed rows of queries and of keys; H heads; E width of a head, d_k in queries and keys, d_v in values and
outputs; B, L, S the padded grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops.packing import Layout


def attention(
    q_NHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, queries: Layout, keys: Layout, *, causal: bool = False
) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v within each sentence, [N, H, E]; with `causal`, row i sees keys up to position i only."""
    q_BHLE, k_BHSE, v_BHSE = (
        layout.unpack(rows).transpose(1, 2) for rows, layout in ((q_NHE, queries), (k_MHE, keys), (v_MHE, keys))
    )
    # Pads stand at the end, where causal attention never looks.
    mask = None if causal or keys.is_rectangular else keys.mask[:, None, None, :]
    if q_NHE.device.type == "cpu" and q_NHE.requires_grad:
        out_BHLE = _batched_products(q_BHLE, k_BHSE, v_BHSE, mask, causal)
    else:
        out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHSE, v_BHSE, attn_mask=mask, is_causal=causal)
    return queries.pack(out_BHLE.transpose(1, 2))


def _batched_products(q_BHLE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The formula in whole-batch products: at a sentence's length its backward pass in bfloat16 is six times that of
    PyTorch's fused kernel for the CPU (docs/log.md, 2026-11-22)."""
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
