"""The soak in small: each of its tools runs, and what it promises holds for a few kills, stops and updates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and looks into /proc"),
]


def figures_of(tool: str, *arguments: str) -> dict[str, Any]:
    """What a tool measures, in a process of its own: one that has computed nothing can be forked."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.soak.{tool}", *arguments],
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=5 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_training_killed_at_any_moment_ends_as_one_that_was_not() -> None:
    found = figures_of("kills", "--kills", "4", "--seed", "1")
    assert found["kills"]["at a random moment"] >= 1
    assert found["kills"]["inside a save"] >= 1
    assert found["kills"]["of one rank"] + found["kills"]["of two ranks"] == 4
    assert min(found["kills"]["of one rank"], found["kills"]["of two ranks"]) >= 1
    assert found["most_updates_lost"] <= 2 * found["save_every"]


def test_a_signal_is_followed_by_two_updates_at_most_and_a_restart_by_torchrun_is_exact() -> None:
    found = figures_of("stops", "--signals", "4", "--seed", "1")
    assert found["signals"]["stops"] == 4
    assert found["signals"]["most_updates_after_the_signal"] <= 2
    assert found["torchrun"] == {"restarts": 2, "bit_equal": True, "seconds": found["torchrun"]["seconds"]}


def test_memory_is_sampled() -> None:
    found = figures_of("memory", "--steps", "40")
    assert len(found["resident_MiB"]) == 20
    assert found["shapes"] > 10
    assert 50 < found["resident_MiB"]["40"] < 5000
