"""How many parts an update is split into, so that each fits the device's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from seq2seq.data.batches import Batch, Epoch, Sampler
from seq2seq.data.store import Store
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import RunError
from seq2seq.train.updater import Updater

CPU_TOKENS = 4096
"""Tokens per part on the CPU, where running out of memory cannot be tried: larger parts are no faster (docs/log.md)."""


def choose_parts(updater: Updater, store: Store, sampler: Sampler, given: int) -> int:
    """The least number of parts, by all ranks, in which updates fit this rank's device; `given`, if not 0, is kept.

    Only to be called before `updater.start`. Raises torch.OutOfMemoryError if `given` parts do not fit, RunError if no
    number does.
    """
    ranks, tokens = updater.world.size, updater.config.data.batch_tokens
    if updater.device.type == "cpu":
        # An update of more tokens than there are has all of them.
        most = min(tokens, max(int(lengths.sum()) for lengths in store.lengths))
        return given or ranks * -(-most // (CPU_TOKENS * ranks))
    # Of a run before in this process (multirun), reference cycles may still hold memory.
    gc.collect()
    torch.cuda.empty_cache()
    trial = partial(require_fit, updater, store, sampler.epoch(0))
    if given:
        trial(given)
        return given
    longest = max(int(lengths.max()) for lengths in store.lengths)
    return fitting_parts(trial, least=ranks, most=-(-tokens // longest))


def require_fit(updater: Updater, store: Store, updates: Epoch, parts: int) -> None:
    """Raise torch.OutOfMemoryError unless updates in so many parts fit the device; take memory for them."""
    updater.try_out(worst_part(store, updates, parts), adds=parts > updater.world.size)
    updater.reserve(largest_part(store, updates, parts))


def fitting_parts(trial: Callable[[int], None], least: int, most: int) -> int:
    """The smallest of least, 2·least, 4·least, … parts for which `trial` does not run out of memory.

    Raises RunError where even `most` parts are too few.
    """
    parts = least
    while True:
        try:
            trial(parts)
            return parts
        except torch.OutOfMemoryError:
            if parts >= most:
                raise RunError(
                    f"an update in {parts} parts does not fit the device's memory; take a smaller model, "
                    "data.cleaning.max_pieces=N for shorter sentences, or another device"
                ) from None
        # Not while the error is handled, which keeps what the trial computed.
        torch.cuda.empty_cache()
        parts = min(2 * parts, least * -(-most // least))


def largest_part(store: Store, updates: Epoch, parts: int) -> Batch:
    """The part with the most tokens on both sides together."""

    def tokens(part: NDArray[np.int64]) -> int:
        return sum(int(lengths[part].sum()) for lengths in store.lengths)

    return Batch.of(store, max((part for pairs in updates for part in np.array_split(pairs, parts)), key=tokens))


def worst_part(store: Store, updates: Epoch, parts: int) -> Batch:
    """A batch that needs at least as much memory as any part of `updates`.

    On each side it has at least as many tokens as the largest part, in sentences as long as the longest. One epoch's
    updates represent those of all epochs: pairs are sorted by length, so that the shapes are always the same.
    """
    most = [
        max(int(lengths[part].sum()) for pairs in updates for part in np.array_split(pairs, parts))
        for lengths in store.lengths
    ]
    longest = [int(lengths.max()) for lengths in store.lengths]
    count = max(-(-tokens // length) for tokens, length in zip(most, longest, strict=True))
    source, target = (Layout.of([length] * count) for length in longest)
    tokens = [torch.zeros(layout.total, dtype=torch.int64) for layout in (source, target)]
    return Batch(tokens[0], source, tokens[1], tokens[1], target)
