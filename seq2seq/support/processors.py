"""How many processors there are; asked before torch is imported."""

from __future__ import annotations

import os


def available_processors() -> int:
    """How many processors this process may use: not all of them where a scheduler or `taskset` keeps it to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
