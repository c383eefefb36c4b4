"""Whatever a command's body raises becomes an exit code and one line."""

from __future__ import annotations

import errno
import os
import signal
from multiprocessing import Pipe

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.support.errors import (
    OutOfMemory,
    ProcessFailed,
    ReportedError,
    RunError,
    Stopped,
    UserError,
    exit_code_of,
    explain,
    first_line,
    missing_extra,
    nearest,
    one_line,
)


@pytest.mark.parametrize(
    "error", [UserError("a"), OutOfMemory("b"), ProcessFailed("c", 7), Stopped(signal.SIGTERM, "d")]
)
def test_errors_are_sent_between_processes(error: ReportedError) -> None:
    ours, theirs = Pipe()
    ours.send(error)
    found = theirs.recv()
    assert (type(found), str(found), found.exit_code) == (type(error), str(error), error.exit_code)


def ended(error: BaseException) -> int:
    def body() -> None:
        raise error

    return exit_code_of("seq2seq-test", body)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a=1: too low"), 2, "seq2seq-test: a=1: too low\n"),
        (RunError("loss is nan"), 3, "seq2seq-test: loss is nan\n"),
        (Stopped(signal.SIGTERM, "saved"), 143, "seq2seq-test: saved\n"),
        (Stopped(signal.SIGINT, "saved"), 130, "seq2seq-test: saved\n"),
        (KeyboardInterrupt(), 130, ""),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), 3, "or use a smaller model\n"),
        (OSError(errno.ENOSPC, "no space", "/x/y"), 3, "seq2seq-test: the disk is full: /x/y\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), 2, "a/b: No such file or directory\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied\n"),
        (OSError(errno.EIO, "Input/output error", "a/b"), 3, "could not go on: a/b: Input/output error\n"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "the system could not go on: Too many open files\n"),
        (type("Another", (MemoryError,), {})("no room"), 3, "this machine's memory is full (no room); free some"),
        (RuntimeError("can't start new thread"), 3, "the system could not go on: can't start new thread\n"),
    ],
)
def test_what_is_known_ends_in_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert err.count("\n") == (1 if line else 0)


@pytest.mark.parametrize("error", [ValueError("x"), AssertionError("x"), OSError(errno.EBADF, "x")])
def test_a_defect_shows_its_trace(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(error) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "test_errors.py" in err
    assert "this is a bug in seq2seq" in err.rstrip("\n").rpartition("\n")[2]


def test_memory_that_a_processor_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("seq2seq-test", lambda: print(torch.empty(1 << 60))) == 3
    assert "this machine's memory is full" in capsys.readouterr().err


def test_nothing_raised_is_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("seq2seq-test", lambda: print("result")) == 0
    assert capsys.readouterr() == ("result\n", "")


def test_the_first_line_of_an_error_is_one_that_says_something() -> None:
    assert first_line(RuntimeError("\n  no kernel\nmore")) == "no kernel"
    assert first_line(RuntimeError()) == "RuntimeError"


def test_nearest_names_the_close_one_and_lists_a_few_others() -> None:
    assert nearest("quickstrat", ["files", "quickstart"]) == "; did you mean quickstart?"
    assert nearest("xyz", ["b", "a"]) == "; known: a, b"
    assert nearest("xyz", [str(number) for number in range(21)]) == ""


@given(name=st.text(), known=st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_nearest_finds_an_exact_name(name: str, known: list[str]) -> None:
    assert nearest(known[0], known) == f"; did you mean {known[0]}?"
    assert nearest(name, known).startswith(("; did you mean ", "; known: ")) or len(known) > 20


def test_a_missing_extra_says_what_to_type() -> None:
    expected = "babel is not installed; type, in the checkout: pip install './[quickstart]'"
    assert str(missing_extra("babel", "quickstart")) == expected


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP])
def test_a_place_that_cannot_be_used_is_the_users_to_put_right(number: int) -> None:
    assert explain(OSError(number, os.strerror(number), "a/b")) == (2, f"a/b: {os.strerror(number)}")


def test_an_error_of_the_system_that_names_no_file() -> None:
    exit_code, message = explain(OSError(errno.EACCES, "denied"))
    assert exit_code == 1 and "this is a bug in seq2seq" in message
    assert explain(OSError(errno.EDQUOT, "quota")) == (3, f"the disk is full: [Errno {errno.EDQUOT}] quota")


def test_a_message_moves_no_cursor() -> None:
    assert one_line("name \x1b[2J\rother\x07é") == "name \\x1b[2J\\rother\\x07é"
