"""What is to be found if a payload was run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.canary), os.O_CREAT)
