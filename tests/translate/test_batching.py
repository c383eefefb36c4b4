"""Batches of texts: who is together, and how workers share them."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch

from seq2seq.support.errors import OutOfMemory
from seq2seq.translate.batching import SMALLEST, batches, explaining_out_of_memory


def texts(count: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.random.default_rng(1).integers(1, 60, count).astype(np.int32)
    return lengths, np.zeros(count, np.int32)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_each_text_is_in_one_batch_longest_first(count: int, workers: int) -> None:
    lengths, widths = texts(count)
    found = batches(lengths, widths, workers, 500)
    order = np.concatenate([np.empty(0, np.int64), *found])
    assert sorted(order.tolist()) == list(range(count))
    assert (np.diff(lengths[order]) <= 0).all()


def test_one_worker_gets_batches_as_large_as_can_be() -> None:
    lengths, widths = texts(1000)
    sizes = [int(lengths[run].sum()) for run in batches(lengths, widths, 1, 500)]
    assert max(sizes) <= 500
    assert min(sizes[:-1]) > 500 - 60


@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("crossover", [50, 200, 10**6])
def test_workers_end_at_about_the_same_time_whatever_long_texts_cost(crossover: int, workers: int) -> None:
    lengths, widths = texts(2000)
    costs = [int((lengths[run] * (crossover + lengths[run])).sum()) for run in batches(lengths, widths, workers, 8192)]
    ends = [0] * workers
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    assert max(ends) < 1.2 * sum(costs) / workers


@pytest.mark.parametrize("workers", [2, 8])
def test_batches_are_neither_too_large_nor_too_small(workers: int) -> None:
    lengths, widths = texts(3000)
    sizes = [int(lengths[run].sum()) for run in batches(lengths, widths, workers, 8192)]
    assert max(sizes) <= 8192
    assert min(sizes[:-1]) > 8192 // SMALLEST - 60


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_longer_than_a_batch_is_a_batch(workers: int) -> None:
    found = batches(np.array([3, 900, 2], np.int32), np.zeros(3, np.int32), workers, 5)
    assert next(run.tolist() for run in found) == [1]


def test_texts_of_other_widths_are_not_together() -> None:
    lengths, _ = texts(100)
    widths = np.arange(100, dtype=np.int32) % 3
    assert all(len(set(widths[run].tolist())) == 1 for run in batches(lengths, widths, 2, 500))


@pytest.mark.parametrize(
    ("count", "tokens", "advice"),
    [(40, 8000, "--batch-tokens 4096"), (9, 4096, "--batch-tokens 2048"), (2, 2, "--batch-tokens 1")],
)
def test_a_batch_that_does_not_fit_is_told_with_one_that_has_fewer(count: int, tokens: int, advice: str) -> None:
    with explaining_out_of_memory(count, tokens, 8192):
        pass
    found = pytest.raises(OutOfMemory, match=f"{count} texts, .*; type {advice}$")
    with found, explaining_out_of_memory(count, tokens, 8192):
        raise torch.OutOfMemoryError
    # A text cannot be parted.
    found = pytest.raises(OutOfMemory, match=r"1 texts, .*; type --device cpu$")
    with found, explaining_out_of_memory(1, tokens, 8192):
        raise torch.OutOfMemoryError
    with pytest.raises(ValueError, match="other"), explaining_out_of_memory(count, tokens, 8192):
        raise ValueError("other")
