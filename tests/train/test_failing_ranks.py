"""What goes wrong on one rank is told in one line, and nobody waits for ever."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from seq2seq.cli.launch import launch
from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.support.errors import UserError
from seq2seq.train.checkpoint import Checkpoints
from seq2seq.train.distributed import World, require_shareable
from seq2seq.train.trainer import Trainer
from tests.processes import PATIENCE, is_running
from tests.train.ranks import SETTINGS, command, environment, last_line, losses, ranks, train
from tests.train.runs import log


def test_ranks_that_cannot_share_the_micro_batches() -> None:
    require_shareable(8, 4)
    with pytest.raises(UserError, match=r"3 ranks .* 8 micro-batches .* 1 or 2 or 4 or 8 ranks .*micro_batches=9"):
        require_shareable(8, 3)


def test_a_wrong_number_of_ranks_is_told_once(corpus: list[str], tmp_path: Path) -> None:
    done = train(*corpus, *SETTINGS, f"run_dir={tmp_path}/run", "trainer.devices=3")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "cannot share" in line] == [done.stderr.splitlines()[-1]]
    assert done.stderr.splitlines()[-1].startswith("seq2seq-train: 3 ranks cannot share the 4 micro-batches")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@dataclass(frozen=True)
class Told(World):
    """A world whose other rank tells what it is told to."""

    other: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_ranks_of_different_versions() -> None:
    world = Told(other=("second", {"torch": "2.11.0", "seed": 1}))
    with pytest.raises(
        UserError, match=r"^rank 1 \(second\) does not fit rank 0: torch is 2\.11\.0, on rank 0 2\.13\.0;"
    ):
        world.require_same({"torch": "2.13.0", "seed": 1})
    world.require_same({"torch": "2.11.0", "seed": 1})


def test_ranks_that_find_another_state(corpus: list[str], tmp_path: Path) -> None:
    config = compose([*corpus, *SETTINGS, f"run_dir={tmp_path}/run"])
    data = prepare(config)
    world = Told(other=("second", {"step": 10, "data_sha256": "of other data"}))
    with pytest.raises(
        UserError, match=rf"data_sha256 is of other data, on rank 0 {data.data_sha256};.* step is 10, .* 0;"
    ):
        Trainer(config, data, world).run()


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"trainer\.devices=8: this machine has 2 GPUs; type trainer\.devices=2"):
        launch(compose(["+recipe=quickstart", "trainer.devices=8"]))


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_ranks_of_different_configurations(
    corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    own = [*corpus, *SETTINGS, f"run_dir={tmp_path}/run"]
    started += ranks(tmp_path, command(*own), command(*own, "schedule.warmup_steps=11"))
    assert [process.wait(PATIENCE) for process in started] == [2, 2]
    assert "rank 1 (" in last_line(tmp_path, 0)
    assert "schedule.warmup_steps is 11, on rank 0 10; start all ranks alike" in last_line(tmp_path, 0)
    assert not (tmp_path / "run").exists()


def test_ranks_without_a_shared_disk(corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    # Each in a folder of its own, as on two machines: the same relative path is another place.
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    own = [*corpus, *SETTINGS, "run_dir=run", "data.prepared_dir=run/data"]
    started += ranks(tmp_path, command(*own), command(*own), folders=[tmp_path / "0", tmp_path / "1"])
    assert started[1].wait(PATIENCE) == 2
    assert started[0].wait(PATIENCE) == 3
    assert "does not see run/data, which rank 0 made; take a run_dir=DIR on a disk" in last_line(tmp_path, 1)
    assert "another rank died" in last_line(tmp_path, 0)


def test_a_port_in_use(corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    own = [*corpus, *SETTINGS, f"run_dir={tmp_path}/run", "trainer.timeout_minutes=0.1"]
    with socket.create_server(("localhost", 0)) as busy:
        port = int(busy.getsockname()[1])
        started += ranks(tmp_path, command(*own), command(*own), port=port)
        assert started[0].wait(PATIENCE) == 2
    assert f"the port of localhost:{port} is in use; type another one" in last_line(tmp_path, 0)


BREAKING = """
import math, sys
from seq2seq.cli.train import main
from seq2seq.train.updater import Updater

steps, gradients = {int(step) for step in sys.argv.pop(1).split(",")}, Updater.gradients

def broken(updater, parts, target_tokens, step):
    return gradients(updater, parts, math.nan if step in steps else target_tokens, step)

Updater.gradients = broken
main()
"""


def breaking(*overrides: str, steps: str) -> list[str]:
    """A training whose gradients in this process are not finite at these steps."""
    return [sys.executable, "-c", BREAKING, steps, *overrides]


SPOILING = """
import sys
import torch
from seq2seq.cli.train import main
from seq2seq.train.updater import Updater

apply, spoilt = Updater.apply, []

def spoil(updater, rate, step):
    norm = apply(updater, rate, step)
    if step == 44 and not spoilt:
        spoilt.append(step)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in updater.model.parameters():
                weight.add_(3 * torch.randn_like(weight))
    return norm

