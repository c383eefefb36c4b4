"""The first signal is noted, the same one passed on twice is one, and a second one ends the run at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from seq2seq.support.errors import Stopped
from seq2seq.train import interrupts as module
from seq2seq.train.interrupts import SIGNALS, Interrupts
from tests.train.runs import Make, log


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def ended(number: int) -> Stopped:
    return Stopped(number, "all is saved")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with Interrupts(ended) as interrupts:
        assert interrupts.caught == 0
        signal.raise_signal(number)
        assert interrupts.caught == number
    assert [signal.getsignal(one) for one in SIGNALS] == before


@pytest.mark.parametrize("ranks", [False, True])
def test_a_second_one_ends_the_run_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch, ranks: bool) -> None:
    monkeypatch.setattr(module, "is_rank", lambda: ranks)
    with Interrupts(ended) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        clock.now += 4.0 if ranks else 0.1
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.caught == signal.SIGTERM, "the same one, passed on"
        clock.now += 2.0
        with pytest.raises(Stopped, match="at once; the last save is kept") as stopped:
            signal.raise_signal(signal.SIGINT)
        assert stopped.value.exit_code == 130


def test_while_all_is_saved_the_first_ends_the_run() -> None:
    with (
        Interrupts(ended) as interrupts,
        pytest.raises(Stopped, match="all is saved"),
        interrupts.ending_the_run_at_once(),
    ):
        signal.raise_signal(signal.SIGTERM)
    with Interrupts(ended) as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="all is saved") as stopped, interrupts.ending_the_run_at_once():
            raise AssertionError("went on")
        assert stopped.value.exit_code == 130
    with Interrupts(ended) as interrupts:
        with interrupts.ending_the_run_at_once():
            pass
        signal.raise_signal(signal.SIGINT)
        assert interrupts.caught == signal.SIGINT


def test_a_second_one_interrupts_what_hangs() -> None:
    # The signals of a child with a real clock: the first is noted, the second comes when the first is old.
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            with Interrupts(ended):
                os.write(tell, b"1")
                time.sleep(60)
                time.sleep(60)
        except Stopped as stopped:
            code = stopped.exit_code
        os._exit(code)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(tell)
    began, signals = time.monotonic(), 0
    while (ended_with := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < began + 30
        os.kill(child, signal.SIGTERM)
        signals += 1
        time.sleep(0.7)
    assert os.waitstatus_to_exitcode(ended_with[1]) == 128 + signal.SIGTERM and signals >= 2


def test_a_signal_while_the_last_are_averaged_does_not_wait_for_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging = ("trainer.save_every=6", "trainer.average_last=2")

    def interrupted(_: list[Path]) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="by SIGTERM at step 12, saved"):
        patched.setattr("seq2seq.train.trainer.average_weights", interrupted)
        make("run", *averaging).run()
    make("run", *averaging).run()
    assert len(log(tmp_path / "run", "average")) == 1
