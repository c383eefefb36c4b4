"""Trainings that are told to stop, and one whose rank dies under torchrun.

    python -m tests.soak.stops [--signals 12] [--seed N] [--output FILE]

SIGTERM and SIGINT come at random moments to trainings of one rank and two: how many updates were still made, how long
the end took, and whether the last update is the saved one. Then torchrun starts two ranks of which one is killed, and
starts them again (`--max-restarts`), once as one machine and once as two: the result is held against a training that
never stopped. JSON on stdout.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from seq2seq.config.compose import load, to_yaml
from seq2seq.config.schema import Config
from seq2seq.train.checkpoint import Checkpoints, step_of
from seq2seq.train.interrupts import SIGNALS
from tests.ports import free_port
from tests.soak.kills import batches_of, state_of
from tests.soak.ranks import Kill, Ranks, as_rank, made, prepared
from tools.origin import give_out, machine


def stop_once(config: Config, ranks: int, number: signal.Signals, rng: random.Random) -> dict[str, Any]:
    """Send a signal to all ranks at a random moment, as a terminal or a cluster does; what came of it."""
    run_dir = Path(config.run_dir)
    started = Ranks(config, ranks)
    while not made(run_dir):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.2))
    for pid in started.pids:
        os.kill(pid, number)
    sent = time.monotonic()
    codes = started.wait()
    seconds = time.monotonic() - sent
    if codes != [128 + number] * ranks:
        raise SystemExit(f"{run_dir}: {number.name} ended the ranks with {codes}")
    updates = [update for update in made(run_dir) if update.rank == 0]
    saved = step_of(Checkpoints(run_dir).all()[-1])
    if saved != updates[-1].step:
        raise SystemExit(f"{run_dir}: {number.name} came, step {updates[-1].step} was made and step {saved} saved")
    return {"updates": sum(update.time > sent for update in updates), "seconds": seconds}


def stops(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Figures of so many stops, by turns of both signals and of one rank and two."""
    config = prepared(folder, "trainer.max_steps=100000", "trainer.validate_every=100000", "trainer.save_every=1000")
    found = []
    for index in range(count):
        own = replace(config, run_dir=str(folder / f"stopped-{index}"))
        found.append(stop_once(own, 1 + index // 2 % 2, SIGNALS[index % 2], rng))
    return {
        "stops": count,
        "most_updates_after_the_signal": max(stop["updates"] for stop in found),
        "most_seconds_to_the_end": round(max(stop["seconds"] for stop in found), 2),
    }


def restarted(folder: Path, machines: int) -> dict[str, Any]:
    """Whether torchrun's restarts after the death of a rank lead to the same training.

    Two machines are two launchers here, of one rank each, that know of one another only by their address.
    """
    config = prepared(folder)
    unbroken = replace(config, run_dir=str(folder / "unbroken"))
    if any(Ranks(unbroken, 2).wait()):
        raise SystemExit("the unbroken training failed")
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    places = [f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-backend=c10d", "--local-addr=localhost"]
    counts = [f"--nnodes={machines}", f"--nproc-per-node={2 // machines}", "--max-restarts=3"]
    # The second rank is told to die at its eighteenth update when it is first started, and at its thirty-first then.
    own = ["-m", "tests.soak.stops", "--as-rank", str(folder / "config.yaml"), "18", "31"]
    command = [sys.executable, "-m", "torch.distributed.run", *places, *counts, *own]
    names = {**os.environ, "OMP_NUM_THREADS": "1"}
    if machines > 1:
        names["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    began = time.monotonic()
    hosts = [[*command[:3], f"--rdzv-conf=is_host={int(not machine)}", *command[3:]] for machine in range(machines)]
    launchers = [subprocess.Popen(host, env=names, text=True, stderr=subprocess.PIPE) for host in hosts]
    for launcher in launchers:
        _, told = launcher.communicate(timeout=240)
        if launcher.returncode:
            raise SystemExit(f"torchrun ended with {launcher.returncode}: {told}")
    run_dir = Path(config.run_dir)
    if state_of(run_dir) != state_of(Path(unbroken.run_dir)) or batches_of(run_dir) != batches_of(
        Path(unbroken.run_dir)
    ):
        raise SystemExit("torchrun's restart did not lead to the state of the unbroken training")
    kills = len((run_dir / "killed").read_text().splitlines())
    return {"restarts": kills, "bit_equal": True, "seconds": round(time.monotonic() - began)}


def as_restarted_rank(path: Path, steps: list[int]) -> None:
    """What torchrun starts: rank 1 dies at each of the steps, one a start."""
    config, rank, kill_at = load(path), int(os.environ["RANK"]), None
    # Launchers count their restarts each for itself, and a rank may change its launcher.
    killed = Path(config.run_dir) / "killed"
    start = len(killed.read_text().splitlines()) if killed.exists() else 0
    if rank == 1 and start < len(steps):
        kill_at = Kill(1, steps[start])
        killed.parent.mkdir(exist_ok=True)
        with killed.open("a") as file:
            file.write(f"{kill_at.step}\n")
    try:
        as_rank(config, rank, kill_at)
    except BaseException as error:
        print(f"rank {rank}: {error}", file=sys.stderr)
        os._exit(3)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--as-rank", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank:
        as_restarted_rank(Path(arguments.as_rank[0]), [int(step) for step in arguments.as_rank[1:]])
        return
    with tempfile.TemporaryDirectory(prefix="seq2seq-soak-") as folder:
        found = {
            "signals": stops(Path(folder) / "signals", arguments.signals, random.Random(arguments.seed)),
            "torchrun": restarted(Path(folder) / "torchrun", 1),
            "two_torchruns": restarted(Path(folder) / "two_torchruns", 2),
        }
    command = f"python -m tests.soak.stops --signals {arguments.signals} --seed {arguments.seed}"
    give_out({"command": command, "date": date.today().isoformat(), "machine": machine(), **found}, arguments.output)


if __name__ == "__main__":
    main()
