"""Progress goes to stderr, and only for what takes its time."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tqdm import std

from seq2seq.support.progress import bar, say


def test_short_work_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading", 3) as progress:
        for _ in range(3):
            progress.update(1)
    assert capsys.readouterr() == ("", "")


def test_long_work_shows_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(std, "time", lambda: now[0])
    with bar("reading", 100) as progress:
        for _ in range(5):
            now[0] += 16
            progress.update(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "50.0/100" in err
    assert "[01:20<01:20" in err
    assert "s/ lines" in err


def test_say_writes_a_line_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_process_that_leaves_at_once_leaves_no_lock_behind() -> None:
    # Semaphores are shared so by default from Python 3.14 on; what is left of one is told on stderr.
    script = """
import multiprocessing, os
multiprocessing.set_start_method("forkserver")
from seq2seq.support.progress import bar, keep_lock_to_this_process
keep_lock_to_this_process()
with bar("counting", 1) as progress:
    progress.update(1)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
