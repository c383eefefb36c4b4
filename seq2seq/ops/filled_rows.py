"""Numbers of rows for which oneDNN has code already, made of any number by rows that nobody reads.

Shapes: R rows, I columns.
"""

from __future__ import annotations

from torch import Tensor

EXACT = 16
"""Rows up to which each number of rows has code of its own."""


def whole_steps(rows: int) -> int:
    """`rows` rounded up to one of four numbers an octave: oneDNN compiles its code anew for each number of rows."""
    step = max(EXACT, 1 << max((rows - 1).bit_length() - 3, 0))
    return rows if rows <= EXACT else -(-rows // step) * step


def filled_up(x_RI: Tensor, rows: int) -> Tensor:
    """So many rows, the first of them those of `x`; what the others hold, nobody may read a meaning into."""
    if rows == len(x_RI):
        return x_RI
    filled = x_RI.new_empty(rows, x_RI.shape[1])
    filled[: len(x_RI)] = x_RI
    return filled
