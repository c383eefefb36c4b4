"""A text's translation: its hypotheses, and what there is to know about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from seq2seq.search.interfaces import Hypothesis
from seq2seq.translate.tasks import Task


@dataclass
class Translation:
    """The hypotheses of one text, best first: `texts` and `scores` (log-probability / length penalty).

    `flags` says what else there is to know: `empty` (nothing to translate), `split` (longer than the model was trained
    for: translated in parts and joined; the score is the sum of theirs, and only the best hypothesis is kept),
    `length_limit` (the output, or a part of it, is as long as it may be: it may have been cut off), `unmet` (no output
    contains the requested prefix and terms: translated without them; the field `unmet` says why). `outputs` are the
    parts of each hypothesis.
    """

    texts: list[str]
    scores: list[float]
    flags: list[str] = field(default_factory=list)
    unmet: str = ""
    outputs: list[list[tuple[Task, Hypothesis]]] = field(default_factory=list, repr=False)

    @classmethod
    def joined(cls, found: list[tuple[Task, list[Hypothesis], str]]) -> Translation:
        """The translation of a text, still without `texts`, from the results of its parts and why any are unmet."""
        if not found:
            return cls([], [0.0], ["empty"])
        unmet = next((why for *_, why in found if why), "")
        parts = [[(task, hypothesis) for hypothesis in hypotheses] for task, hypotheses, _ in found]
        outputs = [[hypothesis] for hypothesis in parts[0]] if len(parts) == 1 else [[part[0] for part in parts]]
        scores = [sum(part.score for _, part in output) for output in outputs]
        limited = any(part.limited for _, part in outputs[0])
        flags = {"split": len(parts) > 1, "length_limit": limited, "unmet": bool(unmet)}
        return cls([], scores, [name for name, holds in flags.items() if holds], unmet, outputs)

    @property
    def status(self) -> str:
        """The flags, separated by commas; `ok` where there are none."""
        return ",".join(self.flags) or "ok"
