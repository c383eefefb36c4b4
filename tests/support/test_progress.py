"""Progress goes to stderr, and only for what takes its time."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from tqdm import std

from seq2seq.support import progress
from seq2seq.support.progress import bar, bars_of_datasets, say


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


def test_a_thread_shows_no_bar_between_the_lines_of_the_main_one() -> None:
    shown = []
    thread = threading.Thread(target=lambda: shown.append(not bar("checking", 3).disable))
    thread.start()
    thread.join()
    assert shown == [False]
    assert not bar("checking", 3).disable


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


def test_who_is_silenced_says_and_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_silent", False)
    progress.silence()
    say("hello")
    assert capsys.readouterr() == ("", "")
    with bar("reading", 3) as shown:
        assert shown.disable


@pytest.mark.parametrize(
    ("silent", "terminal", "wanted"),
    [(False, True, True), (True, True, True), (False, False, True), (False, True, False)],
)
def test_bars_of_datasets_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, silent: bool, terminal: bool, wanted: bool
) -> None:
    import datasets

    monkeypatch.setattr(progress, "_silent", silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    for before in (datasets.disable_progress_bars, datasets.enable_progress_bars):
        before()
        was = datasets.are_progress_bars_disabled()
        with bars_of_datasets(shown=wanted):
            assert datasets.are_progress_bars_disabled() == (silent or not terminal or not wanted)
        assert datasets.are_progress_bars_disabled() == was
