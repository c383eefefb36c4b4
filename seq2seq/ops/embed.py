"""Token embeddings plus position vectors, alongside the plain reference.

Shapes: ... any, V vocabulary, P positions, D d_model.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import native


def embed_reference(weight_VD: Tensor, tokens: Tensor, table_PD: Tensor, positions: Tensor | int) -> Tensor:
    """√D times the rows of tokens [...], plus the rows of their positions [...] or of one for all: [..., D]."""
    rows = F.embedding(tokens, weight_VD) * math.sqrt(weight_VD.shape[1])
    return rows + (table_PD[positions] if isinstance(positions, int) else F.embedding(positions, table_PD))


def embed(weight_VD: Tensor, tokens: Tensor, table_PD: Tensor, positions: Tensor | int) -> Tensor:
    """The same in one C++ call where available, which gives NaN for a token or position outside the tables."""
    alike = isinstance(positions, int) or positions.shape == tokens.shape
    if not (alike and native.can_compute(weight_VD, table_PD)):
        return embed_reference(weight_VD, tokens, table_PD, positions)
    given, same = (0, positions) if isinstance(positions, int) else (positions.contiguous(), 0)
    (vocabulary, width), count = weight_VD.shape, tokens.numel()
    out = weight_VD.new_empty(*tokens.shape, width)
    tensors = (weight_VD, table_PD, tokens.contiguous(), given, out)
    native.call("embed", *tensors, vocabulary, table_PD.shape[0], width, same, count)
    return out
