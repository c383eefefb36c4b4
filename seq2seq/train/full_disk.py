"""What to do when the disk is too full for a save: the run goes on and tries again at the next save, or stops."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from seq2seq.support.errors import FULL_DISK, RunError
from seq2seq.support.progress import say


class FullDisk:
    """Handles saves under `directory` that lack disk space, as `trainer.on_full_disk` says: `retry` or `stop`."""

    def __init__(self, directory: Path, policy: str) -> None:
        self._directory = directory
        self._policy = policy
        self._unsaved: dict[str, str] = {}

    @contextlib.contextmanager
    def saving(self, what: str, step: int, size: int) -> Iterator[None]:
        """A context for saving `what`, of about `size` bytes; afterwards `is_saved` tells whether it was saved.

        Raises RunError, with the bytes needed and free, if the run is to stop.
        """
        self._unsaved.pop(what, None)
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            free = shutil.disk_usage(self._directory).free
            message = (
                f"step {step}: the {what} was not saved, the disk of {self._directory} is full: {size:,} bytes are "
                f"needed, {free:,} are free"
            )
            if self._policy == "stop":
                raise RunError(f"{message}; what was saved before is kept; rerun the same command to resume") from None
            say(f"{message}; the next save tries again (trainer.on_full_disk=retry)")
            self._unsaved[what] = message

    def is_saved(self, what: str) -> bool:
        """Whether the latest save of `what` did not fail."""
        return what not in self._unsaved

    def error(self) -> RunError | None:
        """The error of a run that ends with something unsaved, or None."""
        unsaved = "; ".join(self._unsaved.values())
        return RunError(f"{unsaved}; free some space and rerun the same command to resume") if unsaved else None
