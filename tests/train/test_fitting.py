"""Parts of an update: the fewest that fit, and a trial batch that no part exceeds."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from seq2seq.data.batches import Sampler
from seq2seq.data.store import Store, write_store
from seq2seq.support.errors import RunError
from seq2seq.train.fitting import choose_parts, fitting_parts, largest_part, worst_part


@pytest.mark.parametrize(("needed", "expected"), [(1, 1), (2, 2), (3, 4), (8, 8), (40, 50)])
def test_parts_are_doubled_until_they_fit(needed: int, expected: int) -> None:
    tried = []

    def trial(parts: int) -> None:
        tried.append(parts)
        if parts < needed:
            raise torch.OutOfMemoryError("full")

    assert fitting_parts(trial, least=1, most=50) == expected
    assert tried == sorted(set(tried))


def test_what_a_trial_held_is_gone_before_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = weakref.WeakSet[torch.Tensor]()
    counts = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: counts.append(len(held)))

    def trial(parts: int) -> None:
        computed = torch.zeros(1)
        held.add(computed)
        if parts < 4:
            raise torch.OutOfMemoryError("full")

    assert fitting_parts(trial, least=1, most=4) == 4
    assert counts == [0, 0]


@pytest.mark.parametrize(("least", "most"), [(2, 2), (2, 7), (3, 3)])
def test_what_does_not_fit_at_all_says_what_to_do(least: int, most: int) -> None:
    tried = []

    def trial(parts: int) -> None:
        tried.append(parts)
        raise torch.OutOfMemoryError("full")

    with pytest.raises(RunError, match=r"in \d+ parts does not fit the device's memory; take a smaller model, "):
        fitting_parts(trial, least, most)
    # Ranks share parts evenly.
    assert all(parts % least == 0 for parts in tried)
    assert tried[-1] >= most


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_no_part_of_any_epoch_is_larger_than_the_worst(tmp_path: Path, parts: int) -> None:
    rng = np.random.default_rng(4)
    sides = [[[7] * int(length) for length in rng.integers(1, 60, 500)] for _ in range(2)]
    write_store(tmp_path, [(sides[0], sides[1])], 300)
    store = Store(tmp_path)
    sampler = Sampler(store, 400, seed=1)
    worst = worst_part(store, sampler.epoch(0), parts)
    for epoch in range(3):
        for pairs in sampler.epoch(epoch):
            for part in np.array_split(pairs, parts):
                for lengths, layout in zip(store.lengths, (worst.source_layout, worst.target_layout), strict=True):
                    if len(part):
                        assert layout.total >= lengths[part].sum()
                        assert layout.max_length >= lengths[part].max()
    assert worst.source.shape[0] == worst.source_layout.total
    assert worst.target_out.shape[0] == worst.target_layout.total
    # It is not much larger either.
    assert worst.source_layout.total <= 400 + 60 * 2
    largest = largest_part(store, sampler.epoch(0), parts)
    assert largest.source_layout.total + largest.target_layout.total == max(
        sum(int(lengths[part].sum()) for lengths in store.lengths)
        for pairs in sampler.epoch(0)
        for part in np.array_split(pairs, parts)
    )


@pytest.mark.parametrize(
    ("tokens", "ranks", "given", "expected"),
    [(4096, 1, 0, 1), (8192, 1, 0, 2), (25000, 1, 0, 3), (25000, 2, 0, 4), (25000, 1, 5, 5)],
)
def test_on_a_processor_the_tokens_tell_the_parts(tokens: int, ranks: int, given: int, expected: int) -> None:
    # No update has more than all tokens of the longer side.
    store = SimpleNamespace(lengths=[np.array([5000, 1000]), np.array([9000, 1000])])
    config = SimpleNamespace(data=SimpleNamespace(batch_tokens=tokens))
    updater = SimpleNamespace(world=SimpleNamespace(size=ranks), device=torch.device("cpu"), config=config)
    assert choose_parts(cast(Any, updater), cast(Any, store), cast(Any, None), given) == expected
