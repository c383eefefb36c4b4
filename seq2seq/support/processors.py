"""How many CPUs there are; asked before torch is imported."""

from __future__ import annotations

import os


def available_processors() -> int:
    """How many CPUs this process may use: not all of them where a scheduler or `taskset` restricts it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
