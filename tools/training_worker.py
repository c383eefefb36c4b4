"""One contestant of tools/bench_train.py in a process of its own: JSON lines in, JSON lines out, asleep in between.

The first input line is a `Job`, answered once the model is built; each further one is a `Stretch` of updates, answered
with what they took.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from seq2seq.config.schema import Config, ModelConfig, OptimizerConfig, TrainerConfig, TransformerConfig
from seq2seq.data.batches import Batch, Epoch, MicroBatch, Sampler, micro_batches
from seq2seq.data.prefetch import prefetched
from seq2seq.data.store import Store
from seq2seq.model.translation import TranslationModel, count_parameters
from seq2seq.support.devices import (
    SHAPES_OF_TRAINING,
    autocast,
    choose_device,
    keep_freed_memory,
    limit_compiled_shapes,
)
from seq2seq.support.ranks import is_rank
from seq2seq.train.distributed import World
from seq2seq.train.fitting import require_fit
from seq2seq.train.optimizer import build_optimizer
from seq2seq.train.updater import Updater
from tools.contestants import CONTESTANTS, OURS, RANKS, SMOOTHING, Contestant
from tools.flops import update_flops
from tools.parts import watched

MATRIX = "matrix product"
RATE = 1e-4
SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product gives the machine's rate."""


@dataclass(frozen=True)
class Job:
    """What to build, and where to compute; `model` is a ModelConfig as a dictionary."""

    contestant: str
    precision: str
    device: str
    micro_batches: int
    vocab_size: int
    model: dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """Updates number `first` to `first + count - 1` of a store's first epoch; profiled by part if `watched`."""

    store: str
    batch_tokens: int
    first: int
    count: int
    watched: bool = False


class Ours:
    """Updates computed by the trainer's own `Updater`."""

    def __init__(self, model: TranslationModel, config: Config, world: World) -> None:
        self._updater, self._step = Updater(model, config, world), 0
        self.ready = self._updater.ready

    def start(self, store: Store, updates: Epoch, micro_batches: int) -> None:
        """What the trainer does before its first update."""
        if self._updater.device.type != "cpu":
            require_fit(self._updater, store, updates, micro_batches)
        self._updater.start()

    def update(self, parts: list[MicroBatch], target_tokens: int) -> None:
        """One update by all ranks, of `target_tokens` target tokens in all."""
        self._step += 1
        self._updater.gradients(parts, target_tokens, self._step)
        self._updater.apply(RATE, self._step)


class Peer:
    """Updates in a plain loop."""

    def __init__(self, contestant: Contestant, device: torch.device, precision: torch.dtype) -> None:
        self._loss, self._device, self._precision = contestant.loss, device, precision
        self._optimizer = build_optimizer(contestant.model, OptimizerConfig())
        for group in self._optimizer.param_groups:
            group["lr"] = RATE

    def start(self, *_: Any) -> None:
        """Nothing."""

    def ready(self, batch: Batch) -> Batch:
        """The same batch, in pinned memory for a GPU."""
        return batch.pin_memory() if self._device.type == "cuda" else batch

    def update(self, parts: list[MicroBatch], target_tokens: int) -> None:
        """One update, of `target_tokens` target tokens."""
        for _, batch, _ in parts:
            with autocast(self._device, self._precision):
                loss = self._loss(batch.to(self._device))
            (loss / target_tokens).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class TrainingRun:
    """A contestant's training, without a schedule, reports or saves."""

    def __init__(self, job: Job, device: torch.device, world: World) -> None:
        self.job, self.device, self.world = job, device, world
        sides = {side: TransformerConfig(**job.model[side]) for side in ("encoder", "decoder")}
        settings = TrainerConfig(precision=job.precision, label_smoothing=SMOOTHING)
        self.config = Config(model=ModelConfig(**{**job.model, **sides}), trainer=settings)
        torch.manual_seed(1)
        self.contestant = CONTESTANTS[job.contestant](self.config.model, job.vocab_size)
        model = self.contestant.model.to(device).train()
        self.updates: Ours | Peer
        if job.contestant in (OURS, *RANKS):
            self.updates = Ours(cast(TranslationModel, model), self.config, world)
        else:
            self.updates = Peer(self.contestant, device, getattr(torch, job.precision))
        self.parameters = count_parameters(model)
        self._is_started = False

    def run(self, stretch: Stretch) -> dict[str, Any]:
        """Compute the updates; returns seconds, tokens without padding, FLOPs, and rows that entered linear layers."""
        store, updates = opened(stretch.store, stretch.batch_tokens)
        if not self._is_started:
            self._is_started = True
            self.updates.start(store, updates, self.job.micro_batches)
        chosen = [updates[index % len(updates)] for index in range(stretch.first, stretch.first + stretch.count)]
        lengths = [[side[pairs] for side in store.lengths] for pairs in chosen]
        rows = 0
        started = now(self.device)
        for parts, (_, targets) in zip(
            prefetched(lambda pairs: self.parts(store, pairs), chosen), lengths, strict=True
        ):
            self.updates.update(parts, int(targets.sum()))
            rows += sum(self.contestant.rows(batch) for _, batch, _ in parts)
        seconds = now(self.device) - started
        source_tokens, target_tokens = (sum(int(side.sum()) for side in sides) for sides in zip(*lengths, strict=True))
        return {
            "seconds": seconds,
            "tokens": source_tokens + target_tokens,
            "target_tokens": target_tokens,
            "flops": sum(update_flops(self.config.model, self.job.vocab_size, *sides) for sides in lengths),
            "rows": rows,
        }

    def parts(self, store: Store, pairs: NDArray[np.int64]) -> list[MicroBatch]:
        """The micro-batches of an update that this rank computes."""
        world, count = self.world, self.job.micro_batches * self.world.size
        batches = micro_batches(store, pairs, count, world.rank, world.size)
        return [part._replace(batch=self.updates.ready(part.batch)) for part in batches]


