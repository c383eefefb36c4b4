"""Token embeddings plus position vectors, alongside the plain reference.

Shapes: ... any, V vocabulary, P positions, D d_model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.operators import register


def embed_reference(weight_VD: Tensor, tokens: Tensor, table_PD: Tensor, positions: Tensor | int) -> Tensor:
    """√D times the rows of tokens [...], plus the rows of their positions [...] or of one for all: [..., D]."""
    rows = F.embedding(tokens, weight_VD) * math.sqrt(weight_VD.shape[1])
    return rows + (table_PD[positions] if isinstance(positions, int) else F.embedding(positions, table_PD))


def embed(weight_VD: Tensor, tokens: Tensor, table_PD: Tensor, positions: Tensor | int) -> Tensor:
    """`embed_reference` in one C++ call where available, which gives NaN for a token or position outside the tables."""
    alike = isinstance(positions, int) or positions.shape == tokens.shape
    if not (alike and native.supports_inference(weight_VD, table_PD)):
        return embed_reference(weight_VD, tokens, table_PD, positions)
    given, same = (0, positions) if isinstance(positions, int) else (positions.long().contiguous(), 0)
    (vocabulary, width), count = weight_VD.shape, tokens.numel()
    out = weight_VD.new_empty(*tokens.shape, width)
    tensors = (weight_VD, table_PD, tokens.long().contiguous(), given, out)
    native.call("embed", *tensors, vocabulary, table_PD.shape[0], width, same, count)
    return out


def look_up(weight_VD: Tensor, tokens: Tensor) -> Tensor:
    """The rows of tokens [...], [..., D], also in compiled code with a gradient that is summed in a fixed order."""
    rows: Tensor = _LookUp.apply(weight_VD, tokens)  # type: ignore[no-untyped-call]
    return rows


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocabulary = weight_VD.shape[0]
        return F.embedding(tokens, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None]:
        return torch.ops.seq2seq.embedding_gradient(d_rows, *ctx.saved_tensors, ctx.vocabulary), None


def _gradient(d_rows: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    # On GPUs tokens are sorted, which takes half as long if they have half the bits.
    return torch.ops.aten.embedding_dense_backward(d_rows, tokens.int(), vocabulary, -1, False)


# PyTorch's compiler would sum with atomic additions, in no fixed order.
register(
    "embedding_gradient(Tensor d_rows, Tensor tokens, SymInt vocabulary) -> Tensor",
    _gradient,
    lambda d_rows, _, vocabulary: d_rows.new_empty(vocabulary, d_rows.shape[-1]),
)
