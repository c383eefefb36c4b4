"""Batch invariance: what becomes of a row depends on it alone, to the last bit, whatever its company in a batch.

Our functions in C++ compute so (`native.multiplies`); some of PyTorch's, which are quicker for long sentences, do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted = ContextVar("batch_invariant", default=False)


@contextmanager
def batch_invariant(wanted: bool) -> Iterator[None]:
    """Compute so in the block, where the model can: `TranslationModel.can_be_batch_invariant`."""
    if not wanted:
        yield
        return
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_batch_invariant() -> bool:
    """Whether it must be so now, in this thread."""
    return _wanted.get()
