"""Batches: every pair once an epoch, within both budgets, in an order that (seed, epoch) fixes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seq2seq.data import batches
from seq2seq.data.batches import Batch, Sampler, cut, in_order, micro_batches, sort_by_length
from seq2seq.data.store import Store, write_store
from seq2seq.data.tokenizer import BOS, EOS

LIMIT = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five hundred pairs of 0 to 39 pieces; each source begins with the number of its pair."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    sources = [[100 + pair, *rng.integers(4, 99, rng.integers(0, 39))] for pair in range(500)]
    targets = [rng.integers(4, 99, rng.integers(0, 40)).tolist() for _ in range(500)]
    write_store(folder, [(sources, targets)], 1000)
    return Store(folder)


def listed(updates: Iterable[NDArray[np.int64]]) -> list[list[int]]:
    return [pairs.tolist() for pairs in updates]


@pytest.mark.parametrize("limit", [40, 60, 1000, 100_000])
def test_every_pair_comes_once_an_epoch_within_both_budgets(store: Store, limit: int) -> None:
    updates = Sampler(store, limit, seed=1).epoch(0)
    assert sorted(pair for pairs in listed(updates) for pair in pairs) == list(range(500))
    for pairs in updates:
        assert max(int(lengths[pairs].sum()) for lengths in store.lengths) <= limit


def test_updates_are_full(store: Store) -> None:
    # Without that there would be more updates, each dearer than its tokens.
    updates = Sampler(store, 1000, seed=1).epoch(0)
    fullest = [max(int(lengths[pairs].sum()) for lengths in store.lengths) for pairs in updates]
    assert sum(tokens > 900 for tokens in fullest) >= len(fullest) - 1


def test_the_order_is_a_function_of_seed_and_epoch(store: Store) -> None:
    first = listed(Sampler(store, LIMIT, seed=1).epoch(3))
    sampler = Sampler(store, LIMIT, seed=1)
    sampler.epoch(0)
    assert listed(sampler.epoch(3)) == first
    others = [listed(Sampler(store, LIMIT, seed).epoch(epoch)) for seed, epoch in ((1, 4), (2, 3), (3, 1))]
    assert all(other != first for other in others)
    assert all(sorted(map(sorted, other)) != sorted(map(sorted, first)) for other in others), "other neighbours too"


@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=60),
    longest=st.sampled_from([1, 65_535, 65_536, 2**31 - 1]),
    window=st.integers(1, 70),
    data=st.data(),
)
def test_sorting_in_place_is_the_plain_sort(
    lengths: list[tuple[int, int]], longest: int, window: int, data: st.DataObject
) -> None:
    sides = [np.array([pair[side] for pair in lengths] + [longest], np.int32) for side in (0, 1)]
    order = np.array(data.draw(st.permutations(range(len(lengths) + 1))), np.int32)
    plain = order[np.lexsort([side[order] for side in sides])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "WINDOW", window)
        sort_by_length(order, sides)
    assert order.tolist() == plain.tolist()


def plain_epoch(store: Store, limit: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The same epoch without care for memory, as it was first written."""
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(len(store))
    order = shuffled[np.lexsort([side[shuffled] for side in store.lengths])]
    runs, start = [], 0
    sums = [np.concatenate([[0], side[order].cumsum(dtype=np.int64)]) for side in store.lengths]
    while start < len(order):
        end = min(int(np.searchsorted(side, side[start] + limit, side="right")) - 1 for side in sums)
        runs.append(order[start:end])
        start = end
    return [runs[index] for index in rng.permutation(len(runs))]


@pytest.mark.parametrize("limit", [40, 300, 100_000])
@pytest.mark.parametrize("window", [7, 100, 1 << 16])
def test_an_epoch_is_the_one_that_the_plain_code_makes(
    store: Store, limit: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW", window)
    updates = Sampler(store, limit, seed=5).epoch(2)
    assert listed(updates) == listed(plain_epoch(store, limit, 5, 2))
    assert [updates[index].tolist() for index in range(len(updates))] == listed(updates)
    assert updates[0].dtype == np.int64


def test_neighbours_are_similarly_long_and_lengths_come_mixed(store: Store) -> None:
    updates = Sampler(store, 200, seed=1).epoch(0)
    spread = [int(np.ptp(store.lengths[1][pairs])) for pairs in updates]
    assert np.mean(spread) < 2
    means = [float(np.mean(store.lengths[1][pairs])) for pairs in updates]
    assert means not in (sorted(means), sorted(means)[::-1])


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=40),
    limit=st.integers(9, 30),
    window=st.integers(1, 45),
    data=st.data(),
)
def test_cut_makes_the_longest_runs(
    lengths: list[tuple[int, int]], limit: int, window: int, data: st.DataObject
) -> None:
    order = np.array(data.draw(st.permutations(range(len(lengths)))), np.int64)
    sides = [np.array([pair[side] for pair in lengths], np.int32)[order] for side in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "WINDOW", window)
        runs = cut(order, sides, limit)
    assert [pair for run in listed(runs) for pair in run] == order.tolist()
    for run in listed(runs):
        assert run
        assert all(sum(lengths[pair][side] for pair in run) <= limit for side in (0, 1))
    for run, after in itertools.pairwise(listed(runs)):
        assert any(sum(lengths[pair][side] for pair in (*run, after[0])) > limit for side in (0, 1))


