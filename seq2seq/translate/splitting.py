"""Cutting a text that is longer than the model was trained for: at sentence ends, else at spaces, else anywhere.

A span (start, end) is a part of the text without blanks around it.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

from seq2seq.support.unspaced import CHINESE_JAPANESE

Count = Callable[[list[str]], list[int]]
"""Counts the pieces of each of several texts: many at once, for a call costs as much as a hundred words."""
Span = tuple[int, int]
# No space follows the end of a Chinese or Japanese sentence.
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])(?![。！？])[\"'”’»)\]」』）]*\s*")
SPACES = re.compile(r"\s+")
CHINESE_JAPANESE_END = re.compile(rf"[{CHINESE_JAPANESE}\u3000-\u303f\uff00-\uffef][!?.…—\"'”’]*$")


def blank_after(translation: str) -> str:
    """What separates the translation of a part from the next: a space, but nothing in Chinese and Japanese."""
    return "" if CHINESE_JAPANESE_END.search(translation[-9:]) else " "


def join(translations: Sequence[str]) -> str:
    """The translations of all parts of a text as one."""
    *first, last = translations
    return "".join(f"{part}{blank_after(part)}" for part in first) + last


def split(text: str, count: Count, limit: int) -> list[str]:
    """Parts of at most `limit` pieces by `count`, together the whole text except the blanks between them.

    Sentences are kept whole and together where they fit.
    """
    if count([text])[0] <= limit:
        return [text]
    return _Cutting(text, count, limit).parts()


class _Cutting:
    def __init__(self, text: str, count: Count, limit: int) -> None:
        self.text, self.limit = text, limit
        self._count = count

    def count(self, spans: list[Span]) -> list[int]:
        """The pieces of each span."""
        return self._count([self.text[start:end] for start, end in spans])

    def parts(self) -> list[str]:
        """The parts, each of as many units as fit."""
        units = self._small_enough(self._stripped([0, len(self.text)]))
        pieces = [0, *itertools.accumulate(own for _, own in units)]
        parts, first = [], 0
        while first < len(units):
            guess = bisect_right(pieces, pieces[first] + self.limit, first + 1) - 1 - first
            spans = [span for span, _ in units[first : first + 2 * guess + 2]]
            number = self._fitting(spans, guess)
            parts.append(self.text[spans[0][0] : spans[number - 1][1]])
            first += number
        return parts

    def _fitting(self, spans: list[Span], guess: int) -> int:
        """How many of the spans, at least the first, have at most `limit` pieces together.

        Adding one at a time would count a part of n words n times. The guess, from what each span has alone, is right
        wherever no piece crosses the end of a span.
        """

        def joined(number: int) -> Span:
            return spans[0][0], spans[number - 1][1]

        if 0 < guess < len(spans):
            fits, next_one = self.count([joined(guess), joined(guess + 1)])
            if fits <= self.limit < next_one:
                return guess
        numbers = range(1, len(spans) + 1)
        return max(1, bisect_right(numbers, self.limit, key=lambda number: self.count([joined(number)])[0]))

    def _units(self, span: Span) -> list[tuple[Span, int]]:
        """Sentences, words where a sentence is too long, and halves where a word is, each with its number of pieces."""
        for pattern in (SENTENCE_END, SPACES):
            cut = self._cut(pattern, span)
            if len(cut) > 1:
                return self._small_enough(cut)
        start, end = span
        middle = (start + end) // 2
        return self._small_enough([(start, middle), (middle, end)])

    def _small_enough(self, spans: list[Span]) -> list[tuple[Span, int]]:
        return [
            unit
            for (start, end), pieces in zip(spans, self.count(spans), strict=True)
            for unit in (
                [((start, end), pieces)] if pieces <= self.limit or end - start < 2 else self._units((start, end))
            )
        ]

    def _cut(self, pattern: re.Pattern[str], span: Span) -> list[Span]:
        return self._stripped([span[0], *(match.end() for match in pattern.finditer(self.text, *span)), span[1]])

    def _stripped(self, ends: list[int]) -> list[Span]:
        """The spans between consecutive places, without outer blanks; those of blanks alone are dropped."""
        pieces = [(start, self.text[start:end]) for start, end in itertools.pairwise(ends)]
        starts = ((start + len(piece) - len(piece.lstrip()), piece.strip()) for start, piece in pieces)
        return [(start, start + len(piece)) for start, piece in starts if piece]
