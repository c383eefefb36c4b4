"""Which texts are searched together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seq2seq.data.batches import cut

FIXED = 50
"""Pieces of a sentence at which what grows with their square costs as much as what grows with their number."""


def batches(lengths: NDArray[np.int32], widths: NDArray[np.int32], workers: int, most: int) -> list[NDArray[np.int64]]:
    """The numbers of the texts of each batch: of similar length and equal width, of at most about `most` pieces.

    `lengths` are those of the sources in pieces, `widths` by how many hypotheses their beams are widened.
    """
    if not len(lengths):
        return []
    # The longest first: what is left at the end, where some workers have nothing to do, is short.
    order = np.lexsort((-lengths, widths))
    costs, limit = lengths, max(most, int(lengths.max()))
    if workers > 1:
        # As few batches as can be, of which each worker has equally many; one sentence more leaves none over.
        costs = lengths * (FIXED + lengths)
        count = workers * -(-int(lengths.sum()) // (workers * most))
        limit = int(costs.sum()) // count + int(costs.max())
    # Phrases widen the beam: who has as many shares a batch, and none is searched more widely because of another.
    alike = np.split(order, np.flatnonzero(np.diff(widths[order])) + 1)
    return [run for same in alike for run in cut(same, [costs[same]], limit)]
