"""Grouping: which texts are searched together, and what belongs to which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from seq2seq.support.errors import OutOfMemory

SMALLEST = 16
"""What part of a full batch the last batches of several workers still hold; smaller ones would compute slowly."""
T = TypeVar("T")


def batches(lengths: NDArray[np.int32], widths: NDArray[np.int32], workers: int, most: int) -> list[NDArray[np.int64]]:
    """The indices of the texts of each batch: of similar length, of equal width, of at most `most` pieces.

    A text of more pieces is a batch of its own. `lengths` are those of the sources in pieces, `widths` the numbers of
    hypotheses by which their beams are widened. Several workers, who take one batch after the other, get ever smaller
    ones so that all end at about the same time (guided self-scheduling; Polychronopoulos and Kuck, 1987).
    """
    # Longest first: the last batches, while some workers have nothing to do, have the fewest steps.
    order = np.lexsort((-lengths, widths))
    pieces = np.append(0, lengths[order].cumsum(dtype=np.int64))
    # Phrases widen the beam: texts widened alike share a batch, and none gets a wider beam because of another.
    changes = np.append(np.flatnonzero(np.diff(widths[order])) + 1, len(order))
    found, start = [], 0
    while start < len(order):
        limit = min(max((pieces[-1] - pieces[start]) // workers, most // SMALLEST), most)
        fitting = np.searchsorted(pieces, pieces[start] + limit, side="right") - 1
        end = min(max(fitting, start + 1), changes[np.searchsorted(changes, start, side="right")])
        found.append(order[start:end])
        start = end
    return found


def regrouped(items: Iterable[T], groups: Iterable[Sized]) -> list[list[T]]:
    """The items, in order, in lists as long as these groups."""
    rest = iter(items)
    return [list(islice(rest, len(group))) for group in groups]


@contextmanager
def explaining_out_of_memory(texts: int, tokens: int, batch_tokens: int) -> Iterator[None]:
    """Raise OutOfMemory, saying what to type next, where a batch of this many texts and tokens does not fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        smaller = batch_tokens // 2
        # The batch may have had fewer tokens than it was allowed.
        while smaller >= tokens:
            smaller //= 2
        advice = f"--batch-tokens {smaller}" if texts > 1 and smaller else "--device cpu"
        raise OutOfMemory(
            f"a batch of {texts:,} texts, {tokens:,} tokens in all, does not fit the device's memory "
            f"(--batch-tokens {batch_tokens}); type {advice}"
        ) from None
