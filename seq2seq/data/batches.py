"""Batches counted in tokens, in an order that is a pure function of (seed, epoch, update)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seq2seq.data.store import Store
from seq2seq.data.tokenizer import BOS
from seq2seq.ops.packing import Layout

AHEAD = 2
T = TypeVar("T")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """Packed pairs: token ids [N] of sources, of targets as fed in (bos first) and as predicted (eos last)."""

    source: Tensor
    source_layout: Layout
    target_in: Tensor
    target_out: Tensor
    target_layout: Layout

    @classmethod
    def of(cls, store: Store, pairs: NDArray[np.int64]) -> Batch:
        """The batch of these pairs of a store."""
        source, target_out = (torch.from_numpy(store.gather(side, pairs)) for side in (0, 1))
        source_layout, target_layout = (Layout.of(store.lengths[side][pairs].tolist()) for side in (0, 1))
        target_in = target_out.roll(1)
        target_in[target_layout.starts] = BOS
        return cls(source, source_layout, target_in, target_out, target_layout)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.source.to(device, non_blocking=True),
            self.source_layout.to(device),
            self.target_in.to(device, non_blocking=True),
            self.target_out.to(device, non_blocking=True),
            self.target_layout.to(device),
        )

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, from which `to` copies while the device computes."""
        return Batch(
            self.source.pin_memory(),
            self.source_layout.pinned(),
            self.target_in.pin_memory(),
            self.target_out.pin_memory(),
            self.target_layout.pinned(),
        )


class Sampler:
    """Cuts an epoch into updates of similarly long pairs: at most `batch_tokens` source and target tokens, each.

    As in the paper (section 5.1), pairs are batched together by length; which of the equally long ones meet, and the
    order of the updates, is drawn anew in each epoch from (seed, epoch).
    """

    def __init__(self, store: Store, batch_tokens: int, seed: int) -> None:
        self._lengths = store.lengths
        self._batch_tokens = batch_tokens
        self._seed = seed

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """The updates of an epoch, numbered from 0: the pairs of each."""
        rng = np.random.default_rng((self._seed, epoch))
        shuffled = rng.permutation(len(self._lengths[0]))
        source, target = (lengths[shuffled] for lengths in self._lengths)
        order = shuffled[np.lexsort((source, target))]
        updates = cut(order, [lengths[order] for lengths in self._lengths], self._batch_tokens)
        return [updates[index] for index in rng.permutation(len(updates))]


def cut(order: NDArray[np.int64], lengths: list[NDArray[np.int32]], limit: int) -> list[NDArray[np.int64]]:
    """Cut `order` into runs as long as can be with at most `limit` tokens on each side."""
    sums = [np.concatenate([np.zeros(1, np.int64), side.cumsum(dtype=np.int64)]) for side in lengths]
    runs, start = [], 0
    while start < len(order):
        end = min(int(np.searchsorted(side, side[start] + limit, side="right")) - 1 for side in sums)
        assert end > start, "a sentence longer than batch_tokens reached the batches"
        runs.append(order[start:end])
        start = end
    return runs


def micro_batches(
    store: Store, pairs: NDArray[np.int64], count: int, rank: int = 0, size: int = 1
) -> Iterator[tuple[int, Batch, float]]:
    """An update in `count` parts of about equally many pairs; a rank gets number rank, rank + size, … of them.

    Yields (number, batch, weight). Parts without pairs are left out, but each rank gets at least one, for ranks wait
    for one another: then a pair of the update with weight 0, in place of 1.
    """
    parts = list(enumerate(np.array_split(pairs, count)))[rank::size]
    for index, part in parts:
        if len(part):
            yield index, Batch.of(store, part), 1.0
    if not len(parts[0][1]):
        yield parts[0][0], Batch.of(store, pairs[:1]), 0.0


def prefetched(make: Callable[[T], Made], items: Sequence[T]) -> Generator[Made]:
    """`make` of each item, in order, made by a thread up to two ahead of what is asked for."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, "prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_order(store: Store, batch_tokens: int) -> Iterator[Batch]:
    """All pairs once, shortest first, for a loss over a whole split."""
    order = np.lexsort((store.lengths[0], store.lengths[1]))
    for pairs in cut(order, [lengths[order] for lengths in store.lengths], batch_tokens):
        yield Batch.of(store, pairs)
