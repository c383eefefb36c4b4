"""Checks of values in a configuration."""

from __future__ import annotations

import math

from seq2seq.support.errors import UserError


def at_least(key: str, value: float | None, limit: float) -> None:
    """Raise UserError for a value below `limit`, or one that is not finite."""
    if value is not None and not limit <= value < math.inf:
        raise UserError(f"{key}={value}: must be at least {limit}{_and_finite(value)}")


def above(key: str, value: float | None, limit: float) -> None:
    """Raise UserError for a value that is not above `limit`, or not finite."""
    if value is not None and not limit < value < math.inf:
        raise UserError(f"{key}={value}: must be greater than {limit}{_and_finite(value)}")


def _and_finite(value: float) -> str:
    return "" if math.isfinite(value) else ", and finite"


def valid_seed(key: str, value: int) -> None:
    """Raise UserError for a value that is not a valid random seed."""
    if not 0 <= value < 1 << 63:
        raise UserError(f"{key}={value}: must be at least 0, and below 2 to the power of 63")


def share(key: str, value: float) -> None:
    """Raise UserError for a value that is not a share, from 0 to below 1."""
    if not 0 <= value < 1:
        raise UserError(f"{key}={value}: must be at least 0 and below 1")


def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UserError for a value that is not known."""
    if value not in known:
        raise UserError(f"{key}={value}: must be one of {', '.join(known)}")
