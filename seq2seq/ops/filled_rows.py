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


def new_rows(like: Tensor, rows: int, columns: int) -> Tensor:
    """Rows to be written, in the format of `like`, with as many behind them as `filled_up` will want."""
    return like.new_empty(whole_steps(rows), columns)[:rows]


def filled_up(x_RI: Tensor, rows: int) -> Tensor:
    """So many rows, the first of them those of `x`; what the others hold, nobody may read a meaning into."""
    count, columns = x_RI.shape
    if rows == count:
        return x_RI
    behind = x_RI.untyped_storage().nbytes() // x_RI.element_size() - x_RI.storage_offset()
    if x_RI.is_contiguous() and behind >= rows * columns:
        return x_RI.as_strided((rows, columns), (columns, 1))
    filled = x_RI.new_empty(rows, columns)
    filled[:count] = x_RI
    return filled
