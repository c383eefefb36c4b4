"""Whether this process is one of several; asked before torch is imported."""

from __future__ import annotations

import os


def is_rank() -> bool:
    """Whether a launcher, such as torchrun, started this process as one of several ranks."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1
