"""Batches counted in tokens, in an order that is a pure function of (seed, epoch, update)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from seq2seq.data.store import Store
from seq2seq.data.tokenizer import BOS, EOS
from seq2seq.ops.packing import Layout

WINDOW = 1 << 13
"""Pairs processed at a time, where all at once would take memory that grows with the corpus."""


@dataclass(frozen=True)
class Batch:
    """Packed pairs: token ids [N] of sources, of targets as fed in (bos first) and as predicted (eos last).

    All may end in filler, as their layouts tell. A target of −1 means that nothing is to be predicted there.
    """

    source: Tensor
    source_layout: Layout
    target_in: Tensor
    target_out: Tensor
    target_layout: Layout

    @classmethod
    def of(cls, store: Store, pairs: NDArray[np.int64]) -> Batch:
        """The batch of these pairs of a store."""
        source, target = (torch.from_numpy(store.gather(side, pairs)) for side in (0, 1))
        return cls.packed(source, target, *(store.lengths[side][pairs].tolist() for side in (0, 1)))

    @classmethod
    def of_ids(cls, pairs: Sequence[tuple[list[int], list[int]]]) -> Batch:
        """The batch of pairs of ids, without bos and eos."""
        sides = [[[*pair[side], EOS] for pair in pairs] for side in (0, 1)]
        source, target = (torch.tensor(list(itertools.chain.from_iterable(side))) for side in sides)
        return cls.packed(source, target, *([len(ids) for ids in side] for side in sides))

    @classmethod
    def packed(cls, source: Tensor, target: Tensor, source_lengths: list[int], target_lengths: list[int]) -> Batch:
        """The batch of packed sentences, eos last in each; the decoder is fed the target shifted right, after bos."""
        source_layout, target_layout = Layout.of(source_lengths), Layout.of(target_lengths)
        target_in = target.roll(1)
        target_in[target_layout.starts] = BOS
        return cls(source, source_layout, target_in, target, target_layout)

    def rounded(self) -> Batch:
        """The same batch with filler; see `Layout.rounded`."""
        return self.extended(self.source_layout.rounded(), self.target_layout.rounded())

    def extended(self, source: Layout, target: Layout) -> Batch:
        """The same batch in these layouts, with zeros in the rows that it has not; nothing is predicted there."""
        more, more_of_target = source.total - len(self.source), target.total - len(self.target_in)
        return Batch(
            F.pad(self.source, (0, more)),
            source,
            F.pad(self.target_in, (0, more_of_target)),
            F.pad(self.target_out, (0, more_of_target), value=-1),
            target,
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is held on a device."""
        lengths = self.source_layout.lengths, self.target_layout.lengths
        return self.source, self.target_in, self.target_out, *lengths

    @property
    def shape(self) -> tuple[int, ...]:
        """All that is not in the tensors, and the tensors' sizes."""
        layouts = self.source_layout, self.target_layout
        return tuple(size for x in layouts for size in (x.batch_size, x.max_length, x.total, x.filler))

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._each(methodcaller("to", device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which `to` copies while the device computes."""
        return self._each(methodcaller("pin_memory"))

    def _each(self, function: Callable[[Any], Any]) -> Batch:
        return Batch(*map(function, vars(self).values()))


class MicroBatch(NamedTuple):
    """A part of an update: its number, its pairs, and the weight of their loss."""

    number: int
    batch: Batch
    weight: float


class Sampler:
    """Cuts an epoch into updates of similarly long pairs, with at most `batch_tokens` tokens on each side.

    As in the paper (section 5.1), pairs are batched together by length; which pairs of equal length end up together,
    and the order of the updates, are drawn anew in each epoch from (seed, epoch).
    """

    def __init__(self, store: Store, batch_tokens: int, seed: int) -> None:
        self._lengths = store.lengths
        self._batch_tokens = batch_tokens
        self._seed = seed

    def epoch(self, epoch: int) -> Epoch:
        """The updates of an epoch (epochs are numbered from 0): the pairs of each."""
        rng = np.random.default_rng((self._seed, epoch))
        order = np.arange(len(self._lengths[0]), dtype=np.int32)
        rng.shuffle(order)
        sort_by_length(order, self._lengths)

        def lengths_of(start: int, end: int) -> list[NDArray[Any]]:
            return [lengths[order[start:end]] for lengths in self._lengths]

        bounds = run_bounds(len(order), lengths_of, self._batch_tokens)
        return Epoch(order, bounds, rng.permutation(len(bounds) - 1))


class Epoch:
    """The updates of an epoch, in order: the pairs of each, int64, made on demand; until then, 4 bytes per pair."""

    def __init__(self, order: NDArray[np.int32], bounds: NDArray[np.int64], runs: NDArray[np.int64]) -> None:
        self._order = order
        self._bounds = bounds
        self._runs = runs

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        run = self._runs[index]
        return self._order[self._bounds[run] : self._bounds[run + 1]].astype(np.int64)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[index] for index in range(len(self)))


def sort_by_length(order: NDArray[np.int32], lengths: list[NDArray[Any]]) -> None:
    """Sort pairs in place by target length, then source length; pairs of equal lengths keep their order.

    The same as `order[np.lexsort((source, target))]` of the lengths in that order, but in 12 bytes per pair, `order`
    included, not 24: an 8-byte key holds both lengths and the place in `order`. It takes three times as long.
    """
    if max(int(side.max(initial=0)) for side in lengths) >= 1 << 16:
        order[:] = order[np.lexsort([side[order] for side in lengths])]
        return
    keys = np.empty(len(order), np.uint64)
    parts = [slice(start, min(start + WINDOW, len(order))) for start in range(0, len(order), WINDOW)]
    for part in parts:
        source, target = (side[order[part]].astype(np.uint64) for side in lengths)
        keys[part] = target << 48 | source << 32 | np.arange(part.start, part.stop, dtype=np.uint64)
    keys.sort()
    for part in parts:
        keys[part] = order[keys[part] & 0xFFFFFFFF]
    order[:] = keys


def run_bounds(count: int, lengths_of: Callable[[int, int], list[NDArray[Any]]], limit: int) -> NDArray[np.int64]:
    """Where runs of pairs begin, and the end: each as long as possible with at most `limit` tokens on each side.

    `lengths_of(start, end)` gives the lengths of pairs start to end - 1 on each side; it is called for about WINDOW
    pairs at a time, so that sums over all pairs need not be kept.
    """
    bounds, start, size = [0], 0, WINDOW
    while start < count:
        sides = lengths_of(start, min(start + size, count))
        sums = [np.concatenate([np.zeros(1, np.int64), side.cumsum(dtype=np.int64)]) for side in sides]
        begin, whole = 0, len(sides[0])
        while begin < whole:
            end = min(int(np.searchsorted(side, side[begin] + limit, side="right")) - 1 for side in sums)
            assert end > begin, "a sentence longer than batch_tokens reached the batches"
            if end == whole and start + whole < count:
                break  # The run may go on beyond the window: the next window begins with it.
            bounds.append(start + end)
            begin = end
        start, size = start + begin, WINDOW if begin else 2 * size
    return np.array(bounds, np.int64)


def cut(order: NDArray[np.int64], lengths: Sequence[NDArray[np.integer[Any]]], limit: int) -> list[NDArray[np.int64]]:
    """Cut `order` into the longest runs with at most `limit` tokens on each side; `lengths` are in its order."""
    bounds = run_bounds(len(order), lambda start, end: [side[start:end] for side in lengths], limit)
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def micro_batches(
    store: Store, pairs: NDArray[np.int64], count: int, rank: int = 0, size: int = 1
) -> Iterator[MicroBatch]:
    """An update in `count` parts of about equally many pairs; a rank gets parts rank, rank + size, and so on.

    Their weight is 1. Parts without pairs are left out, but as ranks wait for one another, a rank left with none gets
    one pair of the update with weight 0.
    """
    parts = list(enumerate(np.array_split(pairs, count)))[rank::size]
    for number, part in parts:
        if len(part):
            yield MicroBatch(number, Batch.of(store, part), 1.0)
    number, first = parts[0]
    if not len(first):
        yield MicroBatch(number, Batch.of(store, pairs[:1]), 0.0)


def in_order(store: Store, batch_tokens: int) -> Iterator[Batch]:
    """All pairs once, shortest first, for a loss over a whole split."""
    order = np.lexsort((store.lengths[0], store.lengths[1]))
    for pairs in cut(order, [lengths[order] for lengths in store.lengths], batch_tokens):
        yield Batch.of(store, pairs)
