"""Batch invariance: a row's result depends on that row alone, to the last bit, whatever else is in the batch.

Our C++ functions are batch-invariant (`native.has_fast_matmul`); some of PyTorch's, faster for long sentences, are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted = ContextVar("batch_invariant", default=False)


@contextmanager
def batch_invariant(wanted: bool) -> Iterator[None]:
    """Be batch-invariant within the block, where the model can: `TranslationModel.can_be_batch_invariant`."""
    if not wanted:
        yield
        return
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_batch_invariant() -> bool:
    """Whether computation must be batch-invariant now, in this thread."""
    return _wanted.get()
