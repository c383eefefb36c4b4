"""Trainings killed with `kill -9` again and again, and held against trainings that never were.

    python -m tests.soak.kills [--kills 50] [--seed N] [--output FILE]

Each training is killed several times, two times of five inside the save of a checkpoint, and started again. Then its
weights, optimizer, position and best model must be those of an unbroken training, byte by byte, and every update that
any attempt made must have had the batch of the unbroken one. Prints JSON on stdout; the seed draws all kills.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from seq2seq.config.schema import Config
from seq2seq.support.files import read_json, remove_leftovers
from seq2seq.support.manifest import damage
from seq2seq.train.checkpoint import Checkpoints, step_of
from tests.soak.ranks import SAVE_EVERY, STEPS, Kill, Ranks, made, prepared
from tools.origin import give_out, machine

RANDOM, INSIDE, TORN = "at a random moment", "inside a save", "of them with a torn directory left"
OPERATIONS = 31
"""As many as a save makes that deletes an older checkpoint; where there are fewer, the kill comes in a later save."""
STRIDE = 9
"""Updates at most from where an attempt begins to where it is killed."""


def state_of(run_dir: Path) -> dict[str, Any]:
    """All that a finished training leaves, but for the clock."""
    last = run_dir / "checkpoints" / f"step-{STEPS}"
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    files["best"] = (run_dir / "model" / "model.safetensors").read_bytes()
    progress = {key: value for key, value in read_json(last / "progress.json").items() if key != "seconds"}
    return {**files, "progress": progress, "kept": [path.name for path in Checkpoints(run_dir).all()]}


def batches_of(run_dir: Path) -> dict[tuple[int, int], set[str]]:
    """The different batches that each rank's part of each update was made of."""
    found: dict[tuple[int, int], set[str]] = {}
    for update in made(run_dir):
        found.setdefault((update.rank, update.step), set()).add(update.batch)
    return found


class Chain:
    """One training, killed and started again until it ends."""

    def __init__(self, config: Config, ranks: int, rng: random.Random) -> None:
        self.config, self.ranks, self.rng = config, ranks, rng
        self.run_dir = Path(config.run_dir)
        self.kills = Counter({RANDOM: 0, INSIDE: 0, TORN: 0})
        self.most_lost = 0

    def count(self) -> int:
        """Kills so far."""
        return self.kills[RANDOM] + self.kills[INSIDE]

    def reached(self) -> int:
        """The step that the next attempt goes on from: of the newest checkpoint; all must be whole."""
        remove_leftovers(self.run_dir / "checkpoints")
        found = Checkpoints(self.run_dir).all()
        for folder in found:
            if fault := damage(folder):
                raise SystemExit(f"{folder}/{fault}: not whole after a kill")
        return step_of(found[-1]) if found else 0

    def attempt(self, inside: bool) -> None:
        """Start it once more, to be killed; a draw that comes to nothing is none."""
        begin, already = self.reached(), len(made(self.run_dir))
        kill = Kill(self.rng.randrange(self.ranks), begin + self.rng.randint(1, STRIDE), self.rng.uniform(0, 0.03))
        if inside:
            # Rank 0 alone saves.
            step = -(-kill.step // SAVE_EVERY) * SAVE_EVERY
            kill = Kill(0, step, operation=self.rng.randrange(OPERATIONS))
        codes = Ranks(self.config, self.ranks, kill).wait()
        if -9 not in codes:
            return
        if sorted(codes) != [-9, 3][: self.ranks]:
            raise SystemExit(f"{self.run_dir}: {kill} ended the ranks with {codes}")
        self.kills[INSIDE if inside else RANDOM] += 1
        self.kills[TORN] += inside and any((self.run_dir / "checkpoints").glob(".*"))
        done = max((update.step for update in made(self.run_dir)[already:] if update.rank == 0), default=begin)
        if begin and self.reached() < begin:
            raise SystemExit(f"{self.run_dir}: a checkpoint is gone after {kill}")
        self.most_lost = max(self.most_lost, done - self.reached())

    def finish(self) -> None:
        """Let it come to its end."""
        codes = Ranks(self.config, self.ranks).wait()
        if any(codes):
            raise SystemExit(f"{self.run_dir}: ended with {codes}: {(self.run_dir / 'rank-0.err').read_text()[-2000:]}")

    def compare(self, unbroken: Chain) -> None:
        """End the program unless all is as in the unbroken training."""
        if state_of(self.run_dir) != state_of(unbroken.run_dir):
            raise SystemExit(f"{self.run_dir}: not the state of the unbroken training")
        if batches_of(self.run_dir) != batches_of(unbroken.run_dir):
            raise SystemExit(f"{self.run_dir}: not the batches of the unbroken training")
        # A save is written while the updates up to the next one are made.
        if self.most_lost > 2 * SAVE_EVERY:
            raise SystemExit(f"{self.run_dir}: {self.most_lost} updates were lost")


def soak(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so many times; the figures. Ends the program where a promise is broken."""
    rng, began = random.Random(seed), time.monotonic()
    config = prepared(folder)

    def chain(name: str, ranks: int) -> Chain:
        return Chain(replace(config, run_dir=str(folder / name)), ranks, rng)

    unbroken = {ranks: chain(f"unbroken-{ranks}", ranks) for ranks in (1, 2)}
    for ranks, whole in unbroken.items():
        whole.finish()
        batches = batches_of(whole.run_dir)
        assert len(batches) == STEPS * ranks
        assert all(len(found) == 1 for found in batches.values())
    counts: Counter[str] = Counter()
    of_ranks: Counter[int] = Counter()
    lost = chains = 0
    while of_ranks.total() < kills:
        ranks = 1 + chains % 2
        killed = chain(f"killed-{chains}", ranks)
        most = min(max(2, kills // 10), kills - of_ranks.total())
        while killed.count() < most and killed.reached() + STRIDE <= STEPS:
            killed.attempt(inside=(of_ranks.total() + killed.count()) % 5 % 2 == 1)
        killed.finish()
        killed.compare(unbroken[ranks])
        counts.update(killed.kills)
        of_ranks[ranks] += killed.count()
        lost, chains = max(lost, killed.most_lost), chains + 1
        print(f"{of_ranks.total()} kills, {chains} trainings", file=sys.stderr)
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": seed,
        "kills": {**counts, "of one rank": of_ranks[1], "of two ranks": of_ranks[2]},
        "trainings_bit_equal": chains,
        "updates_of_each": STEPS,
        "save_every": SAVE_EVERY,
        "most_updates_lost": lost,
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}: --seed {arguments.seed} draws the same kills", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="seq2seq-soak-") as folder:
        figures = soak(Path(folder), arguments.kills, arguments.seed)
    command = f"python -m tests.soak.kills --kills {arguments.kills} --seed {arguments.seed}"
    give_out({"command": command, **figures}, arguments.output)


if __name__ == "__main__":
    main()
