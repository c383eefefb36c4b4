"""What only a GPU can show of training; run by tools/gpu.sh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.support.devices import compute_deterministically
from seq2seq.support.files import sha256_of
from seq2seq.train.trainer import Trainer
from tests.processes import PATIENCE
from tests.train.runs import TINY, draw, log, write_copies

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def tiny(folder: Path, heads: int) -> list[str]:
    texts = write_copies(folder, draw(300, 1), draw(10, 2))
    return [*texts, *TINY, f"model.encoder.num_heads={heads}", f"model.decoder.num_heads={heads}"]


# One head has 16 columns, for which there is a kernel, so that passes are recorded; of two, each has 8.
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize(("precision", "heads"), [("float32", 1), ("bfloat16", 1), ("bfloat16", 2)])
def test_a_training_on_the_gpu_is_that_on_the_cpu(tmp_path: Path, precision: str, heads: int, optimizer: str) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        overrides = [*tiny(tmp_path, heads), f"run_dir={tmp_path}/{device}", f"optimizer={optimizer}"]
        changes = [f"trainer.device={device}", f"trainer.precision={precision}", "model.dropout=0"]
        config = compose([*overrides, *changes, "trainer.log_seconds=0"])
        trainer = Trainer(config, prepare(config))
        assert bool(trainer.updater._recorded) == (device == "cuda" and precision == "bfloat16" and heads == 1)
        trainer.run()
        losses[device] = [line["loss"] for line in log(tmp_path / device, "train")]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3 if precision == "float32" else 5e-2)


# The first updates compile and try out kernels, and those of a second epoch are recorded.
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize(("heads", "first"), [(1, 30), (2, 6)])
def test_an_update_does_not_wait_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int, first: int, optimizer: str
) -> None:
    overrides = [*tiny(tmp_path, heads), f"run_dir={tmp_path}/run", f"optimizer={optimizer}"]
    overrides.append(f"trainer.max_steps={first + 6}")
    config = compose([*overrides, "trainer.device=cuda", "trainer.precision=bfloat16", "optimizer.clip_norm=1.0"])
    trainer = Trainer(config, prepare(config))
    watched = 0

    def watch(name: str) -> None:
        method = getattr(trainer.updater, name)

        def watching(*arguments: Any) -> Any:
            nonlocal watched
            if trainer.progress.step < first:
                return method(*arguments)
            watched += 1
            torch.cuda.set_sync_debug_mode("error")
            try:
                return method(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(trainer.updater, name, watching)

    watch("gradients")
    watch("apply")
    trainer.run()
    assert watched == 2 * 7


@pytest.mark.parametrize("heads", [1, 2])
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    overrides = [*tiny(tmp_path, heads), "trainer.device=cuda"]
    hashes = set()
    compute_deterministically(True)
    try:
        for name in ("one", "two", "three"):
            config = compose([*overrides, f"run_dir={tmp_path}/{name}", "trainer.precision=bfloat16"])
            Trainer(config, prepare(config)).run()
            hashes.add(sha256_of(tmp_path / name / "model" / "model.safetensors"))
    finally:
        compute_deterministically(False)
    assert len(hashes) == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
@pytest.mark.parametrize("heads", [1, 2])
def test_two_gpus_train_as_one(tmp_path: Path, heads: int) -> None:
    losses = []
    for devices in (1, 2):
        numbers = ["data.micro_batches=2", f"trainer.devices={devices}", f"run_dir={tmp_path}/{devices}"]
        settings = ["trainer.device=cuda", "trainer.precision=bfloat16", "trainer.log_seconds=0", *numbers]
        command = [sys.executable, "-m", "seq2seq.cli.train", *tiny(tmp_path, heads), *settings, "trainer.max_steps=40"]
        done = subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in log(tmp_path / str(devices), "train")])
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)
