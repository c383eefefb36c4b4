"""Work that a thread does while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from seq2seq.support.errors import Stopped


class Background:
    """A thread that does one job at a time; as a context manager, it lets the last one come to its end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; `wait` must have been called since the one before."""
        assert self._thread is None
        # It dies with the process, which a second signal ends at once.
        self._thread = threading.Thread(target=self._do, args=(job,), daemon=True)
        self._thread.start()

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread and not (kind and issubclass(kind, Stopped)):
            self._thread.join()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
