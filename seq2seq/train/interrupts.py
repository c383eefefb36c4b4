"""SIGTERM and SIGINT during training: the work in progress is finished and saved, then the run ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from seq2seq.support.errors import Stopped
from seq2seq.support.ranks import is_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_SIGNAL = 0.5
"""Seconds within which a second signal counts as the same one: `timeout` sends each twice."""
ONE_SIGNAL_OF_LAUNCHERS = 5.0
"""The same for ranks: launchers forward, with some delay, a signal that the ranks got already."""


class Interrupts:
    """Notes the first signal, which the training loop polls; the second ends the run at once.

    `end` makes the error that ends a run whose state is all saved.
    """

    def __init__(self, end: Callable[[int], Exception]) -> None:
        self.caught = 0
        self._end = end
        self._since = 0.0
        self._all_is_saved = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def ending_the_run_at_once(self) -> Iterator[None]:
        """A context in which all is saved, so that a signal need not wait: a validation cut short is made up for."""
        self._all_is_saved = True
        try:
            if self.caught:
                raise self._end(self.caught)
            yield
        finally:
            self._all_is_saved = False

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        seconds = time.monotonic() - self._since
        if self.caught and seconds > (ONE_SIGNAL_OF_LAUNCHERS if is_rank() else ONE_SIGNAL):
            raise Stopped(number, "stopped at once; the last save is kept")
        if not self.caught:
            self.caught, self._since = number, time.monotonic()
            if self._all_is_saved:
                raise self._end(number)
