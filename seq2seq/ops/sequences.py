"""Sequences of hypotheses that grow by one element in a step of search, beside the plain reference.

Shapes: S slots, K sequences of each, of T elements; C sequences that grow out of these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.ops import native


def pick(sequences_SKT: Tensor, places_SC: Tensor) -> Tensor:
    """The sequences at these places of each slot, [S, C, T]."""
    return sequences_SKT.gather(1, places_SC[:, :, None].expand(-1, -1, sequences_SKT.shape[2]))


def extended_reference(sequences_SKT: Tensor, places_SC: Tensor, last_SC: Tensor) -> Tensor:
    """The same with an element more, [S, C, T + 1]."""
    return torch.cat((pick(sequences_SKT, places_SC), last_SC[:, :, None]), 2)


def extended(sequences_SKT: Tensor, places_SC: Tensor, last_SC: Tensor) -> Tensor:
    """The same in one call of C++ where it is there."""
    if sequences_SKT.device.type != "cpu" or native.library() is None:
        return extended_reference(sequences_SKT, places_SC, last_SC)
    (slots, width), before, length = places_SC.shape, *sequences_SKT.shape[1:]
    out_SCT = sequences_SKT.new_empty(slots, width, length + 1)
    tensors = (sequences_SKT, places_SC.contiguous(), last_SC.contiguous(), out_SCT)
    native.call("extended", *tensors, slots, before, width, length)
    return out_SCT
