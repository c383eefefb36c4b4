"""The standard streams of a command: UTF-8, and nothing that its messages meet ends it."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO, cast


def make_dependable() -> None:
    """Let stdout take any text, and let a run survive that nobody reads its stderr, or that stderr is closed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    if sys.stderr is None:
        # Otherwise print would take stdout in its place, and the next file that is opened its number.
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8", newline="\n")  # noqa: SIM115
    elif not isinstance(sys.stderr, Notices):
        sys.stderr = cast(TextIO, Notices(sys.stderr))


class Notices:
    """A text stream whose reader may go away (`2>&1 | head`), or disk be full: what it cannot take is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of the stream, without OSError."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """As of the stream, without OSError."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        # A full disk may have room again.
        if error.errno in (errno.EPIPE, errno.EIO):
            drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def drop(stream: TextIO) -> None:
    """Let all that is still written to a stream go nowhere, or Python would complain of a broken pipe when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
