"""Whether rows are computed so that what becomes of one depends on it alone, to the last bit, whatever its company.

Products of another number of rows may add in another order. So they are made of blocks of as many rows each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BLOCK = 64
_rows_alone = False


@contextmanager
def computing_rows_alone(wanted: bool) -> Iterator[None]:
    """Compute rows so in the block, where the model can: `TranslationModel.can_compute_rows_alone`."""
    global _rows_alone
    before, _rows_alone = _rows_alone, wanted
    try:
        yield
    finally:
        _rows_alone = before


def rows_are_alone() -> bool:
    """Whether they are now."""
    return _rows_alone
