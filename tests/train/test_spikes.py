"""Rises that stay are found within five updates; what happens in clean trainings is none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import median

import pytest

from seq2seq.train.spikes import ENOUGH, LAST, WINDOW, spike_length, watched

CLEAN = json.loads((Path(__file__).parent / "clean_losses.json").read_text(encoding="utf-8"))
"""The losses, in nats a token, of two real trainings in which nothing went wrong, of the first 2,000 updates and of all
6,000: seq2seq-train +recipe=NAME trainer.log_seconds=0."""


def alarms(losses: list[float]) -> list[int]:
    found: list[int] = []
    kept: list[float] = []
    for index, loss in enumerate(losses):
        kept = watched(kept, loss)
        if spike_length(kept):
            found.append(index)
            kept = []
    return found


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_training_gives_no_alarm(name: str) -> None:
    assert len(CLEAN[name]) >= 500
    assert alarms(CLEAN[name]) == []


def test_nor_would_it_with_its_batches_in_other_orders() -> None:
    losses = CLEAN["multi30k_en_de"][3000:]
    usual = [median(losses[max(0, index - 200) : index + 200]) for index in range(len(losses))]
    apart = [loss - middle for loss, middle in zip(losses, usual, strict=True)]
    for seed in range(10):
        shuffled = random.Random(seed).sample(apart, len(apart))
        assert alarms([middle + own for middle, own in zip(usual, shuffled, strict=True)]) == []


@pytest.mark.parametrize("name", CLEAN)
def test_a_rise_in_it_is_found_within_five_updates_and_told_once(name: str) -> None:
    losses = CLEAN[name]
    for start in range(WINDOW + LAST, len(losses) - 20, 3):
        before, usual = losses[start - WINDOW - LAST : start], median(losses[start - WINDOW : start])
        # As a training that breaks down: in two updates to about the loss of knowing nothing, where it stays.
        rise = max(2.5, 7.0 - usual)
        risen = [loss + rise * min(1.0, (1 + index) / 2) for index, loss in enumerate(losses[start : start + 20])]
        (found,) = alarms(before + risen)
        assert found - len(before) < 5, start


STEADY = [2.0 + 0.01 * (index % 7) for index in range(WINDOW + LAST)]


def test_one_hard_batch_is_none() -> None:
    assert alarms([*STEADY, *[9.0] * (ENOUGH - 1), *STEADY]) == []
    assert alarms([*STEADY, *[9.0] * ENOUGH]) == [len(STEADY) + ENOUGH - 1]


def test_it_began_with_the_first_that_was_too_high() -> None:
    assert spike_length([*STEADY, 9.0, 9.0, 9.0]) == 3
    assert spike_length([*STEADY, 9.0, 2.0, 9.0, 2.0, 9.0]) == 5
    assert spike_length([*STEADY, 9.0, 2.0, 9.0, 2.0]) is None


def test_little_is_known_at_the_start() -> None:
    assert alarms([1.0] * (WINDOW + 1) + [9.0] * ENOUGH) == []
    assert alarms([1.0] * (WINDOW + 2) + [9.0] * ENOUGH) == [WINDOW + 2 + ENOUGH - 1]


def test_no_more_is_kept_than_is_looked_at() -> None:
    kept: list[float] = []
    for index in range(3 * WINDOW):
        kept = watched(kept, float(index))
    assert kept == [float(index) for index in range(3 * WINDOW)][-(WINDOW + LAST) :]
