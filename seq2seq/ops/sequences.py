"""Sequences of hypotheses that grow by one element per search step, alongside the plain reference.

Shapes: S slots, K sequences of each, of T elements; C sequences that grow out of these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.ops import native


def pick(sequences_SKT: Tensor, parents_SC: Tensor) -> Tensor:
    """The sequences at these places of each slot, [S, C, T]."""
    return sequences_SKT.gather(1, parents_SC[:, :, None].expand(-1, -1, sequences_SKT.shape[2]))


def extended_reference(sequences_SKT: Tensor, parents_SC: Tensor, last: Tensor | int) -> Tensor:
    """`pick`, with one more element each, [S, C, T + 1]: from `last` [S, C], or numbers counting up from it."""
    if isinstance(last, int):
        count, dtype, device = parents_SC.numel(), sequences_SKT.dtype, sequences_SKT.device
        last = torch.arange(last, last + count, dtype=dtype, device=device).view(parents_SC.shape)
    return torch.cat((pick(sequences_SKT, parents_SC), last[:, :, None]), 2)


def extended(sequences_SKT: Tensor, parents_SC: Tensor, last: Tensor | int) -> Tensor:
    """`extended_reference`, in one C++ call where available."""
    if sequences_SKT.device.type != "cpu" or native.library() is None:
        return extended_reference(sequences_SKT, parents_SC, last)
    (slots, width), before, length = parents_SC.shape, *sequences_SKT.shape[1:]
    out_SCT = sequences_SKT.new_empty(slots, width, length + 1)
    given, first = (0, last) if isinstance(last, int) else (last.contiguous(), 0)
    native.call("extended", sequences_SKT, parents_SC.contiguous(), given, out_SCT, slots, before, width, length, first)
    return out_SCT
