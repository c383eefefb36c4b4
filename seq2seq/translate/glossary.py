"""A glossary: which target terms a translation must hold because of the terms in its source."""

from __future__ import annotations

import re
from pathlib import Path

from seq2seq.data.text_files import read_lines
from seq2seq.support.errors import UserError


class Glossary:
    """Pairs of a source term and its target term. Terms are whole words, in upper and lower case as given."""

    def __init__(self, terms: dict[str, str]) -> None:
        self.terms = terms
        # The longest first: in "car park" its own entry counts, not that of "car".
        choices = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)") if terms else None

    @classmethod
    def load(cls, path: Path) -> Glossary:
        """Read lines of source term, tab, target term; empty lines and those that begin with `#` are passed over.

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
        found = self._pattern.findall(source) if self._pattern else []
        return list(dict.fromkeys(self.terms[term] for term in found))
