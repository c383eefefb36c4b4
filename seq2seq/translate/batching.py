"""Which texts are searched together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from seq2seq.data.batches import cut
from seq2seq.support.errors import OutOfMemory

FIXED = 50
"""Pieces of a sentence at which what grows with their square costs as much as what grows with their number."""


def batches(
    lengths: NDArray[np.int32], widths: NDArray[np.int32], workers: int, most: int, room: int
) -> list[NDArray[np.int64]]:
    """The numbers of the texts of each batch: of similar length, of equal width, of at most `most` pieces.

    `lengths` are those of the sources in pieces, `widths` by how many hypotheses their beams are widened. Of several
    workers each gets equally many batches, which for one width cost the same as far as `room` pieces allow.
    """
    if len(lengths) < 2:
        return [np.zeros(1, np.int64)] * len(lengths)
    # The longest first: what is left at the end, where some workers have nothing to do, is short.
    order = np.lexsort((-lengths, widths))
    sizes = lengths.astype(np.int64)
    sides, limit = [sizes], max(most, int(sizes.max()))
    if workers > 1:
        costs = sizes * (FIXED + sizes)
        # As few batches as can be; one sentence more in each leaves none over.
        count = workers * -(-int(sizes.sum()) // (workers * most))
        cost, room = int(costs.sum()) // count + int(costs.max()), max(room, limit)
        # Each side has a limit of its own; in these units both are the same.
        sides, limit = [costs * room, sizes * cost], cost * room
    # Phrases widen the beam: who has as many shares a batch, and none is searched more widely because of another.
    alike = np.split(order, np.flatnonzero(np.diff(widths[order])) + 1)
    return [run for same in alike for run in cut(same, [side[same] for side in sides], limit)]


@contextmanager
def explaining_out_of_memory(texts: int, tokens: int, batch_tokens: int) -> Iterator[None]:
    """Raise OutOfMemory, with what to type next, where a batch of so many texts and tokens does not fit the device."""
    try:
        yield
    except torch.OutOfMemoryError:
        smaller = batch_tokens // 2
        # It may have had fewer than it might.
        while smaller >= tokens:
            smaller //= 2
        advice = f"--batch-tokens {smaller}" if texts > 1 and smaller else "--device cpu"
        raise OutOfMemory(
            f"a batch of {texts:,} texts, {tokens:,} tokens in all, does not fit the device's memory "
            f"(--batch-tokens {batch_tokens}); type {advice}"
        ) from None
