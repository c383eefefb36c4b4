"""The shape of multi-head attention, and how its projections lie side by side.

Shapes: N, M packed rows of queries and of keys; H heads; Q the width of all heads of a query, H · d_k, V that of
values, H · d_v, and E that of keys and values, Q + V.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionShape(NamedTuple):
    """The number of heads H, the widths Q and V of queries and values, and whether attention is causal."""

    heads: int
    widths: tuple[int, int]
    causal: bool

    @property
    def head_widths(self) -> tuple[int, int]:
        """The widths of one head: d_k and d_v."""
        return self.widths[0] // self.heads, self.widths[1] // self.heads

    def split(self, projected: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, d_k], keys [M, H, d_k] and values [M, H, d_v].

        `projected` are queries [N, Q] and keys with values [M, E] or, in self-attention, all in one matrix [N, Q + E].
        """
        *queries, rest = projected
        parts = (*queries, *rest.split(self.widths if queries else (self.widths[0], *self.widths), -1))
        q_NHE, k_MHE, v_MHE = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        return q_NHE, k_MHE, v_MHE