Updater.apply = spoil
main()
"""


def test_ranks_go_back_together_to_before_a_spike(
    corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    own = [*corpus, *SETTINGS, "trainer.max_steps=60", "trainer.save_every=10", "trainer.on_loss_spike=rollback"]
    for name, count in (("alone", 1), ("run", 2)):
        spoiling = [sys.executable, "-c", SPOILING, *own, f"run_dir={tmp_path}/{name}"]
        started[:] = ranks(tmp_path, *[spoiling] * count)
        assert [process.wait(120) for process in started] == [0] * count, last_line(tmp_path, 0)
    alone, run = (log(tmp_path / name, "train") for name in ("alone", "run"))
    steps = [line["step"] for line in run]
    assert steps == [line["step"] for line in alone] == [*range(1, 48), *range(41, 61)]
    assert [line["loss"] for line in run] == pytest.approx([line["loss"] for line in alone], rel=1e-3)


def test_when_one_rank_has_a_nan_no_rank_updates(
    corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    own = [*corpus, *SETTINGS, "trainer.max_steps=12", "trainer.save_every=1", "trainer.keep_checkpoints=20"]
    started += ranks(
        tmp_path, command(*own, f"run_dir={tmp_path}/run"), breaking(*own, f"run_dir={tmp_path}/run", steps="4,5,9")
    )
    assert [process.wait(120) for process in started] == [0, 0], last_line(tmp_path, 0)
    alone = subprocess.run(
        breaking(*own, f"run_dir={tmp_path}/alone", steps="4,5,9"), env=environment(), text=True, capture_output=True
    )
    assert alone.returncode == 0, alone.stderr
    assert [line["step"] for line in log(tmp_path / "run", "skipped")] == [4, 5, 9]
    assert all(line["lines"] for line in log(tmp_path / "run", "skipped"))
    files = [tmp_path / "run" / "checkpoints" / f"step-{step}" / "model.safetensors" for step in range(1, 13)]
    weights = [path.read_bytes() for path in files]
    assert [old == new for old, new in itertools.pairwise(weights)] == [step in (4, 5, 9) for step in range(2, 13)]
    # A rank that had changed its weights alone would give other gradients from then on.
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)


def test_a_nan_on_one_rank_again_and_again_ends_all(
    corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    own = [*corpus, *SETTINGS, "trainer.max_steps=12", "trainer.save_every=1", f"run_dir={tmp_path}/run"]
    started += ranks(tmp_path, command(*own), breaking(*own, steps="4,5,6"))
    assert [process.wait(120) for process in started] == [3, 3]
    assert "step 6: the loss is " in last_line(tmp_path, 0)
    assert "3 in a row, the limit of trainer.max_skipped. Try a lower schedule.peak" in last_line(tmp_path, 0)
    step = Checkpoints(tmp_path / "run").all()[-1]
    assert step.name == "step-5"
    assert all(bool(x.isfinite().all()) for x in safetensors.torch.load_file(step / "model.safetensors").values())


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (run_dir / "log.jsonl").exists() or not any(line["step"] >= step for line in log(run_dir, "train")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The ranks that a launcher started, in order."""
    found = {}
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        # Threads, and processes that are no ranks, may end meanwhile.
        with contextlib.suppress(OSError):
            for pid in map(int, (thread / "children").read_text().split()):
                if "seq2seq.cli.rank" in Path(f"/proc/{pid}/cmdline").read_text():
                    (rank,) = re.findall(r"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_text())
                    found[int(rank)] = pid
    return [found[rank] for rank in sorted(found)]


def launch_two(corpus: list[str], tmp_path: Path, *overrides: str) -> subprocess.Popen[str]:
    """Two ranks by their launcher, in the middle of a long training."""
    long = [*SETTINGS, f"run_dir={tmp_path}/run", "trainer.max_steps=100000", "trainer.devices=2", *overrides]
    with (tmp_path / "rank-0.log").open("w") as file:
        return subprocess.Popen(command(*corpus, *long), env=environment(), stderr=file, text=True)


@pytest.fixture
def launched(corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    started.append(launch_two(corpus, tmp_path))
    wait_for_step(tmp_path / "run", 6, started[0])
    return started[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_the_others_and_is_named(launched: subprocess.Popen[str], tmp_path: Path, rank: int) -> None:
    pids = children(launched)
    os.kill(pids[rank], signal.SIGKILL)
    assert launched.wait(PATIENCE) == 3
    told = f"rank {rank} was killed by SIGKILL; rerun the same command to resume from the last checkpoint"
    assert told in last_line(tmp_path, 0)
    assert not any(map(is_running, pids))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
def test_a_rank_that_hangs_ends_the_run_after_the_timeout(
    corpus: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    started.append(launch_two(corpus, tmp_path, "trainer.timeout_minutes=0.1"))
    wait_for_step(tmp_path / "run", 6, started[0])
    os.kill(children(started[0])[1], signal.SIGSTOP)
    assert started[0].wait(PATIENCE) == 3
    assert "another rank did not answer within trainer.timeout_minutes=0.1" in last_line(tmp_path, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_once(
    launched: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    launched.send_signal(number)
    assert launched.wait(PATIENCE) == 128 + number
    step = max(line["step"] for line in log(tmp_path / "run", "train"))
    saved = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved[-1] == step, "the last update is saved"
    told = f"seq2seq-train: stopped by {number.name} at step {step:,}, saved; rerun the same command to resume"
    assert last_line(tmp_path, 0) == told


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of a parent's death")
def test_ranks_do_not_outlive_their_launcher(launched: subprocess.Popen[str], tmp_path: Path) -> None:
    pids = children(launched)
    launched.kill()
    deadline = time.monotonic() + PATIENCE
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    step = max(line["step"] for line in log(tmp_path / "run", "train"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}").is_dir(), "the last update is saved"
