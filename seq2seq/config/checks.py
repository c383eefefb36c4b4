"""Checks of values in a configuration."""

from __future__ import annotations

import functools
import math
import numbers
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from seq2seq.support.errors import UserError

WORDS = {
    numbers.Integral: "a whole number",
    numbers.Real: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
}
"""Types of values, as messages call them."""


def of_declared_types(prefix: str, config: Any) -> None:
    """Raise UserError for a field of this dataclass whose value is not of its type; integers are numbers too."""
    for name, kinds in _declared_types(config.__class__).items():
        value = getattr(config, name)
        # A bool is an integer to Python.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{prefix}.{name}={value!r}: must be {' or '.join(WORDS[kind] for kind in kinds)}")


@functools.cache
def _declared_types(dataclass: type) -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(dataclass)
    kinds = {key.name: get_args(hints[key.name]) or (hints[key.name],) for key in fields(dataclass)}
    # NumPy's numbers too.
    wider = {int: numbers.Integral, float: numbers.Real}
    return {name: tuple(wider.get(kind, kind) for kind in of_one) for name, of_one in kinds.items()}


def at_least(key: str, value: float | None, limit: float, most: float = math.inf) -> None:
    """Raise UserError for a value below `limit`, above `most`, or one that is not finite."""
    if value is not None and not limit <= value < math.inf:
        raise UserError(f"{key}={value}: must be at least {limit}{_and_finite(value)}")
    if value is not None and value > most:
        raise UserError(f"{key}={value}: must be at most {most}")


def positive(key: str, value: float | None) -> None:
    """Raise UserError for a value that is not above 0, or not finite."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{key}={value}: must be greater than 0{_and_finite(value)}")


def _and_finite(value: float) -> str:
    return "" if math.isfinite(value) else ", and finite"


def valid_seed(key: str, value: int) -> None:
    """Raise UserError for a value that is not a valid random seed."""
    if not 0 <= value < 1 << 63:
        raise UserError(f"{key}={value}: must be at least 0, and below 2 to the power of 63")


def fraction(key: str, value: float | None) -> None:
    """Raise UserError for a value that is not a fraction, from 0 to below 1."""
    if value is not None and not 0 <= value < 1:
        raise UserError(f"{key}={value}: must be at least 0 and below 1")


def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UserError for a value that is not known."""
    if value not in known:
        raise UserError(f"{key}={value}: must be one of {', '.join(known)}")
