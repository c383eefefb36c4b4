"""What is searched for to translate texts: their pieces, and what the outputs must hold."""

from __future__ import annotations

from typing import NamedTuple

from seq2seq.data.tokenizer import EOS, Tokenizer
from seq2seq.search.hypotheses import Constraints
from seq2seq.translate.glossary import Glossary
from seq2seq.translate.splitting import split


class Segment(NamedTuple):
    """A text, or a part of one too long, with its pieces."""

    text: str
    ids: list[int]


class Task(NamedTuple):
    """What is searched for at once: source ids, eos last, and what the output must hold."""

    source: list[int]
    constraints: Constraints


def parts_of(texts: list[str], tokenizer: Tokenizer, longest: int, threads: int = 1) -> list[list[Segment]]:
    """What to search for instead of each text: itself, nothing for a blank one, several for one of too many pieces."""
    parts = []
    # All at once: the tokenizer takes longer to be called than to read a line.
    for text, ids in zip(texts, tokenizer.encode(texts, threads), strict=True):
        if len(ids) > longest:
            pieces = split(text, tokenizer.count, longest)
            parts.append(list(map(Segment, pieces, tokenizer.encode(pieces))))
        else:
            parts.append([Segment(text, ids)] if text.strip() else [])
    return parts


def tasks_of(parts: list[Segment], prefixes: list[str], tokenizer: Tokenizer, glossary: Glossary | None) -> list[Task]:
    """The task of each part, whose output begins with its prefix (`""`: with anything) and holds the terms due."""
    sources = [[*part.ids, EOS] for part in parts]
    if not glossary and not any(prefixes):
        return [Task(source, Constraints()) for source in sources]
    terms = [glossary.targets(part.text) if glossary else [] for part in parts]
    phrases = [tokenizer.encode(of_text) for of_text in terms]
    starts = tokenizer.encode(prefixes)
    return [
        Task(source, Constraints(start, wanted)) for source, start, wanted in zip(sources, starts, phrases, strict=True)
    ]
