"""Progress on stderr: a bar with rate and time left for whatever takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_silent = False


def silence() -> None:
    """Show nothing from now on: only one of several ranks prints."""
    global _silent
    _silent = True


def keep_lock_to_this_process() -> None:
    """Replace tqdm's lock, which is shared between processes: Python 3.14 calls it leaked after an `os._exit`."""
    tqdm.set_lock(threading.RLock())


def bar(description: str, total: float, *, unit: str = "lines") -> tqdm[Any]:
    """A bar that appears after two seconds; call `update(n)` on it, and use it as a context manager.

    In a log file it prints only every 15 seconds. Only the main thread shows bars: another's would be mixed with what
    that one prints.
    """
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        desc=description,
        total=total,
        unit=f" {unit}",
        unit_scale=True,
        delay=2,
        mininterval=interval,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
        disable=_silent or threading.current_thread() is not threading.main_thread(),
    )


def say(message: str, *, of_any_rank: bool = False) -> None:
    """Print a line to stderr: stdout carries results only. Of several ranks one prints, unless it is `of_any_rank`."""
    if of_any_rank or not _silent:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def bars_of_datasets(shown: bool) -> Iterator[None]:
    """Show or hide `datasets`' own progress bars while the block runs; in a log file they are always hidden."""
    import datasets

    before = datasets.are_progress_bars_disabled()
    switch = {False: datasets.enable_progress_bars, True: datasets.disable_progress_bars}
    switch[_silent or not (shown and sys.stderr.isatty())]()
    try:
        yield
    finally:
        switch[before]()
