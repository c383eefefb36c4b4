"""`trainer.devices=N` alone: N ranks on this machine under torch's elastic launcher, with our errors and exit codes.

The launcher turns whatever ends a rank into an exit code of 1 and a stack trace. So each rank leaves its error in a
file, and the first of these is raised here; the error of having lost another rank comes last, since it tells no cause.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from seq2seq.config import compose
from seq2seq.config.schema import Config
from seq2seq.support.errors import ProcessFailed, UserError
from seq2seq.support.processors import available_processors
from seq2seq.support.progress import say

SECONDS_TO_STOP = 170
"""From a signal until the ranks are killed: ten less than Slurm leaves them (recipes/slurm.sh)."""


def launch(config: Config) -> None:
    """Train with `config.trainer.devices` ranks; returns when all have finished.

    Raises ProcessFailed with the line and exit code of the rank that failed first, UserError for more ranks than
    GPUs, or than can share `data.micro_batches`.
    """
    # Ranks that are told to stop compute at most two more updates, and save. PyTorch 2.11 leaves them 30 seconds.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))

    import torch
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from seq2seq.train.distributed import require_shareable

    ranks, gpus = config.trainer.devices, torch.cuda.device_count()
    if config.data.micro_batches:
        require_shareable(config.data.micro_batches, ranks)
    if gpus and config.trainer.device != "cpu" and ranks > gpus:
        raise UserError(f"trainer.devices={ranks}: this machine has {gpus} GPUs; type trainer.devices={gpus}")
    if not gpus and config.trainer.device != "cpu":
        say(f"trainer.devices={ranks} without a GPU: the processes share {available_processors()} CPU cores")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_processors() // ranks)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="seq2seq-ranks-") as name:
        stored = Path(name) / "config.yaml"
        stored.write_text(compose.to_yaml(config), encoding="utf-8")
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id="seq2seq",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=name),
        )
        try:
            elastic_launch(settings, sys.executable)("-m", "seq2seq.cli.rank", str(stored))
        except SignalException as stop:
            message = f"stopped by {stop.sigval.name} before more was saved; rerun the same command to resume"
            raise _first_failure(Path(name), {}, ProcessFailed(message, 128 + int(stop.sigval))) from None
        except ChildFailedError as failed:
            exit_codes = {rank: found.exitcode for rank, found in failed.failures.items()}
            unknown = ProcessFailed(f"ranks ended with exit codes {exit_codes}", 3)
            raise _first_failure(Path(name), exit_codes, unknown) from None


def _first_failure(logs: Path, exit_codes: dict[int, int], otherwise: ProcessFailed) -> ProcessFailed:
    """The failure that caused the others, from the ranks' error files and the exit codes of those that died."""
    files = sorted(logs.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    errors: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    killed = [
        f"rank {rank} was killed by {signal.Signals(-code).name}; rerun the same command to resume from the last "
        "checkpoint"
        for rank, code in exit_codes.items()
        if code < 0 and code != -signal.SIGTERM
    ]
    # A rank that was told to stop did what it should, and one that lost another knows no cause.
    ranked = [
        *((error["message"], error["exit_code"]) for error in errors if not error["lost"] and error["exit_code"] < 128),
        *((message, 3) for message in killed),
        *((error["message"], error["exit_code"]) for error in sorted(errors, key=lambda error: bool(error["lost"]))),
    ]
    return ProcessFailed(*ranked[0]) if ranked else otherwise
