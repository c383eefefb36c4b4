"""The errors that reach a person, and the exit code of each."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches

PLACES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
"""What an OSError says when the user named a place that is not there, or not ours to read or write."""


class UserError(Exception):
    """Something the user can put right; one line that says what, where and what to type next. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The run itself could not go on (non-finite loss, full disk, dead rank). Exit code 3."""

    exit_code = 3


class Stopped(Exception):
    """A signal ended the run after its state was saved. Exit code 128 + signal, as shells count."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{package} is not installed; type, in the checkout: pip install './[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name closest to `name`, or the list of known names where none is close."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.75)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if len(names) <= 20 else ""


def exit_code_of(command: str, run: Callable[[], None]) -> int:
    """Run a command's body and turn whatever it raises into an exit code and a message on stderr."""
    try:
        run()
        sys.stdout.flush()
    except (UserError, RunError, Stopped) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): point stdout elsewhere, or Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            print(f"{command}: the disk is full: {error.filename or error}", file=sys.stderr)
            return RunError.exit_code
        if error.errno in PLACES and error.filename is not None:
            print(f"{command}: {error.filename}: {error.strerror}", file=sys.stderr)
            return UserError.exit_code
        return _defect(command)
    except Exception:
        return _defect(command)
    return 0


def _defect(command: str) -> int:
    traceback.print_exc()
    print(f"{command}: this is a defect of ours, not yours; please report the lines above", file=sys.stderr)
    return 1
