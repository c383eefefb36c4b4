"""A glossary: which target terms a translation must contain because of the terms in its source."""

from __future__ import annotations

import re
from pathlib import Path
from unicodedata import category, combining, name

from seq2seq.data.text_files import read_lines
from seq2seq.support.errors import UserError
from seq2seq.support.unspaced import UNSPACED, UNSPACED_LETTER

SPACED = rf"[^\W{UNSPACED}]"


class Glossary:
    """Pairs of a source term and its target term.

    Terms match whole words, case-sensitively; those of languages that are written without spaces match anywhere.
    """

    def __init__(self, terms: dict[str, str]) -> None:
        """Raises UserError for a term that is blank on either side."""
        for source, target in terms.items():
            if not (source.strip() and target.strip()):
                raise UserError(f"the glossary's pair {source!r}, {target!r}: a term is blank; leave it out")
        self.terms = terms
        # Longest first: "car park" matches its own entry, not that of "car".
        words = sorted(terms, key=len, reverse=True)
        sides = [(f"(?<!{SPACED})", [word for word in words if not UNSPACED_LETTER.match(word[0])])]
        sides.append(("", [word for word in words if UNSPACED_LETTER.match(word[0])]))
        choices = [f"{before}(?:{'|'.join(map(_up_to_its_end, own))})" for before, own in sides if own]
        self._pattern = re.compile("|".join(choices)) if terms else None

    def __bool__(self) -> bool:
        return bool(self.terms)

    @classmethod
    def load(cls, path: Path) -> Glossary:
        """Read lines of source term, tab, target term; empty lines and those that begin with `#` are skipped.

        Raises UserError with file and line for any other line, and for two targets of one term.
        """
        terms: dict[str, str] = {}
        for number, line in enumerate(read_lines(path, is_table=True), 1):
            if not line or line.startswith("#"):
                continue
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) != 2 or not all(fields):
                raise UserError(f"{path}:{number}: {line!r} is not a pair: write source term, tab, target term")
            source, target = fields
            if terms.setdefault(source, target) != target:
                raise UserError(f"{path}:{number}: {source!r} was {terms[source]!r} before; keep one of the two lines")
        return cls(terms)

    def targets(self, source: str) -> list[str]:
        """The target terms of the source terms in a text, in order, each once."""
        matches = self._pattern.finditer(source) if self._pattern else ()
        whole = (found[0] for found in matches if not _is_part(source[found.end() : found.end() + 1] or " "))
        return list(dict.fromkeys(self.terms[word] for word in whole))


def _up_to_its_end(term: str) -> str:
    return re.escape(term) + ("" if UNSPACED_LETTER.match(term[-1]) else f"(?!{SPACED})")


def _is_part(sign: str) -> bool:
    """Whether a character is part of the letter before it: an accent, or a vowel sign of an Indic script.

    Hebrew and Arabic points do not count: terms are written without them.
    """
    is_point = 10 <= combining(sign) <= 36 or name(sign, "").startswith("VARIATION SELECTOR")
    return category(sign).startswith("M") and not is_point
