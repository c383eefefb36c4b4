"""The pairs that are scored."""

from __future__ import annotations

from pathlib import Path

from seq2seq.data.corpus import Pair
from seq2seq.data.text_files import read_lines
from seq2seq.support.errors import UserError


def read_test_set(source: Path | None, reference: Path) -> list[Pair]:
    """The pairs of two line-aligned files; without `source`, references alone. Raises UserError."""
    references = list(read_lines(reference))
    sources = aligned(source, references) if source else [""] * len(references)
    return [Pair(*pair) for pair in zip(sources, references, strict=True)]


def aligned(path: Path, references: list[str]) -> list[str]:
    """The lines of a file. Raises UserError unless they are as many as the references."""
    lines = list(read_lines(path))
    if len(lines) != len(references):
        raise UserError(f"{path} has {len(lines)} lines; the reference has {len(references)}")
    return lines
