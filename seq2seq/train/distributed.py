"""Ranks: the processes that share the updates of one training run, each with a device of its own.

Every rank holds the whole model, takes micro-batches rank, rank + size, … of an update, and gets the same sums of loss
and gradients; only rank 0 writes and prints.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

import seq2seq
from seq2seq.config.compose import differences
from seq2seq.config.schema import Config
from seq2seq.support import progress
from seq2seq.support.errors import RunError, UserError, first_line
from seq2seq.support.ranks import is_rank

PREPARATION = timedelta(days=1)
"""How long the other ranks wait for rank 0 to prepare the data."""
LOST = re.compile(
    r"connection|socket|timed out|broken pipe|pair closure|remote ?(error|process)|aborted", re.IGNORECASE
)
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PACKAGES = ("torch", "numpy", "sentencepiece", "sacrebleu", "datasets")


class LostRank(RunError):
    """Another rank died; that rank reports what happened, if it still can."""


@dataclass(frozen=True)
class World:
    """The ranks of this run, and which of them this process is.

    They exchange messages over `control`, a CPU process group: a dead rank is noticed there before the GPUs wait for it
    in vain. `patient` is another such group, with a longer timeout.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = None
    patient: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The sums over the ranks, in float64."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self, *, patiently: bool = False) -> None:
        """Return when all ranks have got here; `patiently`, within a day."""
        if self.size > 1:
            dist.barrier(group=self.patient if patiently else self.control)

    def connect(self, zeros: Tensor) -> None:
        """Connect the devices, once all ranks have got here; for tensors as large as this one, it takes its memory."""
        if self.size > 1:
            # While devices are being connected, a dead rank would go unnoticed.
            self.wait()
            dist.all_reduce(zeros)
            dist.broadcast(zeros, 0)

    def sum_in_place(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks, with the same bits on each."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def share_weights(self, module: nn.Module) -> None:
        """Give every rank the weights of rank 0, as `synchronised` does."""
        if self.size > 1:
            for weight in module.parameters():
                dist.broadcast(weight.detach(), 0)

    def synchronised(self, module: nn.Module) -> nn.Module:
        """A module whose backward pass leaves each rank the mean of the ranks' gradients, sent as they become ready."""
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            # Newer versions of torch call it forward_sync_buffers, which 2.11 does not know.
            warnings.filterwarnings("ignore", message=".broadcast_buffers", category=FutureWarning)
            return DistributedDataParallel(
                module, static_graph=True, gradient_as_bucket_view=True, broadcast_buffers=False
            )

    def no_sync(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within it, backward passes of a `synchronised` module add to this rank's gradients and send nothing."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()

    def require_same(self, facts: dict[str, Any]) -> None:
        """Raise UserError, on every rank, unless all ranks have the same facts."""
        hosts_and_facts = self.gather((platform.node(), facts))
        for rank, (host, others) in enumerate(hosts_and_facts):
            differing = differences(others, hosts_and_facts[0][1])
            if differing:
                lines = "; ".join(f"{key} is {found}, on rank 0 {expected}" for key, found, expected in differing)
                raise UserError(f"rank {rank} ({host}) does not fit rank 0: {lines}; start all ranks alike")


@contextlib.contextmanager
def joined(config: Config) -> Iterator[World]:
    """Join the other ranks that the launcher started, if any.

    Raises UserError for a busy port or ranks that were started differently; RunError, here or later inside the block,
    for a rank that dies (LostRank) or does not answer within `trainer.timeout_minutes`.
    """
    if not is_rank():
        yield World()
        return
    missing = [name for name in NAMES if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set, but not {', '.join(missing)}; start the ranks with torchrun")
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if config.trainer.devices not in (1, size):
        raise UserError(f"trainer.devices={config.trainer.devices}: the launcher started {size} ranks; leave it out")
    if config.data.micro_batches:
        require_shareable(config.data.micro_batches, size)
    on_gpu = torch.cuda.is_available() and config.trainer.device != "cpu"
    if on_gpu:
        _require_own_gpu(config.trainer.device, local_rank)
    if rank:
        progress.silence()
    timeout = timedelta(minutes=config.trainer.timeout_minutes)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            # Gradients get twice the timeout, so that it is the control group that reports an unresponsive rank.
            timeout=timeout * (2 if on_gpu else 1),
            store=PrefixStore(_start(), store),
            rank=rank,
            world_size=size,
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise UserError(
                f"the port of {address} is in use; type another one: torchrun --master-port N, or MASTER_PORT=N"
            ) from None
        raise RunError(
            f"rank {rank} did not meet the other ranks at {address}: {first_line(error)}; are all {size} started?"
        ) from None
    try:
        groups = (dist.new_group(backend="gloo", timeout=limit) for limit in (timeout, PREPARATION))
        world = World(rank, size, local_rank, *groups)
        versions = {"seq2seq": seq2seq.__version__, **{name: version(name) for name in PACKAGES}}
        world.require_same({**versions, "GPU": on_gpu, **asdict(config)})
        yield world
    except RuntimeError as error:
        if "out of memory" in str(error) or not LOST.search(str(error)):
            raise
        advice = "rerun the same command to resume from the last checkpoint"
        if "timed out" in str(error).lower():
            minutes = config.trainer.timeout_minutes
            raise RunError(
                f"rank {rank}: another rank did not answer within trainer.timeout_minutes={minutes:g}; {advice}"
            ) from None
        raise LostRank(f"rank {rank}: another rank died; {advice}") from None
    dist.destroy_process_group()


def _start() -> str:
    """A name for this start of the ranks, the same for all of them.

    When torchrun restarts a machine's ranks, its store still holds the addresses of the dead ones.
    """
    # Each machine counts only its own restarts.
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if alone else "start"


def require_shareable(parts: int, ranks: int) -> None:
    """Raise UserError unless `ranks` can share the micro-batches of an update evenly."""
    if parts % ranks:
        suitable = [count for count in range(1, parts + 1) if parts % count == 0]
        raise UserError(
            f"{ranks} ranks cannot share the {parts} micro-batches of an update evenly; take "
            f"{' or '.join(map(str, suitable))} ranks (trainer.devices=N), or begin another run_dir=DIR "
            f"with data.micro_batches={ranks * -(-parts // ranks)}"
        )


def _require_own_gpu(device: str, local_rank: int) -> None:
    if ":" in device:
        raise UserError(f"trainer.device={device}: each rank has a GPU of its own; type trainer.device=cuda")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"{platform.node()} has {gpus} GPUs, too few for its rank number {local_rank} (counted from 0); "
            "start as many ranks there as it has GPUs"
        )
