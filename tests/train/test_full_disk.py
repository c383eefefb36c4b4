"""A full disk costs a save, not the training: the next save tries again, or the run stops; what was saved stands."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.model.directory import load_model_directory
from seq2seq.support.errors import RunError, Stopped
from seq2seq.support.manifest import damage
from seq2seq.train.checkpoint import Checkpoints
from seq2seq.train.full_disk import FullDisk
from seq2seq.train.saves import Saves
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Update
from tests.train.runs import TINY, assert_same_state, draw, log, steps_saved, write_copies

ROOM = 900 * 1024
"""Bytes of a small disk: enough for three checkpoints of the tiny model, a model directory and the log."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_copies(tmp_path_factory.mktemp("corpus"), draw(300, 1), draw(10, 2))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for little; skips where mounting one is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def trainer_on(disk: Path, corpus: list[str], *overrides: str) -> Trainer:
    config = compose(
        [*corpus, *TINY, f"run_dir={disk}/run", "trainer.save_every=3", "trainer.keep_checkpoints=1", *overrides]
    )
    return Trainer(config, prepare(config))


def filling(monkeypatch: pytest.MonkeyPatch, disk: Path, full: set[int]) -> None:
    """Fill the disk before these steps, and only then, to the last byte."""
    update, ballast = Trainer.train_step, disk / "ballast"

    def filled(trainer: Trainer, made_of: Update) -> int:
        # What is written is to find the disk as it was at its own step.
        trainer.saves.thread.wait()
        ballast.unlink(missing_ok=True)
        if trainer.progress.step + 1 in full:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        return update(trainer, made_of)

    monkeypatch.setattr(Trainer, "train_step", filled)


NEEDED = r"the (\w+) was not saved, the disk of .* is full: ([\d,]+) bytes are needed, ([\d,]+) are free"


def test_training_goes_on_and_the_next_save_tries_again(
    small_disk: Path,
    tmp_path: Path,
    corpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filling(monkeypatch, small_disk, full={6})
    trainer = trainer_on(small_disk, corpus, "trainer.log_seconds=0")
    save, there = Checkpoints.save, []

    def looking(*arguments: object) -> None:
        try:
            save(*arguments)  # type: ignore[arg-type]
        finally:
            folders = list((small_disk / "run" / "checkpoints").iterdir())
            assert [damage(folder) for folder in folders] == [None], "half of something is left"
            there.append(folders[0].name)

    monkeypatch.setattr(Checkpoints, "save", looking)
    trainer.run()
    assert there == ["step-3", "step-3", "step-9", "step-12", "step-12"]
    (told,) = re.findall(rf"step 6: {NEEDED}; the next save tries again", capsys.readouterr().err)
    needed, free = (int(number.replace(",", "")) for number in told[1:])
    assert told[0] == "checkpoint"
    assert free < needed < 200_000
    # Nothing of the log is lost, and the run is the same as with room.
    assert [line["step"] for line in log(small_disk / "run", "train")] == list(range(1, 13))
    monkeypatch.undo()
    roomy = compose([*corpus, *TINY, f"run_dir={tmp_path}/roomy"])
    Trainer(roomy, prepare(roomy)).run()
    assert_same_state(small_disk / "run", tmp_path / "roomy", 12)


def test_a_run_whose_last_save_failed_does_not_end_well(
    small_disk: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filling(monkeypatch, small_disk, full={12})
    with pytest.raises(RunError, match=rf"^step 12: {NEEDED}.*free some space and rerun the same command to resume$"):
        trainer_on(small_disk, corpus).run()
    assert steps_saved(small_disk / "run") == [9]
    assert not (small_disk / "run" / "model").exists()
    monkeypatch.undo()
    (small_disk / "ballast").unlink()
    trainer_on(small_disk, corpus).run()
    assert steps_saved(small_disk / "run") == [12]
    assert load_model_directory(small_disk / "run" / "model")


def test_it_stops_where_that_is_asked_for(small_disk: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    filling(monkeypatch, small_disk, full={6})
    with pytest.raises(RunError, match=rf"^step 6: {NEEDED}; what was saved before is kept") as stopped:
        trainer_on(small_disk, corpus, "trainer.on_full_disk=stop").run()
    assert stopped.value.exit_code == 3
    assert steps_saved(small_disk / "run") == [3]


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Have the saves of tensors with these numbers, counted from 0, find the disk full."""
    import safetensors.torch

    count, save_file = itertools.count(), safetensors.torch.save_file

    def fill(numbers: set[int]) -> None:
        def full(tensors: object, path: Path) -> None:
            if next(count) in numbers:
                path.write_bytes(b"half")
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
            save_file(tensors, path)

        monkeypatch.setattr(safetensors.torch, "save_file", full)

    return fill


def test_a_signal_that_finds_the_disk_full_says_that_nothing_was_saved(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, full_at: Callable[[set[int]], None]
) -> None:
    trainer = trainer_on(tmp_path, corpus)
    full_at({0})
    monkeypatch.setattr(trainer.interrupts, "caught", 15)
    with pytest.raises(RunError, match="step 1: the checkpoint was not saved"):
        trainer.run()
    trainer = trainer_on(tmp_path, corpus)
    monkeypatch.setattr(trainer.interrupts, "caught", 15)
    with pytest.raises(Stopped, match="at step 1, saved"):
        trainer.run()


def test_a_best_model_that_found_no_room_is_not_the_best(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, full_at: Callable[[set[int]], None]
) -> None:
    scores = iter([10.0, 30.0, 20.0, 15.0])
    monkeypatch.setattr("seq2seq.train.validation.bleu", lambda *_: (next(scores), ""))
    trainer = trainer_on(tmp_path, corpus, "trainer.validate_every=3")
    # A checkpoint has two files of tensors, a model one; each validated step saves checkpoint, model, checkpoint.
    full_at({5 + 2})
    saved: list[bool] = []
    save_model = Saves.model

    def noted(saves: Saves, *arguments: object) -> bool:
        done = save_model(saves, *arguments)  # type: ignore[arg-type]
        saved.append(done)
        return done

    monkeypatch.setattr(Saves, "model", noted)
    trainer.run()
    assert saved == [True, False, True]
    assert trainer.progress.best_bleu == 20.0
    assert trainer.progress.best_step == 9


def test_other_errors_of_the_disk_are_not_its_being_full(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, "retry")
    with pytest.raises(OSError, match="broken"), disk.saving("model", 1, 10):
        raise OSError(errno.EIO, "broken")
    assert disk.error() is None
    with disk.saving("model", 2, 10):
        raise OSError(errno.ENOSPC, "full")
    assert not disk.is_saved("model")
    with disk.saving("checkpoint", 2, 10):
        pass
    assert "the model was not saved" in str(disk.error())
    with disk.saving("model", 3, 10):
        pass
    assert disk.error() is None


def test_one_thing_is_saved_though_another_is_not(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, "retry")
    with disk.saving("checkpoint", 2, 10):
        raise OSError(errno.ENOSPC, "full")
    with disk.saving("model", 2, 10):
        pass
    assert disk.is_saved("model") and not disk.is_saved("checkpoint")
