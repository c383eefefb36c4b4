"""How many CPUs there are, and how threads wait for each other on them; called before torch is imported."""

from __future__ import annotations

import os


def available_processors() -> int:
    """How many CPUs this process may use: not all of them where a scheduler or `taskset` restricts it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spin(turns: int) -> None:
    """Let OpenMP's threads, waiting for each other, look so many times before they sleep; call it before torch comes.

    Where another process occupies one of the processors, each wait that ends by looking costs it and us: by default
    millions of turns at each small operation made training up to eighteen times slower. A variable that the user has
    set remains as it is.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(turns))
