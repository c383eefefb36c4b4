"""Rises that stay are found within five updates; what happens in clean trainings is none."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from seq2seq.train.spikes import IN_A_ROW, WINDOW, is_spike, watched

CLEAN = json.loads((Path(__file__).parent / "clean_losses.json").read_text(encoding="utf-8"))
"""The losses, in nats a token, of the first updates of two real trainings in which nothing went wrong:
seq2seq-train +recipe=NAME trainer.log_seconds=0, two cores, float32."""


def alarms(losses: list[float]) -> list[int]:
    found: list[int] = []
    kept: list[float] = []
    for index, loss in enumerate(losses):
        kept = watched(kept, loss)
        if is_spike(kept):
            found.append(index)
            kept = []
    return found


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_training_gives_no_alarm(name: str) -> None:
    assert len(CLEAN[name]) >= 250
    assert alarms(CLEAN[name]) == []


@pytest.mark.parametrize("name", CLEAN)
def test_a_rise_in_it_is_found_within_five_updates_and_told_once(name: str) -> None:
    losses, starts = CLEAN[name], range(WINDOW, len(CLEAN[name]) - 20, 3)
    found = 0
    for start in starts:
        before, usual = losses[:start], median(losses[start - WINDOW : start])
        # As a training that breaks down: in two updates to about the loss of knowing nothing, where it stays.
        rise = max(2.5, 7.0 - usual)
        risen = [loss + rise * min(1.0, (1 + index) / 2) for index, loss in enumerate(losses[start : start + 20])]
        at = alarms(before[-2 * WINDOW :] + risen)
        assert len(at) >= 1, start
        found += len(at) == 1 and at[0] - len(before[-2 * WINDOW :]) in (2, 3, 4)
    # In the others a batch of very easy pairs came just then.
    assert found >= 0.97 * len(starts)


def test_one_hard_batch_is_none() -> None:
    steady = [2.0 + 0.01 * (index % 7) for index in range(WINDOW)]
    assert alarms([*steady, *[9.0] * (IN_A_ROW - 1), *steady]) == []
    assert alarms([*steady, *[9.0] * IN_A_ROW]) == [WINDOW + IN_A_ROW - 1]


def test_little_is_known_at_the_start() -> None:
    assert alarms([1.0] * (WINDOW - 1) + [9.0] * IN_A_ROW) == []


def test_no_more_is_kept_than_is_looked_at() -> None:
    kept: list[float] = []
    for index in range(3 * WINDOW):
        kept = watched(kept, float(index))
    assert kept == [float(index) for index in range(3 * WINDOW)][-(WINDOW + IN_A_ROW) :]
