"""Grouping: which texts are searched together, and what belongs to which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from seq2seq.data.batches import cut
from seq2seq.support.errors import OutOfMemory

CROSSOVER = 50
"""The sentence length in pieces at which the quadratic part of the cost equals the linear part."""
T = TypeVar("T")


def batches(
    lengths: NDArray[np.int32], widths: NDArray[np.int32], workers: int, most: int, room: int
) -> list[NDArray[np.int64]]:
    """The indices of the texts of each batch: of similar length, of equal width, of at most `most` pieces.

    A text of more pieces is a batch of its own. `lengths` are those of the sources in pieces, `widths` the numbers of
    hypotheses by which their beams are widened. Several workers get equally many batches each, of equal cost within a
    width, for which one may have up to `room` pieces.
    """
    if len(lengths) < 2:
        return [np.zeros(1, np.int64)] * len(lengths)
    # Longest first: only short batches are left at the end, when some workers have nothing to do.
    order = np.lexsort((-lengths, widths))
    sizes = lengths.astype(np.int64)
    sides, limit = [sizes], max(most, int(sizes.max()))
    if workers > 1:
        costs = sizes * (CROSSOVER + sizes)
        # As few batches as possible; with room for one more sentence in each, none is left over.
        count = workers * -(-int(sizes.sum()) // (workers * most))
        cost, room = int(costs.sum()) // count + int(costs.max()), max(room, limit)
        # Each side has a limit of its own; scaled like this, both are the same.
        sides, limit = [costs * room, sizes * cost], cost * room
    # Phrases widen the beam: texts widened alike share a batch, and none gets a wider beam because of another.
    alike = np.split(order, np.flatnonzero(np.diff(widths[order])) + 1)
    return [run for same in alike for run in cut(same, [side[same] for side in sides], limit)]


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
