"""Checkpoints are written while training goes on; what ends a run waits for them, but for a second signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seq2seq.config.schema import Config
from seq2seq.model.translation import TranslationModel
from seq2seq.support.errors import RunError, Stopped
from seq2seq.train.background import Background
from seq2seq.train.checkpoint import Checkpoints, Snapshot
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Update
from tests.processes import PATIENCE
from tests.train.runs import Make, assert_same_state, steps_saved


def test_the_caller_goes_on_and_can_wait() -> None:
    background, go_on, done = Background(), threading.Event(), []

    def job() -> None:
        assert go_on.wait(PATIENCE)
        done.append(1)

    background.wait()
    background.start(job)
    background.check()
    assert not done
    go_on.set()
    background.wait()
    assert done == [1]
    background.start(job)
    background.wait()
    assert done == [1, 1]


@pytest.mark.parametrize("asked", ["check", "wait"])
def test_what_a_job_raises_is_raised_once(asked: str) -> None:
    background = Background()

    def job() -> None:
        raise RunError("broken")

    background.start(job)
    if background._thread:
        background._thread.join()
    with pytest.raises(RunError, match=r"^broken$"):
        getattr(background, asked)()
    background.check()
    background.wait()


@pytest.mark.parametrize(
    ("error", "waits"), [(None, True), (RunError("broken"), True), (Stopped(15, "at once"), False)]
)
def test_a_job_comes_to_its_end_unless_the_process_is_to_end_at_once(error: Exception | None, waits: bool) -> None:
    go_on, done = threading.Event(), threading.Event()

    def job() -> None:
        assert go_on.wait(PATIENCE)
        time.sleep(0.05)
        done.set()

    try:
        with Background() as background:
            background.start(job)
            if waits:
                go_on.set()
            if error:
                raise error
    except (RunError, Stopped) as raised:
        assert raised is error
    assert done.is_set() == waits
    go_on.set()


def test_a_thread_that_cannot_be_started_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"^can't start new thread$"):
        patch.setattr(threading, "_start_new_thread", refuse)
        patch.setattr(threading, "_start_joinable_thread", refuse, raising=False)
        with Background() as background:
            background.start(lambda: None)


def test_what_a_job_raised_is_told_beside_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise RunError("not what was written")

    with pytest.raises(RunError, match=r"^another rank is lost$"), Background() as background:
        background.start(job)
        raise RunError("another rank is lost")
    assert capsys.readouterr().err == "before that: not what was written\n"


def test_a_process_that_is_to_end_at_once_has_its_exit_code(tmp_path: Path) -> None:
    script = """
import signal, sys, threading, torch
from safetensors.torch import save_file
from seq2seq.support.errors import Stopped, exit_code_of
from seq2seq.train.background import Background
begun = threading.Event()

def job():
    while True:
        begun.set()
        save_file({"weights": torch.zeros(1 << 24)}, sys.argv[1])

def run():
    with Background() as background:
        background.start(job)
        begun.wait()
        raise Stopped(signal.SIGTERM, "at once")

sys.exit(exit_code_of("seq2seq-train", run))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "weights")]
    done = subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (143, "seq2seq-train: at once\n")


OnSaving = Callable[[Callable[[int], None]], None]
OnUpdate = Callable[[Callable[[Trainer], None]], None]


@pytest.fixture
def on_saving(monkeypatch: pytest.MonkeyPatch) -> OnSaving:
    """Have a function called with the step of each checkpoint before it is written."""
    save = Checkpoints.save

    def install(called: Callable[[int], None]) -> None:
        def saved(checkpoints: Checkpoints, snapshot: Snapshot, config: Config) -> None:
            called(snapshot.progress.step)
            save(checkpoints, snapshot, config)

        monkeypatch.setattr(Checkpoints, "save", saved)

    return install


@pytest.fixture
def on_update(monkeypatch: pytest.MonkeyPatch) -> OnUpdate:
    """Have a function called with the trainer after each update."""
    update = Trainer.train_step

    def install(called: Callable[[Trainer], None]) -> None:
        def made(trainer: Trainer, made_of: Update) -> int:
            number = update(trainer, made_of)
            called(trainer)
            return number

        monkeypatch.setattr(Trainer, "train_step", made)

    return install


def slowly(_: int) -> None:
    time.sleep(0.3)


def test_updates_are_made_while_one_is_written_which_is_that_of_its_step(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_saving: OnSaving, on_update: OnUpdate
) -> None:
    go_on = threading.Event()

    def count(trainer: Trainer) -> None:
        if trainer.progress.step == 9:
            assert not (tmp_path / "run" / "checkpoints" / "step-6").exists()
            go_on.set()

    def wait_for_three_more(step: int) -> None:
        assert step != 6 or go_on.wait(PATIENCE)

    on_saving(wait_for_three_more)
    on_update(count)
    make("run", "trainer.save_every=6").run()
    assert steps_saved(tmp_path / "run") == [6, 12]
    monkeypatch.undo()
    make("straight", "trainer.max_steps=6").run()
    assert_same_state(tmp_path / "straight", tmp_path / "run", 6)


