"""Trainings by several ranks, started by a launcher or by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port
from tests.processes import PATIENCE
from tests.train.runs import TINY, log

STEPS = 50
SETTINGS = [
    *TINY,
    *("data.micro_batches=4", "model.dropout=0.1", "trainer.log_seconds=0", "trainer.validate_every=1000"),
    *(f"trainer.max_steps={STEPS}", "trainer.save_every=1000", "trainer.timeout_minutes=0.5"),
    # At the paper's rate for so few dimensions, 0.08, updates make a thousandfold of what rounding differs by.
    "schedule.peak=0.003",
]


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "seq2seq.cli.train", *overrides]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def train(*overrides: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*overrides), env=environment(), text=True, capture_output=True, timeout=timeout)


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in log(run_dir, "train")]


def ranks(
    tmp_path: Path, *commands: list[str], port: int | None = None, folders: list[Path] | None = None
) -> list[subprocess.Popen[str]]:
    """Ranks started by hand, as a cluster's own launcher would, each by a command of its own."""
    if port is None:
        port = free_port()
    started = []
    for rank, own in enumerate(commands):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(commands))}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        with (tmp_path / f"rank-{rank}.log").open("w") as file:
            started.append(
                subprocess.Popen(
                    own,
                    env=environment(**place, **address),
                    cwd=folders[rank] if folders else None,
                    stderr=file,
                    text=True,
                )
            )
    return started


def last_line(tmp_path: Path, rank: int) -> str:
    lines = (tmp_path / f"rank-{rank}.log").read_text().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]
