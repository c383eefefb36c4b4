"""Attention of hypotheses in search to rows that lie anywhere in a table of keys and values, beside the reference.

Keys and values of all sentences and steps are rows of one matrix, as the projection made them. Each hypothesis has a
list of the rows that it may see: those of its source, or those of its past. Search moves these lists and nothing else.

Shapes: S slots, K hypotheses of each, N rows, T the longest list; H heads, E the width of keys and values of all heads,
H · (d_k + d_v).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import native


def row_attention_reference(q_SKQ: Tensor, rows_NE: Tensor, seen_SKT: Tensor, heads: int) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v over the rows in each list: [S, K, H · d_v]. −1 ends a list; [S, 1, T] are for all K."""
    width = q_SKQ.shape[1]
    lists_SKT = seen_SKT.expand(-1, width, -1)
    keys_SKTQ, values_SKTV = rows_NE[lists_SKT.clamp(min=0).long()].split(
        [q_SKQ.shape[2], rows_NE.shape[1] - q_SKQ.shape[2]], -1
    )
    q_SKH1D = q_SKQ.unflatten(2, (heads, 1, -1))
    k_SKHTD, v_SKHTD = (x.unflatten(3, (heads, -1)).transpose(2, 3) for x in (keys_SKTQ, values_SKTV))
    mask_SK11T = (lists_SKT >= 0)[:, :, None, None]
    return F.scaled_dot_product_attention(q_SKH1D, k_SKHTD, v_SKHTD, attn_mask=mask_SK11T).flatten(2)


def row_attention(q_SKQ: Tensor, rows_NE: Tensor, seen_SKT: Tensor, heads: int) -> Tensor:
    """The same on a processor, where `native.can_compute`; lists in int32."""
    slots, width, keys = q_SKQ.shape
    values = rows_NE.shape[1] - keys
    out_SKV = q_SKQ.new_empty(slots, width, values)
    native.call(
        "attend",
        *(q_SKQ.contiguous(), rows_NE, seen_SKT.contiguous(), out_SKV),
        *(slots, width, seen_SKT.shape[1], seen_SKT.shape[2], heads, keys // heads, values // heads),
    )
    return out_SKV


def source_rows(lengths_S: Tensor) -> Tensor:
    """The lists of packed sentences of these lengths, [S, 1, L] in int32: sentence after sentence."""
    places_L = torch.arange(int(lengths_S.max()))
    starts_S = lengths_S.cumsum(0) - lengths_S
    lists_SL = (starts_S[:, None] + places_L).masked_fill(places_L >= lengths_S[:, None], -1)
    return lists_SL[:, None].int()
