"""Progress goes to stderr, and only for what takes its time."""

from __future__ import annotations

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
