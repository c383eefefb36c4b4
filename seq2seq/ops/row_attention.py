"""Attention to rows anywhere in a table of keys and values, alongside the plain reference.

Keys and values of all sentences and steps are rows of one matrix, as the projection wrote them. Each query has a list
of the rows that it may see: those of its source sentence or, in search, those of its past. Search moves only the lists.

Shapes: R queries, N rows, G lists of at most T rows; H heads, Q the width of all heads of a query, H · d_k, and
E that of keys and values, H · (d_k + d_v).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import gpu, native
from seq2seq.ops.batch_invariance import is_batch_invariant
from seq2seq.ops.packing import Layout

SHORT = {torch.float32: 256, torch.bfloat16: 80}
"""Sentence lengths up to which this is faster than matmuls over a padded grid."""
BLOCK = 16
"""Rows of a list that the GPU kernel reads at a time."""


def supports_row_attention(*tensors: Tensor) -> bool:
    """Whether `row_attention` can take these tensors, on CPUs or GPUs."""
    return native.supports_inference(*tensors) or gpu.supports_inference(*tensors)


def prefers_rows(x: Tensor, queries: Layout, keys: Layout) -> bool:
    """Whether to use this for packed sentences: for short ones, and where results must be batch-invariant."""
    # This comes first: training code is compiled, where the other conditions cannot be evaluated.
    if torch.is_grad_enabled() or queries.filler or keys.filler:
        return False
    is_faster = keys.max_length <= SHORT.get(x.dtype, 0)
    return (is_faster or is_batch_invariant()) and native.supports_inference(x)


def row_attention_reference(q_RQ: Tensor, rows_NE: Tensor, lists_GT: Tensor, list_of_R: Tensor, heads: int) -> Tensor:
    """softmax(q·kᵀ / √d_k)·v over the rows in the list of each query, where −1 ends a list: [R, H · d_v]."""
    lists_RT = lists_GT[list_of_R.long()]
    widths = [q_RQ.shape[1], rows_NE.shape[1] - q_RQ.shape[1]]
    k_RHTD, v_RHTD = (
        x_RTD.unflatten(2, (heads, -1)).transpose(1, 2)
        for x_RTD in rows_NE[lists_RT.clamp(min=0).long()].split(widths, -1)
    )
    mask_R11T = (lists_RT >= 0)[:, None, None]
    return F.scaled_dot_product_attention(q_RQ.unflatten(1, (heads, 1, -1)), k_RHTD, v_RHTD, mask_R11T).flatten(1)


def row_attention(q_RQ: Tensor, rows_NE: Tensor, lists_GT: Tensor, list_of_R: Tensor, heads: int) -> Tensor:
    """`row_attention_reference` in one pass, where `supports_row_attention`; lists and `list_of` are in int32."""
    if gpu.supports_inference(q_RQ, rows_NE):
        return row_attention_on_gpu(q_RQ, rows_NE, lists_GT, list_of_R, heads)
    count, keys = q_RQ.shape
    values = rows_NE.shape[1] - keys
    out_RV = q_RQ.new_empty(count, values)
    tensors = (q_RQ.contiguous(), rows_NE.contiguous(), lists_GT.contiguous(), list_of_R, out_RV)
    native.call("attend", *tensors, count, lists_GT.shape[1], heads, keys // heads, values // heads)
    return out_RV


def row_attention_on_gpu(q_RQ: Tensor, rows_NE: Tensor, lists_GT: Tensor, list_of_R: Tensor, heads: int) -> Tensor:
    """`row_attention` by our GPU kernel."""
    from seq2seq.ops import gpu_search_kernels

    count, keys = q_RQ.shape[0], q_RQ.shape[1] // heads
    values = rows_NE.shape[1] // heads - keys
    out_RV = q_RQ.new_empty(count, heads * values)
    tensors = (q_RQ.contiguous(), rows_NE.contiguous(), lists_GT.contiguous(), list_of_R, out_RV)
    padded = {"PK": gpu.next_power_of_2(keys), "PV": gpu.next_power_of_2(values)}
    gpu_search_kernels.row_attention[(count * heads,)](
        *tensors, lists_GT.shape[1], keys**-0.5, H=heads, K=keys, V=values, **padded, BLOCK=BLOCK, num_warps=1
    )
    return out_RV
