"""Cutting a text that is longer than the model was trained for: at sentence ends, else at spaces, else anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable

SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”’»)\]]*\s+")


def split(text: str, count: Callable[[str], int], limit: int) -> list[str]:
    """Parts of at most `limit` pieces by `count`, together the whole text but for the blanks between them.

    Sentences are kept whole and together where they fit.
    """
    if count(text) <= limit:
        return [text]
    parts: list[str] = []
    for unit in _units(text.strip(), count, limit):
        if parts and count(f"{parts[-1]} {unit}") <= limit:
            parts[-1] = f"{parts[-1]} {unit}"
        else:
            parts.append(unit)
    return parts


def _units(text: str, count: Callable[[str], int], limit: int) -> list[str]:
    """Sentences, words where a sentence is too long, and halves where a word is."""
    for pattern in (SENTENCE_END, re.compile(r"\s+")):
        pieces = [piece for piece in _cut_after(pattern, text) if piece]
        if len(pieces) > 1:
            return [
                unit for piece in pieces for unit in ([piece] if count(piece) <= limit else _units(piece, count, limit))
            ]
    if count(text) <= limit or len(text) < 2:
        return [text]
    middle = len(text) // 2
    return _units(text[:middle], count, limit) + _units(text[middle:], count, limit)


def _cut_after(pattern: re.Pattern[str], text: str) -> list[str]:
    pieces, start = [], 0
    for match in pattern.finditer(text):
        pieces.append(text[start : match.end()].strip())
        start = match.end()
    return [*pieces, text[start:].strip()]
