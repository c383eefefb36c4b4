"""Ports for processes that find one another."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """A port that nothing listens on, and that Linux gives to no connection meanwhile: those are above 32,767."""
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with contextlib.suppress(OSError), socket.create_server(("localhost", port)):
            return port
    raise RuntimeError("a hundred ports are all in use")
