"""Penalties: what a hypothesis' log-probability is divided by, or loses, before hypotheses are compared."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Length = TypeVar("Length", float, Tensor)


def length_penalty(kind: str, length: Length, alpha: float) -> Length:
    """What log-probabilities are divided by, eos counted in the length |Y|; [...] to [...].

    `gnmt`: ((5 + |Y|) / 6)^α (Wu et al., 2016, equation 14); `average`: |Y|; `none`: 1. No kind falls with the length.
    """
    if kind == "average":
        return length
    return ((5.0 + length) / 6.0) ** (alpha if kind == "gnmt" else 0.0)


def coverage_penalty(attention_TL: Tensor, beta: float) -> float:
    """β · Σ log min(total attention that a source piece got, 1), at most 0 (Wu et al., 2016, equation 14).

    `attention` [T, L] are the weights of T target pieces over L source pieces.
    """
    covered_L = attention_TL.sum(0).clamp(min=torch.finfo(torch.float32).tiny, max=1.0)
    return beta * float(covered_L.log().sum())
