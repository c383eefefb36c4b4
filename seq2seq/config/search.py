"""Every key of `search`, with its type, default, range and help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seq2seq.config.checks import at_least, of_declared_types, one_of, positive, valid_seed
from seq2seq.support.errors import UserError


def option(default: Any, text: str) -> Any:
    """A key that commands also offer as an option, with this text in their help."""
    return field(default=default, metadata={"help": text})


MOST = 1_000_000
"""The largest whole number that any setting may be, but the seed."""
SAMPLING_ALONE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""The settings of search that only sampling may change."""


@dataclass(slots=True)
class SearchConfig:
    """Beam search (a beam of one is greedy), or sampling. Lengths are in pieces, eos counted.

    An output is at most `max_length_ratio` · source + `max_length_offset` long, and at most `max_length`.
    """

    beam_size: int = option(4, "hypotheses kept at each step; 1 is greedy")
    length_penalty: float = option(0.6, "GNMT's α: above 0 favours longer outputs")
    max_length_ratio: float = option(1.0, "longest output: this times the source's length, plus --max-length-offset")
    max_length_offset: int = option(50, "added to --max-length-ratio times the source's length")
    n_best: int = option(1, "hypotheses given for each sentence")
    length_normalization: str = option("gnmt", "what scores are divided by: gnmt, average (the length) or none")
    stop: str = option(
        "exact", "when a text is done: exact (nothing better can come) or beam (--beam-size hypotheses have ended)"
    )
    coverage_penalty: float = option(0.0, "GNMT's β: above 0 penalizes outputs that leave source words unattended")
    max_length: int | None = option(None, "longest output in pieces, eos counted")
    min_length: int = option(0, "shortest output in pieces, eos counted")
    min_length_ratio: float = option(0.0, "shortest output: this times the source's length")
    no_repeat_ngram: int = option(0, "no sequence of N pieces twice in an output; 0: off")
    repetition_penalty: float = option(1.0, "above 1: pieces already in the output become less likely")
    diversity_groups: int = option(1, "diverse beam search: number of groups that the beam is split into")
    diversity_penalty: float = option(0.5, "diverse beam search: cost of a piece that another group chose in this step")
    sampling: bool = option(False, "draw outputs at random instead of searching for the best")
    temperature: float = option(1.0, "sampling: below 1 sharpens the distribution")
    top_k: int = option(0, "sampling: draw from the K likeliest pieces; 0: all")
    top_p: float = option(1.0, "sampling: draw from the likeliest pieces that together have this probability")
    seed: int = option(1, "sampling: the same seed and text give the same sample")

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise UserError for values of another type, out of range, or that contradict one another."""
        of_declared_types("search", self)
        one_of("search.length_normalization", self.length_normalization, ("gnmt", "average", "none"))
        one_of("search.stop", self.stop, ("exact", "beam"))
        # Far beyond these upper limits, numbers overflow.
        for name in ("beam_size", "max_length_offset", "max_length", "n_best", "diversity_groups"):
            at_least(f"search.{name}", getattr(self, name), 1, MOST)
        for name in ("min_length", "no_repeat_ngram", "top_k"):
            at_least(f"search.{name}", getattr(self, name), 0, MOST)
        for name, most in (("length_penalty", 10), ("max_length_ratio", 1000), ("min_length_ratio", 1000)):
            at_least(f"search.{name}", getattr(self, name), 0, most)
        for name in ("coverage_penalty", "diversity_penalty"):
            at_least(f"search.{name}", getattr(self, name), 0)
        valid_seed("search.seed", self.seed)
        # With numbers far beyond these, products overflow.
        for name in ("repetition_penalty", "temperature"):
            at_least(f"search.{name}", getattr(self, name), 0.001, 1000)
        positive("search.top_p", self.top_p)
        if self.top_p > 1:
            raise UserError(f"search.top_p={self.top_p}: must not be above 1")
        if self.max_length is not None and self.min_length > self.max_length:
            raise UserError(
                f"search.min_length={self.min_length}: must not be above search.max_length={self.max_length}"
            )
        self._check_kind()

    def _check_kind(self) -> None:
        """Refuse sampling settings in beam search, and the other way round."""
        if self.sampling:
            beam_only = {"diversity_groups": 1, "coverage_penalty": 0.0, "stop": "exact"}
            for name, off in beam_only.items():
                if getattr(self, name) != off:
                    remedy = f"type search.{name}={off} or search.sampling=false"
                    raise UserError(f"search.{name}={getattr(self, name)}: not with search.sampling; {remedy}")
            return
        for name, off in SAMPLING_ALONE.items():
            if getattr(self, name) != off:
                raise UserError(f"search.{name}={getattr(self, name)}: for sampling alone; add search.sampling=true")
        if self.n_best > self.beam_size:
            raise UserError(f"search.n_best={self.n_best}: must not be above search.beam_size={self.beam_size}")
        if self.beam_size % self.diversity_groups:
            raise UserError(
                f"search.beam_size={self.beam_size}: must be a multiple of "
                f"search.diversity_groups={self.diversity_groups}; search.diversity_groups=1 is plain beam search"
            )
