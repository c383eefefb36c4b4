"""What outputs must begin with: the lines of a file parallel to the input."""

from __future__ import annotations

import itertools
from pathlib import Path

from seq2seq.data.text_files import read_lines
from seq2seq.support.errors import UserError


class Prefixes:
    """The lines of `path`, taken as the input is read; without a file, an empty one for each line of the input."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.taken = 0
        self._lines = read_lines(path) if path else itertools.repeat("")

    def take(self, count: int) -> list[str]:
        """The next `count` of them. Raises UserError where the file has fewer lines than the input."""
        found = list(itertools.islice(self._lines, count))
        self.taken += len(found)
        if len(found) < count:
            raise UserError(
                f"{self.path}: fewer lines than the input ({self.taken}): give one per line, empty for no prefix"
            )
        return found

    def require_end(self) -> None:
        """Raise UserError where the file has more lines than the input."""
        if self.path and any(True for _ in self._lines):
            raise UserError(f"{self.path}: more lines than the input, which has {self.taken}")