class MatrixProducts:
    """Products of two square matrices: the rate that the machine can reach."""

    parameters = 0

    def __init__(self, job: Job, device: torch.device) -> None:
        self.device, self.side = device, SIDE[device.type]
        shape = (2, self.side, self.side)
        self.a, self.b = torch.randn(shape, device=device, dtype=getattr(torch, job.precision))

    def run(self, stretch: Stretch) -> dict[str, Any]:
        """Ten products for each requested update."""
        count = 10 * stretch.count
        torch.mm(self.a, self.b)
        started = now(self.device)
        for _ in range(count):
            torch.mm(self.a, self.b)
        return {"seconds": now(self.device) - started, "flops": count * 2 * self.side**3}


@cache
def opened(store: str, batch_tokens: int) -> tuple[Store, Epoch]:
    """A store with the updates of its first epoch, the same in every process."""
    pairs = Store(Path(store))
    return pairs, Sampler(pairs, batch_tokens, seed=1).epoch(0)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished its queued work; the same clock in all processes of a machine."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held: on a GPU those reserved for tensors and graphs, else everything."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def clocks() -> NDArray[np.float64]:
    """Wall-clock seconds, busy CPU seconds of the whole machine, and CPU seconds of this process."""
    user, nice, system, _idle, _waiting, *rest = map(int, Path("/proc/stat").read_text("ascii").split()[1:9])
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return np.array([time.monotonic(), busy, time.process_time()])


def joined() -> World:
    """The ranks of this contestant, as set in the environment."""
    if not is_rank():
        return World()
    dist.init_process_group("gloo")
    return World(dist.get_rank(), dist.get_world_size())


def serve(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The answer to each line."""
    commands = iter(lines)
    job = Job(**json.loads(next(commands)))
    device = choose_device(job.device)
    if device.type == "cpu":
        keep_freed_memory()
        if job.contestant == OURS:
            limit_compiled_shapes(SHAPES_OF_TRAINING)
    build_started = now(device)
    world = joined()
    contestant = MatrixProducts(job, device) if job.contestant == MATRIX else TrainingRun(job, device, world)
    yield {
        "build_started": build_started,
        "parameters": contestant.parameters,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads() * world.size,
    }
    for line in commands:
        stretch, before = Stretch(**json.loads(line)), clocks()
        run = partial(contestant.run, stretch)
        answer = watched(run, device) if stretch.watched else run()
        seconds, busy, own = clocks() - before
        others = max(0.0, (busy - own) / seconds)
        yield {**answer, "ended": now(device), "peak_memory": peak_memory(device), "others": float(others)}


def main() -> None:
    """Answer on stdout; whatever libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for answer in serve(sys.stdin):
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
