"""Padding with rows that nobody reads, up to numbers of rows for which oneDNN already has code.

Shapes: R rows, I columns.
"""

from __future__ import annotations

from torch import Tensor

EXACT = 16
"""Up to this, each number of rows has its own code."""


def whole_steps(rows: int) -> int:
    """`rows` rounded up to one of four numbers per octave: oneDNN compiles new code for each number of rows."""
    step = max(EXACT, 1 << max((rows - 1).bit_length() - 3, 0))
    return rows if rows <= EXACT else -(-rows // step) * step


def filled_up(x_RI: Tensor, rows: int) -> Tensor:
    """`x` extended to `rows` rows; the contents of the added rows are undefined."""
    if rows == len(x_RI):
        return x_RI
    filled = x_RI.new_empty(rows, x_RI.shape[1])
    filled[: len(x_RI)] = x_RI
    return filled
