"""Tiny trainings for the soak: ranks in processes forked from this one, which has imported everything already.

What they do is what `python -m seq2seq.cli.rank` does; each writes down the updates that it has made, and can be told
when to kill itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from seq2seq.cli.rank import train_as_rank
from seq2seq.config.compose import compose
from seq2seq.config.schema import Config
from seq2seq.data.prepare import prepare
from seq2seq.support.errors import exit_code_of
from seq2seq.train.checkpoint import Checkpoints, Snapshot
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Update
from tests.ports import free_port
from tests.soak.faults import Faults, installed, kill

STEPS, SAVE_EVERY = 40, 4
LETTERS = "abcdefghij"
TINY = [
    *("model.d_model=16", "model.encoder.num_layers=1", "model.decoder.num_layers=1"),
    *("model.encoder.num_heads=2", "model.decoder.num_heads=2", "model.encoder.d_ff=32", "model.decoder.d_ff=32"),
    *("search.max_length_ratio=0", "search.max_length_offset=5", "data.batch_tokens=500", "data.micro_batches=2"),
    *("tokenizer.vocab_size=300", "schedule.warmup_steps=10", "trainer.device=cpu", "trainer.precision=float32"),
    *("data.cleaning.same=false", "data.cleaning.duplicate=false", "trainer.timeout_minutes=2"),
    *(f"trainer.max_steps={STEPS}", f"trainer.save_every={SAVE_EVERY}", "trainer.validate_every=16"),
    *("trainer.keep_checkpoints=3", "trainer.average_last=2", "trainer.log_seconds=0"),
]


@dataclass(frozen=True)
class Kill:
    """When rank `rank` kills itself: `delay` seconds after update `step` began, or at an operation of its save."""

    rank: int
    step: int
    delay: float = 0.0
    operation: int | None = None


class Made(NamedTuple):
    """An update that a rank has made: which one, a hash of its part of the batch, and when (monotonic seconds)."""

    rank: int
    step: int
    batch: str
    time: float


def prepared(folder: Path, *overrides: str, pairs: int = 300, longest: int = 7) -> Config:
    """The configuration of a training in `folder/run` to copy up to `longest` letters, its data prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    sides = []
    for split, count in (("train", pairs), ("valid", 10)):
        texts = [" ".join(rng.choice(LETTERS) for _ in range(rng.randint(1, longest))) for _ in range(count)]
        (folder / split).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        sides += [f"data.{split}.{side}={folder / split}" for side in ("source", "target")]
    config = compose(
        [
            "+recipe=files",
            "model.norm=post",
            "optimizer=adam",
            *sides,
            f"data.prepared_dir={folder}/data",
            f"run_dir={folder}/run",
            *TINY,
            *overrides,
        ]
    )
    prepare(config)
    return config


class Ranks:
    """The ranks of one attempt at a training, running."""

    def __init__(self, config: Config, count: int, kill_at: Kill | None = None) -> None:
        self.run_dir = Path(config.run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.pids = []
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost"}
            names = {**place, "MASTER_PORT": port} if count > 1 else {}
            own = kill_at if kill_at and kill_at.rank == rank else None
            body = functools.partial(as_rank, config, rank, own)
            self.pids.append(_forked(body, names, self.run_dir / f"rank-{rank}.err"))

    def wait(self) -> list[int]:
        """The exit codes once all have ended; -9 for one that was killed."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


def made(run_dir: Path) -> list[Made]:
    """The updates that the ranks of all attempts have made, in order."""
    lines = (run_dir / "made").read_text().splitlines() if (run_dir / "made").exists() else []
    words = (line.split() for line in lines)
    return [Made(int(rank), int(step), batch, float(when)) for rank, step, batch, when in words]


def _forked(body: Callable[[], None], names: dict[str, Any], errors: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update({name: str(value) for name, value in names.items()})
            with errors.open("a") as file:
                os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(2, "w")
            torch.set_num_threads(1)
            code = exit_code_of("soak", body)
        finally:
            os._exit(code)
    return pid


def as_rank(config: Config, rank: int, own: Kill | None = None) -> None:
    """Train as a rank that notes its updates in `run_dir/made`, and kills itself when it is told to."""
    with _noting(Path(config.run_dir) / "made", rank), _killing(own) if own else contextlib.nullcontext():
        train_as_rank(config)


@contextlib.contextmanager
def _noting(path: Path, rank: int) -> Iterator[None]:
    update = Trainer.train_step

    def noted(trainer: Trainer, made_of: Update) -> int:
        stop = update(trainer, made_of)
        batch = hashlib.sha256(b"".join(part.target_out.numpy().tobytes() for _, part, _ in made_of.parts)).hexdigest()
        line = f"{rank} {trainer.progress.step} {batch[:16]} {time.monotonic()}\n"
        with path.open("a") as file:
            file.write(line)
        return stop

    with mock.patch.object(Trainer, "train_step", noted):
        yield


@contextlib.contextmanager
def _killing(own: Kill) -> Iterator[None]:
    update, save = Trainer.train_step, Checkpoints.save

    def timed(trainer: Trainer, made_of: Update) -> int:
        if trainer.progress.step + 1 == own.step and own.operation is None:
            threading.Timer(own.delay, kill, [""]).start()
        return update(trainer, made_of)

    def counted(checkpoints: Checkpoints, snapshot: Snapshot, config: Config) -> None:
        if snapshot.progress.step < own.step or own.operation is None:
            save(checkpoints, snapshot, config)
        else:
            with installed(Faults(own.operation, kill, inside=str(checkpoints.directory))):
                save(checkpoints, snapshot, config)

    with mock.patch.object(Trainer, "train_step", timed), mock.patch.object(Checkpoints, "save", counted):
        yield
