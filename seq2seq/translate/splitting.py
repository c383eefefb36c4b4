"""Cutting a text that is longer than the model was trained for: at sentence ends, else at spaces, else anywhere."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Callable

Count = Callable[[list[str]], list[int]]
"""The pieces of each of several texts; many at once, for a call costs as much as a hundred words."""
SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”’»)\]]*\s+")
BLANKS = re.compile(r"\s+")


def split(text: str, count: Count, limit: int) -> list[str]:
    """Parts of at most `limit` pieces by `count`, together the whole text but for the blanks between them.

    Sentences are kept whole and together where they fit.
    """
    if count([text])[0] <= limit:
        return [text]
    units = _small_enough([text.strip()], count, limit)
    ends = [0, *itertools.accumulate(pieces for _, pieces in units)]
    parts, start = [], 0
    while start < len(units):
        guess = bisect_right(ends, ends[start] + limit, start + 1) - 1 - start
        texts = [unit for unit, _ in units[start : start + 2 * guess + 2]]
        number = _fitting(texts, guess, count, limit)
        parts.append(" ".join(texts[:number]))
        start += number
    return parts


def _fitting(texts: list[str], guess: int, count: Count, limit: int) -> int:
    """How many of the texts, at least the first, have together at most `limit` pieces.

    One more at a time, a part of n words would be counted n times. The guess, by what each has alone, is right wherever
    pieces do not reach over blanks.
    """

    def joined(number: int) -> str:
        return " ".join(texts[:number])

    fits, next_one = count([joined(guess), joined(guess + 1)])
    if 0 < guess < len(texts) and fits <= limit < next_one:
        return guess
    return max(1, bisect_right(range(1, len(texts) + 1), limit, key=lambda number: count([joined(number)])[0]))


def _units(text: str, count: Count, limit: int) -> list[tuple[str, int]]:
    """Sentences, words where a sentence is too long, and halves where a word is, each with its number of pieces."""
    for pattern in (SENTENCE_END, BLANKS):
        cut = [piece for piece in _cut_after(pattern, text) if piece]
        if len(cut) > 1:
            return _small_enough(cut, count, limit)
    middle = len(text) // 2
    return _small_enough([text[:middle], text[middle:]] if middle else [text], count, limit)


def _small_enough(texts: list[str], count: Count, limit: int) -> list[tuple[str, int]]:
    return [
        unit
        for text, pieces in zip(texts, count(texts), strict=True)
        for unit in ([(text, pieces)] if pieces <= limit or len(text) < 2 else _units(text, count, limit))
    ]


def _cut_after(pattern: re.Pattern[str], text: str) -> list[str]:
    pieces, start = [], 0
    for match in pattern.finditer(text):
        pieces.append(text[start : match.end()].strip())
        start = match.end()
    return [*pieces, text[start:].strip()]