def test_a_disk_that_fails_meanwhile_ends_the_run_at_the_next_update(
    make: Make, tmp_path: Path, on_saving: OnSaving, on_update: OnUpdate
) -> None:
    def fail(step: int) -> None:
        if step == 6:
            raise RunError("not what was written")

    def find_it_failed(trainer: Trainer) -> None:
        if trainer.progress.step == 8 and trainer.saves.thread._thread:
            trainer.saves.thread._thread.join()

    on_saving(fail)
    on_update(find_it_failed)
    trainer = make("run", "trainer.save_every=3")
    with pytest.raises(RunError, match=r"^not what was written$"):
        trainer.run()
    assert trainer.progress.step in (7, 8)
    assert steps_saved(tmp_path / "run") == [3]


def test_a_disk_that_fails_in_the_last_save_ends_the_run_as_a_failure(make: Make, on_saving: OnSaving) -> None:
    saves = []

    def fail(step: int) -> None:
        saves.append(step)
        # The second save of a step has what its validation found.
        if saves == [12, 12]:
            raise RunError("not what was written")

    on_saving(fail)
    with pytest.raises(RunError, match=r"^not what was written$"):
        make("run").run()
    assert saves == [12, 12]


def test_a_run_that_a_signal_stops_has_saved(
    make: Make, tmp_path: Path, on_saving: OnSaving, on_update: OnUpdate
) -> None:
    on_saving(slowly)
    on_update(lambda trainer: signal.raise_signal(signal.SIGTERM) if trainer.progress.step == 2 else None)
    with pytest.raises(Stopped, match="at step 3, saved"):
        make("run").run()
    assert steps_saved(tmp_path / "run") == [3]


def test_a_validation_that_a_signal_ends_has_been_saved_before(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_saving: OnSaving
) -> None:
    def interrupted(*_: object) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    on_saving(slowly)
    monkeypatch.setattr(Trainer, "_scores", interrupted)
    with pytest.raises(Stopped, match="at step 5, saved"):
        make("run", "trainer.validate_every=5").run()
    assert steps_saved(tmp_path / "run") == [5]


def test_going_back_waits_for_the_checkpoint_to_go_back_to(
    make: Make, capsys: pytest.CaptureFixture[str], on_saving: OnSaving, on_update: OnUpdate
) -> None:
    spikes = iter([7])

    def spike(trainer: Trainer) -> None:
        if trainer.progress.step == 7:
            trainer._spike = next(spikes, None)

    on_saving(slowly)
    on_update(spike)
    make("run", "trainer.save_every=6").run()
    assert "back at step 6; the pairs of the updates since are left out" in capsys.readouterr().err


def test_the_average_at_the_end_is_of_all_that_was_saved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_saving: OnSaving
) -> None:
    scores, to_average, found, written = Trainer._scores, Trainer._to_average, [], []

    def noted(trainer: Trainer, model: TranslationModel) -> dict[str, Any]:
        found.append(steps_saved(tmp_path / "run"))
        return scores(trainer, model)

    def all_written(trainer: Trainer) -> list[Path]:
        written.append(trainer.saves.thread._thread is None)
        return to_average(trainer)

    on_saving(slowly)
    monkeypatch.setattr(Trainer, "_scores", noted)
    monkeypatch.setattr(Trainer, "_to_average", all_written)
    make("run", "trainer.save_every=4", "trainer.average_last=2").run()
    assert found == [[4, 8, 12], [4, 8, 12]]
    assert written == [True]


def test_no_second_copy_is_made_while_one_is_written(
    make: Make, monkeypatch: pytest.MonkeyPatch, on_saving: OnSaving
) -> None:
    of, free = Snapshot.of, []
    trainer = make("run", "trainer.save_every=4")

    def copied(*given: Any) -> Snapshot:
        free.append(trainer.saves.thread._thread is None)
        return of(*given)

    on_saving(slowly)
    monkeypatch.setattr(Snapshot, "of", copied)
    trainer.run()
    assert free == [True] * 4


def test_an_error_leaves_what_was_being_written(
    make: Make, tmp_path: Path, on_saving: OnSaving, on_update: OnUpdate
) -> None:
    def fail(trainer: Trainer) -> None:
        if trainer.progress.step == 7:
            raise RunError("cannot go on")

    on_saving(slowly)
    on_update(fail)
    with pytest.raises(RunError, match=r"^cannot go on$"):
        make("run", "trainer.save_every=6").run()
    assert steps_saved(tmp_path / "run") == [6]
