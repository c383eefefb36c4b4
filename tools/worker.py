"""Processes that answer lines of JSON, and the benchmark's side of a contestant of tools/bench_train.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seq2seq.support.errors import RunError
from tools.contestants import RANKS
from tools.training_worker import Job, Stretch

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000")}
"""Set for all contestants, as seq2seq-train sets it."""


class JsonProcess:
    """A Python module in a process of its own, with `environment` added to ours; asleep until it is asked."""

    def __init__(self, *command: str, environment: dict[str, str]) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: dict[str, Any]) -> None:
        """Send it a question. Raises RunError when the process has ended."""
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> dict[str, Any]:
        """Wait for its answer. Raises RunError when the process has ended."""
        assert self._process.stdout
        try:
            return dict(json.loads(self._process.stdout.readline()))
        except json.JSONDecodeError:
            raise self._ended() from None

    def end(self, *, at_once: bool = False) -> None:
        """Let it end, and wait until it has."""
        if at_once:
            self._process.kill()
        self._process.communicate()

    def _ended(self) -> RunError:
        return RunError(
            f"ended with code {self._process.wait()}, its output is above; code -9: out of memory, make it smaller"
        )


class Worker:
    """A contestant's process, or those of its ranks, and its answers in the rounds that count."""

    def __init__(self, job: Job) -> None:
        self.job, self.answers = job, list[dict[str, Any]]()
        self.built: dict[str, Any] = {}
        self.started = time.monotonic()
        self.processes = [
            JsonProcess("tools.training_worker", environment={**ENVIRONMENT, **environment})
            for environment in environments(RANKS.get(job.contestant, 1))
        ]

    def build(self) -> None:
        """Have it build its model. Raises RunError when the process has ended."""
        self.built = self._ask(self.job)

    def run(self, stretch: Stretch) -> dict[str, Any]:
        """Compute some updates; returns what they took. Raises RunError when the process has ended."""
        return self._ask(stretch)

    def answered(self, key: str) -> list[float]:
        """A figure of each round."""
        return [answer[key] for answer in self.answers]

    def per_second(self, key: str) -> list[float]:
        """The same per second of the round."""
        return quotients(self.answered(key), self.answered("seconds"))

    def _ask(self, question: Job | Stretch) -> dict[str, Any]:
        try:
            for process in self.processes:
                process.ask(asdict(question))
            answers = [process.answer() for process in self.processes]
        except RunError as error:
            remedy = "type a smaller --batch-tokens, or --micro-batches=2"
            raise RunError(f"{self.job.contestant} in {self.job.precision} {error}: {remedy}") from None
        # Ranks share the work and its time.
        summed: dict[str, Any] = {
            key: sum(answer[key] for answer in answers) for key in ("peak_memory", "rows") if key in answers[0]
        }
        own = {"others": max(0.0, answers[0]["others"] - len(answers) + 1)} if "others" in answers[0] else {}
        return {**answers[0], **summed, **own}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.end(at_once=any(error))


def environments(ranks: int) -> list[dict[str, str]]:
    """The environment variables that tell each process of a contestant its rank."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // ranks)
    common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    return [{name: str(value) for name, value in {**common, "RANK": rank}.items()} for rank in range(ranks)]


def quotients(above: Iterable[float], below: Iterable[float]) -> list[float]:
    """One divided by the other, pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]
