"""Search tasks for the translation of texts: their pieces, and what the outputs must contain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from seq2seq.data.tokenizer import EOS, Tokenizer
from seq2seq.search.interfaces import Constraints
from seq2seq.translate.glossary import Glossary
from seq2seq.translate.splitting import split


class Segment(NamedTuple):
    """A text, or a part of one that is too long, with its pieces; `within_word` if the cut before it divides a word."""

    text: str
    ids: list[int]
    within_word: bool = False


class Task(NamedTuple):
    """A single search: source ids, eos last, and what the output must contain; see `Segment`."""

    source: list[int]
    constraints: Constraints
    within_word: bool = False


def parts_of(texts: list[str], tokenizer: Tokenizer, longest: int, threads: int = 1) -> list[list[Segment]]:
    """The segments of each text: the text itself, none if it is blank, several if it has too many pieces."""
    parts = []
    # All at once: calling the tokenizer takes longer than reading a line.
    for text, ids in zip(texts, tokenizer.encode(texts, threads), strict=True):
        if len(ids) > longest:
            pieces = split(text, tokenizer.count, longest)
            parts.append(list(map(Segment, pieces, tokenizer.encode(pieces), _within_words(text, pieces))))
        else:
            parts.append([Segment(text, ids)] if text.strip() else [])
    return parts


def _within_words(text: str, pieces: list[str]) -> Iterator[bool]:
    """Whether there is no blank between each piece of a text and the one before it."""
    end = 0
    for piece in pieces:
        start = text.index(piece, end)
        yield 0 < start == end
        end = start + len(piece)


def tasks_of(parts: list[Segment], prefixes: list[str], tokenizer: Tokenizer, glossary: Glossary | None) -> list[Task]:
    """Each part's task, whose output must begin with its prefix (`""`: anything) and contain its glossary terms."""
    sources = [[*part.ids, EOS] for part in parts]
    if not glossary and not any(prefixes):
        return [Task(source, Constraints(), part.within_word) for source, part in zip(sources, parts, strict=True)]
    terms = [glossary.targets(part.text) if glossary else [] for part in parts]
    phrases = [tokenizer.encode(of_text) for of_text in terms]
    starts = tokenizer.encode(prefixes)
    return [
        Task(source, Constraints(start, wanted), part.within_word)
        for source, start, wanted, part in zip(sources, starts, phrases, parts, strict=True)
    ]
