"""Which pairs are not worth learning from, and why."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from seq2seq.config.schema import CleaningConfig

EXAMPLES = 3
LENGTH_RULES = ("max_length_ratio", "max_pieces")
"""The rules that need pieces; the others look at text."""


def text_reason(source: str, target: str, rules: CleaningConfig) -> str | None:
    """The rule, if any, by whose name a pair is dropped for its text alone: `empty` or `same`."""
    if rules.empty and not (source.strip() and target.strip()):
        return "empty"
    if rules.same and source == target:
        return "same"
    return None


def length_reason(source_pieces: int, target_pieces: int, rules: CleaningConfig) -> str | None:
    """The rule, if any, by whose name a pair is dropped for its lengths in pieces; see `LENGTH_RULES`."""
    longer, shorter = max(source_pieces, target_pieces), max(1, min(source_pieces, target_pieces))
    if rules.max_pieces is not None and longer > rules.max_pieces:
        return "max_pieces"
    if rules.max_length_ratio is not None and longer > rules.max_length_ratio * shorter:
        return "max_length_ratio"
    return None


def text_hash(*texts: str) -> int:
    """A 63-bit hash that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest()) >> 1


class CleaningReport:
    """Counts of kept and dropped pairs, with the first examples of each reason."""

    def __init__(self) -> None:
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[tuple[str, str, str]]] = {}

    def drop(self, reason: str, source: str, target: str, place: str = "") -> None:
        """Count a dropped pair; `place` is where it was read."""
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append((source[:120], target[:120], place))

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-like values."""
        return {"kept": self.kept, "dropped": dict(self.dropped), "examples": self.examples}

    def __str__(self) -> str:
        total = self.kept + self.dropped.total()
        lines = [f"kept {self.kept:,} of {total:,} pairs"]
        for reason, count in self.dropped.most_common():
            source, target, place = self.examples[reason][0]
            example = f"{place}: {source[:50]!r} | {target[:50]!r}".removeprefix(": ")
            lines.append(f"  dropped {count:,} ({count / total:.1%}) for {reason}, such as: {example}")
        return "\n".join(lines)
