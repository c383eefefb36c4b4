"""Several ranks compute what one computes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from seq2seq.train.distributed import World
from tests.processes import PATIENCE
from tests.train.ranks import SETTINGS, STEPS, environment, losses, train
from tests.train.runs import log


@pytest.fixture(scope="module")
def alone(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    done = train(*corpus, *SETTINGS, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


def assert_same_training(run_dir: Path, alone: Path) -> None:
    assert losses(run_dir) == pytest.approx(losses(alone), abs=1e-5)
    assert len(losses(alone)) == STEPS
    own, same = (
        safetensors.torch.load_file(path / f"checkpoints/step-{STEPS}/model.safetensors") for path in (run_dir, alone)
    )
    assert own.keys() == same.keys()
    for name, tensor in own.items():
        if name.endswith("key_value.bias"):
            # Softmax does not see the keys' bias: its gradient is rounding noise, which Adam makes large.
            tensor, same[name] = tensor[len(tensor) // 2 :], same[name][len(tensor) // 2 :]
        torch.testing.assert_close(tensor, same[name], atol=1e-4, rtol=0, msg=name)


def test_two_ranks_train_as_one(corpus: list[str], tmp_path: Path, alone: Path) -> None:
    done = train(*corpus, *SETTINGS, f"run_dir={tmp_path}/run", "trainer.devices=2")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("finished after") == 1, "rank 0 alone prints"
    assert_same_training(tmp_path / "run", alone)
    (one,), (other,) = log(alone, "valid"), log(tmp_path / "run", "valid")
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert other["bleu"] == one["bleu"]


def test_two_ranks_train_with_muon_as_one(corpus: list[str], tmp_path: Path) -> None:
    for devices in (1, 2):
        numbers = ["optimizer=muon", "trainer.max_steps=15", f"trainer.devices={devices}"]
        done = train(*corpus, *SETTINGS, f"run_dir={tmp_path}/{devices}", *numbers)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=1e-4)


def test_a_run_goes_on_with_another_number_of_ranks_and_workers(corpus: list[str], tmp_path: Path, alone: Path) -> None:
    for devices, workers, steps in ((1, 3, 15), (4, 1, 30), (2, 2, STEPS)):
        numbers = [f"trainer.devices={devices}", f"data.workers={workers}", f"trainer.max_steps={steps}"]
        # The data are made anew by that many workers.
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        done = train(*corpus, *SETTINGS, f"run_dir={tmp_path}/run", f"data.prepared_dir={tmp_path}/data", *numbers)
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "run", alone)


def test_of_a_damaged_newest_checkpoint_all_ranks_take_the_one_before(
    corpus: list[str], tmp_path: Path, alone: Path
) -> None:
    own = [*corpus, *SETTINGS, f"run_dir={tmp_path}/run", "trainer.devices=2"]
    for steps in (15, 30):
        assert train(*own, f"trainer.max_steps={steps}").returncode == 0
    damaged = tmp_path / "run" / "checkpoints" / "step-30" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = train(*own)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "step-30" in line]
    assert told == [
        f"{damaged}: damaged, its SHA-256 is not that of the manifest; renamed to step-30.damaged; "
        "using the checkpoint before it"
    ]
    assert "resuming from step 15" in done.stderr
    lines = log(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == [*range(1, 31), *range(16, STEPS + 1)]
    last = {line["step"]: line["loss"] for line in lines}
    assert [last[step] for step in range(1, STEPS + 1)] == pytest.approx(losses(alone), abs=1e-5)


def test_torchrun_starts_ranks_too(corpus: list[str], tmp_path: Path, alone: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    arguments = ["-m", "seq2seq.cli.train", *corpus, *SETTINGS, f"run_dir={tmp_path}/run"]
    done = subprocess.run([*launcher, *arguments], env=environment(), text=True, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "run", alone)


def two_ranks(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", module]
    return subprocess.run([*launcher, *arguments], env=environment(), text=True, capture_output=True, timeout=PATIENCE)


def test_gradients_are_sent_while_others_are_still_computed() -> None:
    done = two_ranks("tests.train.ranks_sending")
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert sent["in all"] == sent["weights"], "of two parts once"
    assert sent["weights"] / 2 < sent["before the last"] < sent["weights"]


def test_two_ranks_with_recorded_passes_train_as_with_others() -> None:
    done = two_ranks("tests.train.ranks_recorded")
    assert done.returncode == 0, done.stderr


def test_a_rank_that_has_too_little_memory_validates_again_while_the_other_waits(
    corpus: list[str], tmp_path: Path, alone: Path
) -> None:
    done = two_ranks("tests.train.ranks_validating", *corpus, *SETTINGS, f"run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    (one,), (other,) = log(alone, "valid"), log(tmp_path / "run", "valid")
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-4) and other["bleu"] == one["bleu"]


def test_a_world_of_one_needs_no_launcher() -> None:
    world = World()
    assert (world.is_main, world.sum([1.5, 2.0]), world.gather("x")) == (True, [1.5, 2.0], ["x"])
    world.wait()
    module = torch.nn.Linear(2, 2)
    assert world.synchronised(module) is module
