"""Work that a thread does while the caller goes on."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable

from seq2seq.support.errors import Stopped, explain
from seq2seq.support.progress import say


class Background:
    """A thread that does one job at a time; as a context manager, it lets the last one come to its end.

    But one that Stopped ends leaves it, and at the latest the end of the process ends the job.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; `wait` must have been called since the one before."""
        assert self._thread is None
        thread = threading.Thread(target=self._do, args=(job,), daemon=True)
        thread.start()
        self._thread = thread

    def check(self) -> None:
        """Raise what the job raised, if it has failed by now."""
        if self._error:
            self.wait()

    def wait(self) -> None:
        """Wait until the job, if there is one, is done. Raises what it raised."""
        thread, self._thread = self._thread, None
        if thread:
            thread.join()
        error, self._error = self._error, None
        if error:
            raise error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: object) -> None:
        if isinstance(raised, Stopped):
            if self._thread:
                atexit.register(self._end_process, raised.exit_code)
            return
        try:
            self.wait()
        except Exception as error:
            if not raised:
                raise
            say(f"before that: {explain(error)[1]}")

    def _end_process(self, exit_code: int) -> None:
        assert self._thread
        if self._thread.is_alive():
            # The interpreter would end the thread within another language's code, which aborts the process.
            os._exit(exit_code)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
