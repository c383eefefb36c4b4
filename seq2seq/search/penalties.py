"""Length penalties: what a hypothesis' log-probability is divided by before hypotheses are compared."""

from __future__ import annotations

from torch import Tensor


def gnmt(length: Tensor, alpha: float) -> Tensor:
    """((5 + |Y|) / 6)^α, eos counted in |Y| (Wu et al., 2016, equation 14); [...] to [...]."""
    return ((5.0 + length) / 6.0) ** alpha
