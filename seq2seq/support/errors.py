"""The errors that reach the user, and the exit code of each."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from seq2seq.support.streams import drop

PLACES = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
"""Error numbers of an OSError for a place that does not exist, or that we may not read or write."""
MACHINE = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.EFBIG, errno.ENODEV, errno.ENXIO),
    *(errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
)
"""Error numbers of an OSError for what the machine could not do: a disk that fails, too many files or processes."""
NO_THREAD = "can't start new thread"
"""What Python's RuntimeError says where the system allows no more threads."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of an OSError when no more can be written: no space is left, or the user's quota is used up."""

MAX_CHARACTERS = 2000
"""Characters of a message that are shown; what it quotes from a file may have millions."""


class ReportedError(Exception):
    """An error that one line explains; the command ends with `exit_code`."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # Whatever a derived class is made of: processes send errors to one another.
        return self.__class__.__new__, (self.__class__, *self.args), self.__dict__


class UserError(ReportedError):
    """Something the user can put right; one line that says what, where and what to type next. Exit code 2."""

    exit_code = 2


class RunError(ReportedError):
    """The run itself could not go on (non-finite loss, full disk, dead rank). Exit code 3."""

    exit_code = 3


class OutOfMemory(RunError):
    """A batch does not fit the device's memory."""


class ProcessFailed(ReportedError):
    """What ended another process of this command, in its words and with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(ReportedError):
    """A signal ended the run; the first one, after its state was saved. Exit code 128 + signal, as in shells."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{package} is not installed; type, in the checkout: pip install './[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name closest to `name`, or the list of known names if none is close."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.75)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if len(names) <= 20 else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def one_line(message: str) -> str:
    """A message as one line without terminal control characters: names read from files may hold anything."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in message[:MAX_CHARACTERS]
    )
    return shown + ("…" if len(message) > MAX_CHARACTERS else "")


def exit_code_of(command: str, run: Callable[[], None]) -> int:
    """Run a command's body and turn whatever it raises into an exit code and a message on stderr."""
    try:
        run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`).
        drop(sys.stdout)
    except (Exception, KeyboardInterrupt) as error:
        exit_code, message = explain(error)
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:
                # It would be tried again, and fail again, when Python exits.
                drop(sys.stdout)
        if message:
            print(f"{command}: {message}", file=sys.stderr)
        return exit_code
    return 0


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and what to tell the user: one line, except for a bug of ours."""
    if isinstance(error, ReportedError):
        # A defect of another process comes with its trace, at whose end is what matters.
        return error.exit_code, str(error) if error.exit_code == 1 else one_line(str(error))
    if isinstance(error, KeyboardInterrupt):
        return 130, ""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return RunError.exit_code, f"the disk is full: {error.filename or error}"
    if isinstance(error, OSError) and error.errno in PLACES and error.filename is not None:
        return UserError.exit_code, f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return RunError.exit_code, f"the system could not go on: {where}{error.strerror}"
    if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
        return RunError.exit_code, f"the system could not go on: {NO_THREAD}"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return RunError.exit_code, (
            f"this machine's memory is full ({first_line(error)}); free some, or take fewer --workers or smaller "
            "--batch-tokens to translate, smaller data.batch_tokens to train"
        )
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which takes long to import.
        return RunError.exit_code, (
            f"the device's memory is full ({first_line(error)}); wait until other processes on it have finished, or "
            "use a smaller model"
        )
    trace = "".join(traceback.format_exception(error))
    return 1, f"{trace}this is a bug in seq2seq; please report the lines above"