def test_cut_refuses_a_sentence_longer_than_the_limit() -> None:
    with pytest.raises(AssertionError):
        cut(np.arange(2), [np.array([1, 10], np.int32)], 9)


def test_cut_counts_beyond_thirty_two_bits() -> None:
    lengths = np.full(3, 2**30, np.int32)
    assert listed(cut(np.arange(3), [lengths], 2**32)) == [[0, 1, 2]]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_micro_batches_share_an_update(store: Store, count: int) -> None:
    pairs = Sampler(store, 1000, seed=1).epoch(0)[0]
    numbers, parts, weights = zip(*micro_batches(store, pairs, count), strict=True)
    assert (numbers, weights) == (tuple(range(count)), (1.0,) * count)
    assert torch.cat([part.source for part in parts]).tolist() == store.gather(0, pairs).tolist()
    assert torch.cat([part.target_out for part in parts]).tolist() == store.gather(1, pairs).tolist()
    sizes = [part.source_layout.batch_size for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert len(list(micro_batches(store, pairs[:2], 5))) == 2


def test_ranks_share_an_update_and_none_goes_without(store: Store) -> None:
    pairs = Sampler(store, 1000, seed=1).epoch(0)[0]
    alone = {number: part.source.tolist() for number, part, _ in micro_batches(store, pairs, 8)}
    shares = [
        {number: part.source.tolist() for number, part, _ in micro_batches(store, pairs, 8, r, 4)} for r in range(4)
    ]
    assert [sorted(share) for share in shares] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert {number: part for share in shares for number, part in share.items()} == alone
    weights = [[weight for *_, weight in micro_batches(store, pairs[:3], 8, rank, 4)] for rank in range(4)]
    assert weights == [[1.0], [1.0], [1.0], [0.0]]


def test_a_batch_shifts_the_target(tmp_path: Path) -> None:
    write_store(tmp_path, [([[11, 12], [], [13]], [[21], [22, 23], []])], 1000)
    batch = Batch.of(Store(tmp_path), np.array([1, 0, 2]))
    assert batch.source.tolist() == [EOS, 11, 12, EOS, 13, EOS]
    assert batch.target_in.tolist() == [BOS, 22, 23, BOS, 21, BOS]
    assert batch.target_out.tolist() == [22, 23, EOS, 21, EOS, EOS]
    assert batch.source_layout.lengths.tolist() == [1, 3, 2]
    assert batch.target_layout.lengths.tolist() == [3, 2, 1]
    assert (batch.target_layout.total, batch.target_layout.max_length) == (6, 3)
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.target_in, batch.target_in)
    assert torch.equal(moved.source_layout.lengths, batch.source_layout.lengths)


def test_in_order_is_everything_once_shortest_first(store: Store) -> None:
    everything = list(in_order(store, 300))
    numbers = [int(batch.source[start]) - 100 for batch in everything for start in batch.source_layout.starts]
    assert sorted(numbers) == list(range(500))
    targets = store.lengths[1][numbers].tolist()
    assert targets == sorted(targets)
    assert max(max(batch.source_layout.total, batch.target_layout.total) for batch in everything) <= 300


def test_rounded_batches_end_in_filler_that_is_not_predicted(tmp_path: Path) -> None:
    write_store(tmp_path, [([[5] * 59] * 9, [[6] * 59] * 9)], 1000)
    batch = Batch.of(Store(tmp_path), np.arange(9))
    rounded = batch.rounded()
    assert len(batch.source) == 540
    assert len(rounded.source) == len(rounded.target_in) == rounded.source_layout.total == 544
    assert rounded.source[:540].equal(batch.source) and rounded.target_in[:540].equal(batch.target_in)
    assert rounded.target_out.tolist() == [*batch.target_out.tolist(), -1, -1, -1, -1]
    assert rounded.to(torch.device("cpu")).target_layout.filler == 4


def test_places_beyond_sixteen_bits_are_kept() -> None:
    sides: list[NDArray[np.integer[Any]]] = list(np.random.default_rng(1).integers(1, 9, (2, 70_000)).astype(np.uint16))
    order = np.arange(70_000, dtype=np.int32)[::-1].copy()
    plain = order[np.lexsort([side[order] for side in sides])]
    sort_by_length(order, sides)
    assert (order == plain).all()


@pytest.mark.parametrize("longest", [65_535, 65_536])
def test_a_length_of_seventeen_bits(longest: int) -> None:
    order = np.arange(3, dtype=np.int32)
    sort_by_length(order, [np.array([1, longest, 2], np.int32)] * 2)
    assert order.tolist() == [0, 2, 1]
