"""Whether rows are computed so that what becomes of one depends on it alone, to the last bit, whatever its company.

Products of another number of rows, or by another number of threads, may add in another order. So they are made of
blocks of as many rows each, on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

BLOCK = 64
_rows_alone = ContextVar("rows_alone", default=False)


@contextmanager
def computing_rows_alone(wanted: bool) -> Iterator[None]:
    """Compute rows so in the block, where the model can: `TranslationModel.can_compute_rows_alone`."""
    if not wanted:
        yield
        return
    threads, token = torch.get_num_threads(), _rows_alone.set(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _rows_alone.reset(token)


def rows_are_alone() -> bool:
    """Whether they are now, in this thread."""
    return _rows_alone.get()
