"""The memory of a long training: sampled while thousands of updates of varied shapes go by.

    python -m tests.soak.memory [--steps 3000] [--output FILE]

Prints JSON on stdout: the resident memory, in MiB, at each twentieth of the training, and by how much the last half
grew. Validations and saves come in between, as they do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from seq2seq.cli.rank import train_as_rank
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Update
from tests.soak.ranks import prepared
from tools.origin import give_out, machine

SAMPLES = 20


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """Train so many updates; the memory at each twentieth of them."""
    every = max(1, steps // SAMPLES)
    config = prepared(
        folder,
        *(f"trainer.max_steps={steps}", f"trainer.save_every={every}", f"trainer.validate_every={2 * every}"),
        *("data.batch_tokens=600", "trainer.log_seconds=5"),
        pairs=5000,
        longest=40,
    )
    samples: dict[int, float] = {}
    shapes: set[tuple[int, ...]] = set()
    update = Trainer.train_step

    def sampled(trainer: Trainer, made_of: Update) -> int:
        stop = update(trainer, made_of)
        shapes.add((len(made_of.pairs), *made_of.tokens))
        if trainer.progress.step % every == 0:
            samples[trainer.progress.step] = round(resident(), 1)
        return stop

    torch.set_num_threads(1)
    with mock.patch.object(Trainer, "train_step", sampled):
        train_as_rank(config)
    found = list(samples.values())
    half = found[len(found) // 2 - 1 :]
    return {
        "steps": steps,
        "shapes": len(shapes),
        "resident_MiB": samples,
        "grown_in_the_last_half_MiB": round(half[-1] - half[0], 1),
        "spread_in_the_last_half_MiB": round(max(half) - min(half), 1),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seq2seq-soak-") as folder:
        figures = measure(Path(folder), arguments.steps)
    command = f"python -m tests.soak.memory --steps {arguments.steps}"
    give_out({"command": command, "date": date.today().isoformat(), "machine": machine(), **figures}, arguments.output)


if __name__ == "__main__":
    main()
