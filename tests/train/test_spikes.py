"""Rises that stay are found within five updates; what happens in clean trainings is none."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from seq2seq.train.spikes import IN_A_ROW, WINDOW, is_spike, watched

CLEAN = json.loads((Path(__file__).parent / "clean_losses.json").read_text(encoding="utf-8"))
"""The losses, in nats a token, of each update of two real trainings in which nothing went wrong."""


def alarms(losses: list[float]) -> list[int]:
    found, kept = [], []
    for index, loss in enumerate(losses):
        kept = watched(kept, loss)
        if is_spike(kept):
            found.append(index)
            kept = []
    return found


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_training_gives_no_alarm(name: str) -> None:
    assert len(CLEAN[name]) >= 300
    assert alarms(CLEAN[name]) == []


@pytest.mark.parametrize("name", CLEAN)
def test_a_rise_in_it_is_found_within_five_updates_and_told_once(name: str) -> None:
    rng = random.Random(1)
    for start in rng.sample(range(WINDOW, len(CLEAN[name]) - 20), 100):
        before = CLEAN[name][:start]
        usual = sorted(before[-WINDOW:])[WINDOW // 2]
        # As a training that breaks down: in a few updates to the loss of guessing by frequency, and it stays there.
        risen = [loss + max(0.0, 7.0 - usual) * min(1.0, (1 + index) / 2) for index, loss in enumerate(CLEAN[name][start:])]
        if usual < 5:
            assert alarms(before + risen[:5]) in ([start + late] for late in range(2, 5)), start
            assert len(alarms(before + risen[:20])) == 1


def test_one_hard_batch_is_none() -> None:
    steady = [2.0 + 0.01 * (index % 7) for index in range(WINDOW)]
    assert alarms([*steady, *[9.0] * (IN_A_ROW - 1), *steady]) == []
    assert alarms([*steady, *[9.0] * IN_A_ROW]) == [WINDOW + IN_A_ROW - 1]


def test_little_is_known_at_the_start() -> None:
    assert alarms([1.0] * (WINDOW // 2 - 1) + [9.0] * IN_A_ROW) == []
    assert alarms([1.0] * (WINDOW // 2) + [9.0] * IN_A_ROW) == [WINDOW // 2 + IN_A_ROW - 1]


def test_no_more_is_kept_than_is_looked_at() -> None:
    kept: list[float] = []
    for index in range(3 * WINDOW):
        kept = watched(kept, float(index))
    assert kept == [float(index) for index in range(3 * WINDOW)][-(WINDOW + IN_A_ROW) :]
