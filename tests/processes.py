"""Waiting for processes."""

from __future__ import annotations

from pathlib import Path

PATIENCE = 300
"""Seconds to wait for what takes a few: a busy machine may need many times as long, and who passes does not wait."""


def is_running(pid: int) -> bool:
    """Whether a process runs, by Linux's /proc; one whose end nobody has asked for yet has ended, too."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
